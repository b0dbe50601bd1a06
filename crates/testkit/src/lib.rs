//! Fixtures of end-to-end tests: real servers, the demo model, a small HTTP client, Python.
//!
//! What a test needs and a machine may lack (the demo model, Gemma 3 270M, the Python environment) is asked for
//! here, in one way: it is there, or the test says that it is skipped and returns early, or, under
//! `CI=true`, it panics, so that a skipped test never looks green. `cargo xtask test` installs them all.
//!
//! These helpers panic where a test could only unwrap. The client speaks just enough HTTP/1.1 for
//! our own server, byte by byte, so that tests can also send what no library would.

mod environment;
mod fixtures;
mod gguf;
mod http;
mod metrics;
mod server;

pub use environment::{
    binary, demo_model, gemma_model, gemma_path, python, python_path, resident_bytes,
    simulated_gpus,
};
pub use fixtures::{TINY_MODELS, f32_of, fixture, fixture_json};
pub use gguf::{GgufWriter, TINY_CONTEXT, TINY_VOCABULARY, TinyModel};
pub use http::{Client, EventStream, Response};
pub use metrics::Metrics;
pub use rustix::process::Signal;
pub use server::{PATIENCE, Server, ServerOptions, send_signal, wait_until};
