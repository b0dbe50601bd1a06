//! Which block holds which tokens: pool, tables, prefix index, eviction.
//!
//! A sequence's KV cache lives in blocks of [`BLOCK_TOKENS`] tokens, listed by a [`BlockTable`]. The
//! [`BlockPool`] owns every block: a table gets blocks from it, and gives all of them back at once.
//!
//! ```text
//! free ──extend──▶ owned (held by tables) ──release──▶ free       not in the index
//!   ▲                 │ ▲                    └───────▶ cached     in the index
//!   └──── evict ──────┼─┴──── acquire ◀──────────────────┘
//!                     └ register: a full block enters the index when its step has committed
//! ```
//!
//! Invariants ([`BlockPool::check_invariants`]):
//! - Each block is free, cached or owned; its reference count is the number of tables that hold it,
//!   plus released tables whose last plan is still in flight.
//! - A block is found only under the parent, the tokens and the salt that it was registered with, all
//!   compared, so that a hash is a shortcut and never an answer; two salts never share a block.
//! - What is in the index is immutable, and so is its chain of parents. A block that leaves the index
//!   takes its descendants with it; those that no table holds become free.
//! - A block that a plan in flight names is not given out again before that plan has committed.
//!
//! Operations cost O(1) for each block that they name, amortized, and allocate nothing once warm.
//!
//! Absent on purpose: device memory, the clock (recency is the order of calls), deduplication: two
//! sequences that compute the same block at the same time keep both, since tables are append-only;
//! the first one committed is the one found.
//!
//! [`BLOCK_TOKENS`]: oarlock_types::BLOCK_TOKENS

mod index;
mod invariants;
mod lru;
mod pool;
mod table;

pub use pool::{BlockPool, OutOfBlocks};
pub use table::{BlockTable, PrefixEnd};
