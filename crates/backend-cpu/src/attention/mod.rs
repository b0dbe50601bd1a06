//! Paged attention over an f16 cache.

mod cache;
mod call;
mod kernel;

pub use cache::CpuKvCache;
pub(crate) use call::{AttentionCall, PartialSums};
