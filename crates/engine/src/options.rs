//! What an engine is told when it starts.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use oarlock_types::{BLOCK_TOKENS, Epoch, WorkerLimits};

/// Options of one engine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The name that clients put into `model`.
    pub served_name: String,
    /// The weight file, or the model's folder.
    pub model: PathBuf,
    /// How to start a worker.
    pub worker: WorkerCommand,
    /// Sequences that run at the same time at most.
    pub max_seqs: u32,
    /// Sequences that wait at most in a priority class and above, beyond those that a free slot waits
    /// for (`oarlock_scheduler::Limits::max_queued`).
    pub max_queued: u32,
    /// Tokens of these at most; one that finds none of them may have more.
    pub max_queued_tokens: u64,
    /// Tokens of KV cache.
    pub kv_cache_tokens: u32,
    /// Tokens computed in one step at most.
    pub step_tokens: u32,
    /// Tokens of one prompt computed in one step at most; 0: as many as the step has.
    pub chunk_tokens: u32,
    /// Tokens of one sequence at most; 0: as many as the model was made for.
    pub max_sequence_tokens: u32,
    /// Ranks of the group: 1, 2, 4 or 8.
    pub tensor_parallel: u32,
    /// How they reach each other.
    pub collective: Collective,
    /// How long a rank may be silent, or stand still, before its group is replaced.
    pub stall: Duration,
    /// Plans that may be on their way at the same time: 1 or 2.
    pub max_plans_in_flight: u32,
    /// Where each rank writes checksums of what it computes; for finding a difference.
    pub trace: Option<PathBuf>,
}

/// How the ranks of a group reach each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Collective {
    /// Shared memory where all are on one host, otherwise TCP.
    #[default]
    Auto,
    /// Shared memory; an error where ranks are on several hosts.
    SharedMemory,
    /// TCP, also on one host.
    Tcp,
}

/// The program that is a worker, to which the engine adds `--socket PATH --engine-pid N`.
#[derive(Clone, Debug)]
pub struct WorkerCommand {
    /// The program.
    pub program: PathBuf,
    /// Arguments before those that the engine adds.
    pub arguments: Vec<OsString>,
    /// Words before the program, in which `{rank}` becomes the rank: another program that becomes the
    /// worker in the end.
    pub launcher: Vec<String>,
}

impl EngineOptions {
    pub(crate) fn worker_limits(&self, epoch: Epoch) -> WorkerLimits {
        WorkerLimits {
            epoch,
            num_slots: self.max_seqs,
            num_blocks: self.kv_cache_tokens.div_ceil(BLOCK_TOKENS as u32),
            max_step_tokens: self.step_tokens,
            max_sequence_tokens: self.max_sequence_tokens,
        }
    }
}
