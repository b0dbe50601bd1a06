//! What an engine and the ranks of its group tell each other besides plans and results.

use crate::{Shard, StepId, WorkerLimits};

/// Who a worker is, before it holds anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerIdentity {
    /// The host, as far as memory can be shared: workers with the same one may.
    pub host: String,
    /// Its process id.
    pub pid: u32,
}

/// How the ranks of a group reach each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum GroupLink {
    /// There is one rank only.
    #[default]
    Alone,
    /// Memory that they share: the path of its segment.
    SharedMemory(String),
    /// Connections between hosts.
    Tcp {
        /// Where each rank listens, by rank, to be tried in order.
        addresses: Vec<Vec<String>>,
        /// Known to the ranks of this epoch only.
        secret: [u8; 16],
    },
}

/// What a worker is asked to load.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// A weight file, or a model's folder.
    pub model: String,
    /// What it must have room for.
    pub limits: WorkerLimits,
    /// Which part of the model.
    pub shard: Shard,
    /// The way to the other ranks.
    pub link: GroupLink,
    /// Milliseconds without progress after which a peer counts as stuck.
    pub stall_ms: u32,
    /// Workers of this group on the same host, this one included: they share its memory.
    pub ranks_on_host: u32,
    /// Whether to hash the weights; otherwise the fingerprint names none.
    pub hash_weights: bool,
}

/// A sign of life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// Grows while the worker works, also inside of a step.
    pub progress: u64,
    /// The rank that it waits for.
    pub waiting_for: Option<u32>,
    /// The last step that it began.
    pub step: StepId,
}
