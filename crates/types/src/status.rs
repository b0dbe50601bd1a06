//! How an engine is doing: its health and its counters, as one snapshot (latest wins).

use crate::{EngineLimits, Fingerprint, LoadProgress, ModelCard};

/// What an engine serves; known once its workers have loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineDescription {
    /// The name that clients put into `model`.
    pub served_name: String,
    /// The model.
    pub card: ModelCard,
    /// What decides the bits of an answer.
    pub fingerprint: Fingerprint,
    /// Limits on requests.
    pub limits: EngineLimits,
}

/// Whether an engine takes and computes requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum EngineState {
    /// The first group of workers is loading weights.
    #[default]
    Starting,
    /// Requests are computed.
    Ready,
    /// A worker was lost; a new group is loading. Requests are taken and wait.
    Restarting {
        /// What happened.
        reason: String,
    },
    /// No new requests; running ones finish.
    Draining,
    /// The workers cannot be started; the engine gave up.
    Failed {
        /// The workers' error.
        reason: String,
    },
}

/// One snapshot of an engine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineStatus {
    /// Health.
    pub state: EngineState,
    /// How far loading has come, while it loads.
    pub loading: LoadProgress,
    /// Process ids of the workers, by rank.
    pub worker_pids: Vec<u32>,
    /// Load and counters.
    pub stats: EngineStats,
    /// Time of steps on the workers; bounds are [`STEP_TIME_BOUNDS_US`].
    pub step_time_us: Histogram,
    /// Tokens computed in a step; bounds are [`STEP_TOKENS_BOUNDS`].
    pub step_tokens: Histogram,
}

/// Buckets of a [`Histogram`]; the last one has no upper bound.
pub const HISTOGRAM_BUCKETS: usize = 16;
/// Upper bounds of all but the last bucket of step times, in microseconds.
pub const STEP_TIME_BOUNDS_US: [u64; HISTOGRAM_BUCKETS - 1] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];
/// Upper bounds of all but the last bucket of tokens in a step.
pub const STEP_TOKENS_BOUNDS: [u64; HISTOGRAM_BUCKETS - 1] =
    [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192, 16_384];

/// How often a value fell into each of some ranges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Values by bucket, not summed up.
    pub counts: [u64; HISTOGRAM_BUCKETS],
    /// Sum of all values.
    pub sum: u64,
}

impl Histogram {
    /// Counts a value. `bounds` are the upper bounds of all but the last bucket, ascending.
    pub fn observe(&mut self, bounds: &[u64; HISTOGRAM_BUCKETS - 1], value: u64) {
        self.counts[bounds.partition_point(|bound| *bound < value)] += 1;
        self.sum = self.sum.saturating_add(value);
    }
}

/// Load now, and counters since the engine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Sequences that run.
    pub num_running: u32,
    /// Sequences that wait.
    pub num_waiting: u32,
    /// Tokens that waiting sequences have to compute before their first new token.
    pub waiting_tokens: u64,
    /// Blocks of the KV cache.
    pub blocks_total: u32,
    /// Blocks that block tables of running sequences hold.
    pub blocks_in_use: u32,
    /// Blocks that hold cached prefixes and that no table holds.
    pub blocks_cached: u32,
    /// Steps committed.
    pub steps: u64,
    /// Prompt tokens computed or taken from the cache.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generation_tokens: u64,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_cache_queries: u64,
    /// Prompt tokens found there.
    pub prefix_cache_hits: u64,
    /// Sequences that lost their blocks to others and were computed again.
    pub preemptions: u64,
    /// Times that the group of workers was started again.
    pub worker_restarts: u64,
    /// Requests finished by a stop token.
    pub finished_stop: u64,
    /// Requests finished at their length.
    pub finished_length: u64,
    /// Requests cancelled by their owner.
    pub finished_cancelled: u64,
    /// Requests that failed.
    pub finished_failed: u64,
    /// Requests refused.
    pub rejected: u64,
    /// Of these, requests refused since the queue was full.
    pub rejected_queue_full: u64,
}
