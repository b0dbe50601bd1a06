//! Entry points for bytes from strangers: weight files, chat templates, HTTP requests.
//!
//! Each takes any bytes and must return: no panic, no endless loop, no memory beyond a small multiple
//! of the input. The tests of this crate run them on mutated valid inputs with proptest; `fuzz/` at
//! the root of the repository runs the same functions under cargo-fuzz, on a nightly toolchain.

mod engine;
mod gguf;
mod http;
mod template;

pub use gguf::gguf;
pub use http::{http, valid_requests};
pub use template::template;
