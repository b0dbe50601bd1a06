//! GGUF files: header, metadata and tensor table, version 2 and 3, little-endian. Format: the
//! specification `docs/gguf.md` of the ggml project.
//!
//! Every length in the file is checked against what is left of the file before anything is allocated
//! for it, so that a hostile header costs no more memory than the file has bytes.

mod cursor;
mod header;
mod keys;
mod parts;
#[cfg(test)]
mod tests;
mod value;

pub(crate) use keys::Keys;
pub(crate) use parts::Model;
pub(crate) use value::{Metadata, Value};
