//! What a client asks for, as the engine sees it: token ids only, everything already validated.

use crate::{CacheSalt, GroupId, RequestId, SamplingParams, TenantId, Tick, TokenId};

/// When a request is finished.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopCriteria {
    /// Generated tokens at most, counted from `num_prompt` on. 0 generates nothing: the request
    /// finishes when its prompt is computed (prompt logprobs).
    pub max_tokens: u32,
    /// Token ids that end the request, sorted ascending: the model's end-of-sequence ids unless the
    /// client said `ignore_eos`. The stopping token is reported and counted.
    pub stop_token_ids: Vec<TokenId>,
}

/// Strict scheduling class: a lower number goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(pub u8);

impl Default for Priority {
    fn default() -> Self {
        Self(100)
    }
}

/// One sequence to compute.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Unique among the requests that the engine currently knows.
    pub id: RequestId,
    /// The prompt, then tokens already generated elsewhere (a request that moved here).
    pub tokens: Vec<TokenId>,
    /// How many of `tokens` are prompt.
    pub num_prompt: u32,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// When it ends.
    pub stop: StopCriteria,
    /// `Some(n)`: report, for each prompt token but the first, its logprob and the `n` most likely
    /// tokens at its place. Such a request does not read the prefix cache.
    pub prompt_logprobs: Option<u8>,
    /// Scheduling class.
    pub priority: Priority,
    /// Whose request it is.
    pub tenant: TenantId,
    /// Namespace of the prefix cache.
    pub salt: CacheSalt,
    /// When the client no longer wants the answer.
    pub deadline: Option<Tick>,
    /// Requests with the same prompt that came together (`n`, `best_of`): all but the first wait until
    /// its prompt is in the prefix cache, and compute only the tail of it themselves.
    pub group: Option<GroupId>,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// The waiting queue is full: try again later.
    QueueFull {
        /// Requests that the queue holds at most.
        limit: u32,
        /// When there should be room, by the rate at which the queue drains, in milliseconds.
        retry_after_ms: u32,
    },
    /// The waiting requests have too many tokens already: try again later.
    QueueTokensFull {
        /// Tokens that the queue holds at most.
        limit: u64,
        /// When there should be room, by the rate at which the queue drains, in milliseconds.
        retry_after_ms: u32,
    },
    /// Prompt and generated tokens together can never fit.
    TooLong {
        /// Tokens that the request would need.
        tokens: u32,
        /// Tokens that one sequence may have.
        limit: u32,
    },
    /// A request without a single token.
    EmptyPrompt,
    /// A request with this id is already known.
    DuplicateId,
    /// A token id that the model does not have.
    UnknownToken {
        /// The offending id.
        token: TokenId,
    },
    /// The engine is shutting down.
    Draining,
}
