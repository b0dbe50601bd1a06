//! Weights in the layouts that the kernels read (`kernels/README.md` describes them).

mod linear;
mod router;
mod tile;

pub use linear::{PackedLinear, PackedPart, pack_linear, pack_table};
pub use router::{RouterParts, router_parts};
