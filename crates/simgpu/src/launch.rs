//! Launching a kernel: options, and blocks over threads.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::counters::Counters;
use crate::exec::block::{Block, BlockFault};
use crate::exec::cache::Cache;
use crate::exec::kernel::Kernel;
use crate::exec::random::Random;
use crate::exec::stores::Stores;
use crate::exec::tally::Tally;
use crate::fault::{Fault, FaultKind};
use crate::memory::Memory;
use crate::module::{Entry, LoadedModule};

/// Most shared memory that a block can be given (as on sm_90).
const MAX_SHARED_BYTES: u32 = 227 << 10;
const MAX_THREADS: u32 = 1024;
/// Instructions that a block runs before another one gets its turn, at least.
const MIN_TURN: u64 = 1 << 15;
/// Blocks that are done, whose stores are held back.
const MAX_LATE: usize = 4;

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
    /// Report reads of global and local bytes that nobody wrote.
    pub check_uninitialized: bool,
    /// Report reads of shared bytes that nobody wrote. Pipelines that load a fragment ahead of its use,
    /// as CUTLASS's do, read past their last stage, and never use what they read.
    pub check_uninitialized_shared: bool,
    /// Count sectors, DRAM bytes, bank conflicts, and everything per PTX line (slower).
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
            check_uninitialized_shared: true,
            count_memory: false,
            l2_bytes: 40 << 20,
            max_block_instructions: 1 << 32,
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
    config: &LaunchConfig<'_>,
    memory: &Memory,
    options: &Options,
) -> Result<Counters, Fault> {
    let found = module.module().entry(entry);
    let found = found.ok_or_else(|| bad_launch(entry, "no such kernel".to_owned()))?;
    check(found, config).map_err(|reason| bad_launch(entry, reason))?;
    let kernel = Kernel {
        program: &found.program,
        memory,
        options,
        params: config.params,
        grid: config.grid,
        block: config.block,
        dynamic_shared_bytes: config.dynamic_shared_bytes,
        variables: &module.addresses,
    };
    let cache = Mutex::new(if options.count_memory {
        Cache::new(options.l2_bytes)
    } else {
        Cache::default()
    });
    let tally = Launch::new(&kernel, &cache).run();
    let source = &module.module().inner.source;
    let tally = tally.map_err(|fault| {
        let inst = &found.program.code[fault.pc as usize];
        Fault {
            kernel: entry.to_owned(),
            block: fault.ctaid,
            thread: kernel.thread(fault.thread),
            line: inst.line,
            instruction: source[inst.start as usize..inst.end as usize].to_owned(),
            what: fault.what,
        }
    })?;
    let mut counters = tally.counters(&kernel, source);
    let mut cache = lock(&cache);
    cache.flush();
    counters.dram_read_bytes = cache.read_sectors * 32;
    counters.dram_write_bytes = cache.written_sectors * 32;
    Ok(counters)
}

fn check(entry: &Entry, config: &LaunchConfig<'_>) -> Result<(), String> {
    let num_threads =
        config.block.iter().try_fold(1_u32, |product, &size| product.checked_mul(size));
    let num_threads = num_threads.unwrap_or(u32::MAX);
    if config.grid.contains(&0) || num_threads == 0 || num_threads > MAX_THREADS {
        return Err(format!("grid {:?} of blocks {:?}", config.grid, config.block));
    }
    if let Some(most) = entry.max_threads
        && num_threads > most.iter().product()
    {
        return Err(format!("{num_threads} threads, compiled for at most {most:?}"));
    }
    if config.params.len() < entry.param_bytes() {
        let (given, needed) = (config.params.len(), entry.param_bytes());
        return Err(format!("{given} bytes of parameters, {needed} needed"));
    }
    let shared = entry.static_shared_bytes.saturating_add(config.dynamic_shared_bytes);
    if shared > MAX_SHARED_BYTES {
        return Err(format!("{shared} bytes of shared memory, at most {MAX_SHARED_BYTES}"));
    }
    Ok(())
}

