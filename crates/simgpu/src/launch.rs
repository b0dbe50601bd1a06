//! Launching a kernel: options, and blocks over threads.

use crate::counters::Counters;
use crate::fault::{Fault, FaultKind};
use crate::memory::Memory;
use crate::module::LoadedModule;

/// How to run kernels. The default has every check on, and one thread per core.
#[derive(Debug, Clone)]
pub struct Options {
    /// Seed of the schedule. With one thread, the same seed gives the same run.
    pub seed: u64,
    /// Threads of the host that run blocks.
    pub threads: usize,
    /// Switch between warps and divergent paths at random places; otherwise as late as possible.
    pub hostile_schedule: bool,
    /// Plain global stores reach other blocks late.
    pub late_stores: bool,
    /// Report races on shared memory.
    pub check_races: bool,
    /// Report reads of bytes that nobody wrote.
    pub check_uninitialized: bool,
    /// Count sectors, DRAM bytes and bank conflicts (slower).
    pub count_memory: bool,
    /// Size of the L2 model.
    pub l2_bytes: u64,
    /// Warp instructions after which a block is taken to hang.
    pub max_block_instructions: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 0,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            hostile_schedule: true,
            late_stores: true,
            check_races: true,
            check_uninitialized: true,
            count_memory: false,
            l2_bytes: 40 << 20,
            max_block_instructions: 1 << 36,
        }
    }
}

/// A launch's shape and parameters.
#[derive(Debug, Clone, Copy)]
pub struct LaunchConfig<'a> {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Shared memory on top of what the kernel declares.
    pub dynamic_shared_bytes: u32,
    /// Parameters, packed by the entry's offsets.
    pub params: &'a [u8],
}

/// Runs a kernel to its end.
pub fn launch(
    module: &LoadedModule,
    entry: &str,
    _config: &LaunchConfig<'_>,
    _memory: &Memory,
    _options: &Options,
) -> Result<Counters, Fault> {
    let found = module.module().entry(entry);
    Err(bad_launch(entry, if found.is_some() { "not yet" } else { "no such kernel" }))
}

fn bad_launch(kernel: &str, reason: &str) -> Fault {
    Fault {
        kernel: kernel.to_owned(),
        block: [0; 3],
        thread: [0; 3],
        line: 0,
        instruction: String::new(),
        what: FaultKind::BadLaunch { reason: reason.to_owned() },
    }
}
