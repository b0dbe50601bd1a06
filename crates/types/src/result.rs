//! What a step gave, and what a request's owner is told of it.

use crate::{RequestId, SlotId, StepId, TokenId};

/// The result of one [`crate::StepPlan`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepResult {
    /// The plan that this answers.
    pub step: StepId,
    /// One entry per chunk, in the plan's order.
    pub slots: Vec<SlotResult>,
    /// Time the worker spent in the step, in microseconds.
    pub elapsed_us: u64,
}

/// The result of one chunk.
#[derive(Clone, Debug, PartialEq)]
pub struct SlotResult {
    /// Which slot.
    pub slot: SlotId,
    /// The token, where the chunk asked for one; or why this slot alone failed.
    pub outcome: Result<Option<SampledToken>, SlotError>,
    /// One entry per scored position of the chunk, in order.
    pub prompt_scores: Vec<TokenScore>,
}

/// One sampled token.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// The token.
    pub token: TokenId,
    /// Its score; present where the request wants logprobs.
    pub score: Option<TokenScore>,
}

/// Logprobs at one position, of the raw logits (before temperature and filters), natural logarithm.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenScore {
    /// Logprob of the token that stands (or was sampled) there.
    pub logprob: f32,
    /// Its rank by logprob, 1 is the most likely.
    pub rank: u32,
    /// The most likely tokens, best first (logprob descending, id ascending).
    pub top: Vec<RankedToken>,
}

/// A token and its logprob.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankedToken {
    /// The token.
    pub token: TokenId,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// Why one slot of a step failed while the others went on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotError {
    /// The logits held a NaN, or no token could be chosen.
    InvalidLogits,
    /// The request's own rules (allowed tokens, biases, minimum length) exclude every token.
    NothingAllowed,
    /// Handling this slot panicked.
    Panicked(String),
    /// The workers died each time that they computed it, at last while they computed nothing else.
    KillsWorkers,
}

/// Something that happened to a request, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Whose event it is.
    pub request: RequestId,
    /// What happened.
    pub kind: EventKind,
}

/// What happened to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum EventKind {
    /// It left the waiting queue for the first time.
    Started {
        /// Prompt tokens that came from the prefix cache.
        cached_tokens: u32,
    },
    /// Logprobs of prompt tokens `first..first + scores.len()` (indices into the prompt; the first
    /// prompt token has none).
    PromptScores {
        /// Index in the prompt of the first scored token.
        first: u32,
        /// One entry per prompt token.
        scores: Vec<TokenScore>,
    },
    /// A token was generated.
    Token(SampledToken),
    /// It is over; no event follows.
    Finished {
        /// Why.
        reason: FinishReason,
        /// What it used.
        usage: Usage,
    },
}

/// Why a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token was sampled.
    Stop,
    /// `max_tokens` were generated, or the model's context is full.
    Length,
    /// The owner cancelled it.
    Cancelled,
    /// Its deadline passed.
    Deadline,
    /// It failed, alone.
    Failed(SlotError),
    /// The engine lost its workers and gave up on getting them back.
    EngineLost,
}

/// Token counts of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of these, tokens that came from the prefix cache when the request first started.
    pub cached_tokens: u32,
    /// Tokens generated.
    pub completion_tokens: u32,
    /// How often it lost its blocks to others and was computed again.
    pub preemptions: u32,
}
