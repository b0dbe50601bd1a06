//! Logits and a seed to a token; the oracle for every other sampler.
//!
//! A token is a function of the row of logits, the [`SamplingParams`] and the absolute position of
//! the drawn token, and of nothing else. What makes that hold on any number of threads and ranks:
//!
//! - [`math::exp`] is our own, a fixed sequence of IEEE operations that vector units reproduce.
//! - Weights are integers ([`WEIGHT_BITS`] fractional bits), so that their sums have no order.
//! - Filters keep a prefix of the order (weight descending, id ascending), each the shortest that
//!   satisfies it: first `min_p`, then `top_k`, then `top_p` over the mass that the others kept.
//! - The draw inverts the cumulative weight in order of ids, with a 64-bit number from Philox4x32-10
//!   keyed by seed and counted by position and choice: no state to carry or to lose.
//! - Rules (masks, biases, penalties) change a copy of the row, as functions of the tokens so far.
//! - Logprobs are of the raw logits, by log-sum-exp over fixed [`SEGMENT`]s of the vocabulary; a rank
//!   that owns whole segments can compute its share.
//!
//! The loops over the vocabulary are `#[inline]` and plain, so that a caller compiled with
//! `#[target_feature(enable = "avx2,fma")]` gets them vectorized. Without FMA in hardware the same
//! bits come out, slowly.
//!
//! Absent on purpose: threads, vector intrinsics, state from token to token, `unsafe`.
//!
//! [`SamplingParams`]: oarlock_types::SamplingParams

mod filter;
pub mod math;
mod philox;
mod rules;
mod sample;
mod score;
mod segment;
#[cfg(test)]
mod statistics;

pub use philox::philox4x32_10;
pub use rules::{History, RulesScratch};
pub use sample::{
    MAX_VOCABULARY, Scratch, WEIGHT_BITS, choose, greedy, random_bits, row_max,
    row_max_after_rules, sample, weights,
};
pub use score::{score, top};
pub use segment::{LANES, SEGMENT, SegmentStats, log_sum_exp, log_sum_exp_of_row, segment_stats};

/// Why no token could be drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// The logits hold a NaN or positive infinity, or every one of them is negative infinity.
    #[error("the logits are not numbers that a token can be drawn from")]
    InvalidLogits,
    /// The logits are fine, but the request's rules exclude every token.
    #[error("the request's rules exclude every token")]
    NothingAllowed,
}
