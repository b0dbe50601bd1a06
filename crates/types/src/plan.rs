//! The step plan: what a worker must do next, as changes against what it already knows.

use crate::{BlockId, Epoch, SamplingParams, SlotId, StepId, TokenId};

/// One step of the group. Applied in field order: release, start, blocks, chunks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepPlan {
    /// Which life of the group this plan is for.
    pub epoch: Epoch,
    /// Plans come in order without gaps.
    pub step: StepId,
    /// Slots whose sequences are gone; a released slot can be started again in the same plan.
    pub release: Vec<SlotId>,
    /// Sequences that begin (or begin again after preemption) in this step.
    pub start: Vec<SlotStart>,
    /// Blocks appended to the block tables of slots.
    pub blocks: Vec<NewBlocks>,
    /// The tokens to compute, at most one chunk per slot.
    pub chunks: Vec<Chunk>,
}

/// A sequence enters a slot.
#[derive(Clone, Debug, PartialEq)]
pub struct SlotStart {
    /// The slot, free until now.
    pub slot: SlotId,
    /// All tokens known so far: prompt and, after preemption or failover, generated ones.
    pub tokens: Vec<TokenId>,
    /// How many of `tokens` are prompt.
    pub num_prompt: u32,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// `Some(n)`: chunks with a score range report logprobs and the `n` most likely tokens.
    pub prompt_logprobs: Option<u8>,
}

/// Blocks appended to one slot's block table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewBlocks {
    /// Whose table.
    pub slot: SlotId,
    /// In order of position. The first ones of a new slot may already hold cached tokens.
    pub blocks: Vec<BlockId>,
}

/// Consecutive tokens of one sequence to compute in this step.
///
/// A token that a step samples is appended to the slot's tokens by the worker itself, so that the
/// next plan can compute it without having seen it: a chunk only names positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Which sequence.
    pub slot: SlotId,
    /// Absolute position of the first token; everything before it is in the KV cache.
    pub start: u32,
    /// Number of tokens, at least 1. `start + len` tokens are in the cache after the step.
    pub len: u32,
    /// Sample a token from the logits of the last position and append it to the slot's tokens.
    pub sample: bool,
    /// Positions `score_start..score_end` inside the chunk: report the logprob of the prompt token
    /// that follows each of them. Empty when equal.
    pub score_start: u32,
    /// End of the scored positions.
    pub score_end: u32,
}

impl StepPlan {
    /// Empties the plan and keeps its memory.
    pub fn clear(&mut self) {
        self.release.clear();
        self.start.clear();
        self.blocks.clear();
        self.chunks.clear();
    }

    /// Tokens computed in this step.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.len as usize).sum()
    }

    /// Whether a worker would have nothing at all to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.release.is_empty()
            && self.start.is_empty()
            && self.blocks.is_empty()
            && self.chunks.is_empty()
    }
}
