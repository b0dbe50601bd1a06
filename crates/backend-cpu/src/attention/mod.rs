//! Paged attention over an f16 cache.

mod cache;
mod kernel;

pub use cache::CpuKvCache;
pub(crate) use kernel::{HeadGroup, PartState, attend, join_parts};
