//! Execution of decoded programs, warp by warp.

mod access;
mod atomics;
pub(crate) mod block;
pub(crate) mod cache;
mod collective;
mod contiguous;
mod convert;
mod copies;
mod global;
pub(crate) mod kernel;
mod local;
mod matrix;
mod paths;
pub(crate) mod program;
mod races;
pub(crate) mod random;
pub(crate) mod registers;
mod shared;
pub(crate) mod stores;
pub(crate) mod tally;
mod warp;
pub(crate) mod windows;
