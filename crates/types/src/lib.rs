//! Words of the system: ids, tokens, sampling parameters, limits, and the values that travel between
//! scheduler, engine and worker (requests, step plans, step results, events). No behaviour beyond
//! constructors and conversions; no I/O; nothing here allocates behind the caller's back.

mod card;
mod ids;
mod plan;
mod request;
mod result;
mod sampling;
mod status;
mod worker;

pub use card::{
    BpeVocabulary, EngineLimits, Fingerprint, LoadProgress, ModelCard, SamplingDefaults,
    SentencePieceVocabulary, Shard, TokenKind, TokenizerSource, WorkerDescription, WorkerLimits,
};
pub use ids::{
    BLOCK_TOKENS, BlockId, CacheSalt, Epoch, GroupId, RequestId, SlotId, StepId, TenantId, Tick,
    TokenId,
};
pub use plan::{Chunk, NewBlocks, SlotStart, StepPlan};
pub use request::{Priority, Rejected, Request, StopCriteria};
pub use result::{
    Event, EventKind, FinishReason, RankedToken, SampledToken, SlotError, SlotResult, StepResult,
    TokenScore, Usage,
};
pub use sampling::{LogitRules, SamplingParams};
pub use status::{
    EngineDescription, EngineState, EngineStats, EngineStatus, HISTOGRAM_BUCKETS, Histogram,
    STEP_TIME_BOUNDS_US, STEP_TOKENS_BOUNDS,
};
pub use worker::{GroupLink, Heartbeat, LoadOptions, WorkerIdentity};
