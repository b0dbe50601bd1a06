//! Model families and weight loading, generic over the [`oarlock_backend::Backend`] trait.
//!
//! [`Checkpoint::open`] maps a GGUF file, or the safetensors files of a folder of the Hugging Face hub, and
//! checks their headers and tensors; [`Checkpoint::card`] says what the gateway needs to know,
//! [`Checkpoint::summary`] what a person wants to; [`load`] packs every weight into a backend, dropping the mapped pages behind
//! it, and gives a [`Decoder`] that computes steps. A wrong, missing, truncated or extra tensor is an
//! error that names it, and nothing is read outside of the file's bounds.
//!
//! A family is data, a `DecoderSpec`: widths, which norms there are, which layers see a window or have experts,
//! how angles and embeddings are scaled. [`Decoder`] reads it; no backend knows a family. `README.md` has the list,
//! what was checked of each, and how to add one.
//!
//! Absent on purpose: devices, scheduling, text.

mod buffers;
mod card;
mod checkpoint;
mod decoder;
mod error;
mod families;
mod gguf;
mod hash;
mod hash_cache;
mod hugging_face;
mod layer;
mod layout;
mod mapping;
mod quantization;
mod rope;
mod sharding;
mod spec;
mod summary;
mod tensors;
mod trace;
mod weights;

pub use buffers::BufferType;
pub use checkpoint::{Checkpoint, inspect, load};
pub use decoder::{Decoder, StepError};
pub use error::ModelError;
pub use hash::hash_file;
pub use hash_cache::HashCache;
pub use quantization::Quantization;
pub use summary::{Degree, Experts, Shape, StoredType, Summary, Window};
pub use trace::{TRACED_OPERATIONS, TraceRecord, Tracer};
