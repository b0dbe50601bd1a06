//! What a worker needs of a kind of backend, so that the binary chooses it and nothing else knows.

use oarlock_backend::{Backend, BackendLimits, Progress, WeightKind};
use oarlock_backend_cpu::{CpuBackend, CpuConfig, Dtype, InstructionSet};
use oarlock_collective::{Collective, HostCollective, Transport};
use oarlock_types::Shard;

/// Makes the backend of one rank.
pub trait BackendKind: Send + Sync + 'static {
    /// The backend.
    type Backend: Backend;

    /// A backend for these limits.
    fn make(&self, shard: Shard, limits: BackendLimits) -> anyhow::Result<Self::Backend>;

    /// Has the backend tell of its work.
    fn follow(backend: &mut Self::Backend, progress: Progress);

    /// What ranks exchange, over a transport that is connected.
    fn collective(
        transport: Box<dyn Transport>,
    ) -> anyhow::Result<Box<dyn Collective<Self::Backend>>>;

    /// What a model takes, and how much there is.
    fn memory(&self, shard: Shard) -> anyhow::Result<Memory>;
}

/// Memory of a rank, and what things take of it.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Bytes that are free now; `None` where nobody knows.
    pub available_bytes: Option<u64>,
    /// Whether it is what the host's ranks share, or one rank's own.
    pub is_shared: bool,
    /// Bytes of one key or value element.
    pub kv_element_bytes: u64,
    /// What a linear layer that is stored as this takes the memory of once it is packed.
    pub packed_kind: fn(WeightKind) -> WeightKind,
    /// What it is called in a message.
    pub name: &'static str,
}

/// The CPU backend, and how it computes.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// Threads; 0 takes as many as there are cores.
    pub threads: usize,
    /// The instruction set; `None` takes the best that the machine has.
    pub instruction_set: Option<InstructionSet>,
    /// What it computes with.
    pub dtype: Dtype,
}

impl BackendKind for CpuOptions {
    type Backend = CpuBackend;

    fn make(&self, _: Shard, limits: BackendLimits) -> anyhow::Result<CpuBackend> {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = if self.threads == 0 { cores() } else { self.threads };
        let config =
            CpuConfig { threads, instruction_set: self.instruction_set, dtype: self.dtype };
        Ok(CpuBackend::new(config, limits)?)
    }

    fn follow(backend: &mut CpuBackend, progress: Progress) {
        backend.set_progress(progress);
    }

    fn collective(
        transport: Box<dyn Transport>,
    ) -> anyhow::Result<Box<dyn Collective<CpuBackend>>> {
        Ok(Box::new(HostCollective::new(transport)))
    }

    fn memory(&self, _: Shard) -> anyhow::Result<Memory> {
        Ok(Memory {
            available_bytes: available_memory(),
            is_shared: true,
            kv_element_bytes: self.dtype.kv_element_bytes() as u64,
            packed_kind: match self.dtype {
                Dtype::Auto => |kind| Dtype::Auto.packed_kind(kind),
                Dtype::Bfloat16 => |kind| Dtype::Bfloat16.packed_kind(kind),
                Dtype::Float32 => |kind| Dtype::Float32.packed_kind(kind),
            },
            name: "this machine",
        })
    }
}

/// Bytes that Linux could give to a process now; `None` elsewhere.
fn available_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}
