//! The CPU backend: packed weights, int8 and BF16 kernels per instruction set, its own threads.
//!
//! Bits of a result do not depend on the instruction set, the number of threads or the other rows of
//! a step; `README.md` has the rules. Absent on purpose: the environment, the clock, model families.
#![allow(
    unsafe_code,
    reason = "vector intrinsics, aligned memory and views that threads share; each block says why"
)]
#![allow(
    clippy::inline_always,
    reason = "code written once over lanes must be inlined into each instruction set"
)]
#![allow(clippy::wildcard_imports, reason = "vector intrinsics")]
#![allow(
    clippy::needless_range_loop,
    reason = "kernels index several arrays by one lane, row or group"
)]
#![allow(
    clippy::cast_ptr_alignment,
    reason = "vector loads and stores of this crate are the unaligned ones"
)]

mod activation;
mod amx;
mod attention;
mod backend;
mod buffer;
mod dtype;
mod experts;
mod isa;
mod lanes;
mod linear;
mod norm;
mod operations;
mod pack;
mod rotary;
mod sample;
mod tensor;
mod threads;

pub use attention::CpuKvCache;
pub use backend::{CpuBackend, CpuConfig};
pub use dtype::Dtype;
pub use experts::{CpuExperts, CpuRouting};
pub use isa::InstructionSet;
pub use pack::CpuWeight;
pub use rotary::CpuRotary;
pub use tensor::{CpuTable, CpuTensor, CpuVector};