fn bad_launch(kernel: &str, reason: String) -> Fault {
    Fault {
        kernel: kernel.to_owned(),
        block: [0; 3],
        thread: [0; 3],
        line: 0,
        instruction: String::new(),
        what: FaultKind::BadLaunch { reason },
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Blocks that have to run.
enum Work<'a> {
    Fresh(u64),
    /// It ran for its turn. Every block gets its turn again and again, so one may wait for another.
    Parked(Box<Block<'a>>),
}

/// The blocks of a launch, shared by the threads that run them.
struct Launch<'a> {
    kernel: &'a Kernel<'a>,
    cache: &'a Mutex<Cache>,
    queue: Mutex<VecDeque<Work<'a>>>,
    /// Stores of blocks that are done, which others may still not see.
    late: Mutex<Vec<Stores>>,
    fault: Mutex<Option<BlockFault>>,
    has_fault: AtomicBool,
    tally: Mutex<Tally>,
}

impl<'a> Launch<'a> {
    fn new(kernel: &'a Kernel<'a>, cache: &'a Mutex<Cache>) -> Self {
        let num_blocks: u64 = kernel.grid.iter().map(|&size| u64::from(size)).product();
        let mut order: Vec<u64> = (0..num_blocks).collect();
        if kernel.options.hostile_schedule {
            Random::new(kernel.options.seed, 0).shuffle(&mut order);
        }
        let tally = Tally::new(kernel.program.code.len(), kernel.options.count_memory);
        Self {
            kernel,
            cache,
            queue: Mutex::new(order.into_iter().map(Work::Fresh).collect()),
            late: Mutex::new(vec![]),
            fault: Mutex::new(None),
            has_fault: AtomicBool::new(false),
            tally: Mutex::new(tally),
        }
    }

    fn run(self) -> Result<Tally, BlockFault> {
        let num_blocks = lock(&self.queue).len();
        let num_threads = self.kernel.options.threads.clamp(1, num_blocks.max(1));
        if num_threads == 1 {
            self.work();
        } else {
            std::thread::scope(|scope| {
                for _ in 0..num_threads {
                    scope.spawn(|| self.work());
                }
            });
        }
        let mut random = Random::new(self.kernel.options.seed, u64::MAX);
        self.release_late(&mut random, 0);
        match lock(&self.fault).take() {
            Some(fault) => Err(fault),
            None => Ok(std::mem::take(&mut *lock(&self.tally))),
        }
    }

    /// Runs blocks until none is left.
    fn work(&self) {
        let options = self.kernel.options;
        let mut tally = Tally::new(self.kernel.program.code.len(), options.count_memory);
        let mut spare: Option<Box<Block<'a>>> = None;
        while !self.has_fault.load(Ordering::Relaxed) {
            let Some(work) = lock(&self.queue).pop_front() else { break };
            let mut block = match work {
                Work::Parked(block) => block,
                Work::Fresh(linear) => {
                    let mut block = spare
                        .take()
                        .unwrap_or_else(|| Box::new(Block::new(self.kernel, self.cache)));
                    block.start(linear);
                    block
                }
            };
            std::mem::swap(&mut tally, &mut block.env.tally);
            // A short turn lets another block look in before this one is done.
            let is_short = options.hostile_schedule && block.env.random.one_in(2);
            let least = if is_short { 1 } else { MIN_TURN };
            let turn = least
                + block.env.random.below(if is_short { 512 } else { MIN_TURN as usize }) as u64;
            let result = block.run(turn);
            std::mem::swap(&mut tally, &mut block.env.tally);
            match result {
                Ok(true) => spare = Some(self.retire(block)),
                Ok(false) => self.park(block, is_short),
                Err(fault) => {
                    self.has_fault.store(true, Ordering::Relaxed);
                    lock(&self.fault).get_or_insert(fault);
                }
            }
        }
        lock(&self.tally).add(&tally);
    }

    /// Puts a block back: near the front after a short turn, so that few blocks are begun at a time; at
    /// the end after a long one, so that a block which waits for one that has not begun does not
    /// keep it from its turn.
    fn park(&self, mut block: Box<Block<'a>>, is_short: bool) {
        let mut queue = lock(&self.queue);
        let place = if is_short { block.env.random.below(4).min(queue.len()) } else { queue.len() };
        queue.insert(place, Work::Parked(block));
    }

    /// A block is done; that makes its stores no sooner visible.
    fn retire(&self, mut block: Box<Block<'a>>) -> Box<Block<'a>> {
        let stores = std::mem::take(&mut block.env.stores);
        if !stores.is_empty() {
            lock(&self.late).push(stores);
        }
        self.release_late(&mut block.env.random, MAX_LATE);
        block
    }

    /// Writes all but so many of the late stores through.
    fn release_late(&self, random: &mut Random, keep: usize) {
        let mut late = lock(&self.late);
        while late.len() > keep {
            let index = random.below(late.len());
            late.swap_remove(index).release_all(self.kernel.memory, random);
        }
    }
}
