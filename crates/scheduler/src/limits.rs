//! What a scheduler may use.

use oarlock_types::BLOCK_TOKENS;

/// The resources of a group of workers, and the bounds of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Blocks of the KV cache.
    pub num_blocks: u32,
    /// Sequences that run at the same time at most: the workers' slots.
    pub max_seqs: u32,
    /// Requests that wait at most in a class and those above it together, beyond those for which a
    /// slot is free. Lower classes do not count, so that they keep nobody above out: what waits in all
    /// is bounded for each class. Preempted requests do not count. A tenant of which nothing waits in
    /// the class may come while no more than an eighth (and at least one) beyond this wait.
    pub max_queued: u32,
    /// Tokens of these requests at most, of siblings only what they do not share with the first of
    /// them. A request beyond is still taken if none waits, so that every request that fits the
    /// cache can be served, and so is one of a tenant of which nothing waits, as above.
    pub max_queued_tokens: u64,
    /// Tokens computed in one step at most. Below `max_seqs`, sequences late in the order can get no
    /// token in a step.
    pub step_tokens: u32,
    /// Tokens of one sequence in one step at most; 0 leaves it to `step_tokens`.
    pub max_chunk_tokens: u32,
    /// Tokens of one sequence at most, prompt and generated; 0 leaves it to the KV cache.
    pub max_sequence_tokens: u32,
    /// Tokens of the vocabulary.
    pub vocab_size: u32,
    /// Plans whose results are not committed yet, at most. With 2, a plan continues from a token
    /// that the plan before it samples.
    pub max_plans_in_flight: u32,
}

impl Default for Limits {
    /// One plan in flight, no limit on the tokens that wait; all resources are 0 and have to be set.
    fn default() -> Self {
        Self {
            num_blocks: 0,
            max_seqs: 0,
            max_queued: 0,
            max_queued_tokens: u64::MAX,
            step_tokens: 0,
            max_chunk_tokens: 0,
            max_sequence_tokens: 0,
            vocab_size: 0,
            max_plans_in_flight: 1,
        }
    }
}

impl Limits {
    /// Tokens of one sequence at most, also by what the KV cache can hold.
    pub(crate) fn sequence_tokens(&self) -> u32 {
        let cache = self.num_blocks.saturating_mul(BLOCK_TOKENS as u32);
        if self.max_sequence_tokens == 0 { cache } else { cache.min(self.max_sequence_tokens) }
    }

    /// Tokens of one chunk at most.
    pub(crate) fn chunk_tokens(&self) -> u32 {
        if self.max_chunk_tokens == 0 { self.step_tokens } else { self.max_chunk_tokens }
    }

    /// # Panics
    /// If nothing could ever run.
    pub(crate) fn validate(&self) {
        assert!(self.num_blocks > 0, "a scheduler needs blocks");
        assert!(self.max_seqs > 0, "a scheduler needs slots");
        assert!(self.step_tokens > 0, "a step needs a budget");
        assert!(self.max_plans_in_flight > 0, "a scheduler needs a plan in flight");
    }
}
