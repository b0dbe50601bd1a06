//! A block: its warps, taken in turn, and its barriers.

use std::sync::Mutex;

use super::cache::Cache;
use super::kernel::{Kernel, Stop};
use super::program::ReduceOp;
use super::races::Clocks;
use super::random::Random;
use super::shared::Shared;
use super::stores::Stores;
use super::tally::Tally;
use super::warp::{Arrival, Env, Event, Wait, Warp};
use crate::fault::FaultKind;

const NUM_BARRIERS: usize = 16;
/// `nanosleep`s after which another block gets its turn.
const MAX_YIELDS: u32 = 8;

/// One of a block's barriers.
#[derive(Debug, Clone, Copy, Default)]
struct Barrier {
    arrived: u32,
    count: Option<u32>,
    /// Threads of the arrivals, and those among them for which a reduction's predicate holds.
    num_lanes: u32,
    num_holding: u32,
    passed: Clocks,
}

/// A thread's fault, before names are put to it.
#[derive(Debug)]
pub(crate) struct BlockFault {
    pub(crate) ctaid: [u32; 3],
    /// Thread, counted through the block.
    pub(crate) thread: u32,
    pub(crate) pc: u32,
    pub(crate) what: FaultKind,
}

/// What a block needs while it runs, kept for the next one.
#[derive(Debug)]
pub(crate) struct Block<'a> {
    ctaid: [u32; 3],
    warps: Vec<Warp>,
    /// Warps that can run.
    ready: Vec<usize>,
    num_done: usize,
    barriers: [Barrier; NUM_BARRIERS],
    pub(crate) env: Env<'a>,
}

impl<'a> Block<'a> {
    pub(crate) fn new(kernel: &'a Kernel<'a>, cache: &'a Mutex<Cache>) -> Self {
        let env = Env {
            kernel,
            shared: Shared::default(),
            stores: Stores::default(),
            random: Random::new(0, 0),
            tally: Tally::default(),
            cache,
            clock: 0,
        };
        let num_warps = kernel.num_threads().div_ceil(32) as usize;
        let warps = std::iter::repeat_with(Warp::default).take(num_warps).collect();
        let barriers = [Barrier::default(); NUM_BARRIERS];
        Self { ctaid: [0; 3], warps, ready: vec![], num_done: 0, barriers, env }
    }

    /// Starts the block of that number.
    pub(crate) fn start(&mut self, linear: u64) {
        let kernel = self.env.kernel;
        let [x, y, _] = kernel.grid.map(u64::from);
        self.ctaid = [linear % x, linear / x % y, linear / x / y].map(|index| index as u32);
        let options = kernel.options;
        self.env.random = Random::new(options.seed, linear + 1);
        self.env.clock = 0;
        let num_warps = self.warps.len();
        let (races, uninitialized) = (options.check_races, options.check_uninitialized_shared);
        self.env.shared.reset(kernel.shared_bytes(), num_warps, races, uninitialized);
        for (index, warp) in self.warps.iter_mut().enumerate() {
            warp.start(kernel, index as u32, self.ctaid);
        }
        self.ready.clear();
        self.ready.extend(0..num_warps);
        self.num_done = 0;
        self.barriers = [Barrier::default(); NUM_BARRIERS];
    }

    /// Runs for about `budget` instructions; whether the block is done.
    pub(crate) fn run(&mut self, budget: u64) -> Result<bool, BlockFault> {
        let limit = self.env.clock + budget;
        let is_hostile = self.env.kernel.options.hostile_schedule;
        let mut num_yields = 0;
        while self.env.clock < limit && num_yields < MAX_YIELDS {
            if self.ready.is_empty() {
                return Err(self.stuck());
            }
            let turn = if is_hostile { self.env.random.below(self.ready.len()) } else { 0 };
            let index = self.ready[turn];
            let quantum = self.quantum();
            let event = self.warps[index]
                .run(&mut self.env, quantum)
                .map_err(|(pc, stop)| self.fault(index, pc, stop))?;
            match event {
                Event::Paused => {}
                Event::Blocked => {
                    self.ready.swap_remove(turn);
                }
                Event::Yielded => {
                    num_yields += 1;
                    // Others first, also where the schedule is friendly.
                    self.ready.rotate_left(1);
                }
                Event::Arrived(arrival) => self.arrive(index, arrival)?,
                Event::Done => {
                    self.ready.swap_remove(turn);
                    self.num_done += 1;
                }
            }
            if self.num_done == self.warps.len() {
                return Ok(true);
            }
        }
        if self.env.clock > self.env.kernel.options.max_block_instructions {
            let what = FaultKind::TooLong { instructions: self.env.clock };
            let index = self.ready.first().copied().unwrap_or(0);
            let pc = self.warps[index].paths.first().map_or(0, |path| path.pc);
            return Err(self.fault(index, pc, Stop { lane: 0, what }));
        }
        if self.env.random.one_in(2) {
            self.env.stores.release_some(self.env.kernel.memory, &mut self.env.random);
        }
        // A friendly schedule may hold a warp that waits for another one at the front.
        if !self.ready.is_empty() {
            self.ready.rotate_left(1);
        }
        Ok(false)
    }

    /// For how many instructions a warp runs on.
    fn quantum(&mut self) -> u32 {
        if !self.env.kernel.options.hostile_schedule {
            return 1 << 16;
        }
        let random = &mut self.env.random;
        (if random.one_in(4) { 1 + random.below(16) } else { 64 + random.below(512) }) as u32
    }

    fn fault(&self, warp: usize, pc: u32, stop: Stop) -> BlockFault {
        BlockFault { ctaid: self.ctaid, thread: warp as u32 * 32 + stop.lane, pc, what: stop.what }
    }

    fn arrive(&mut self, index: usize, arrival: Arrival) -> Result<(), BlockFault> {
        let undefined = |block: &Self, reason: String| {
            let stop = Stop {
                lane: arrival.lanes.trailing_zeros(),
                what: FaultKind::Undefined { reason },
            };
            Err(block.fault(index, arrival.pc, stop))
        };
        if arrival.id as usize >= NUM_BARRIERS {
            return undefined(self, format!("there is no barrier {}", arrival.id));
        }
        if arrival.count.is_some_and(|count| !count.is_multiple_of(32) || count == 0) {
            return undefined(self, "a barrier's thread count must be a multiple of 32".to_owned());
        }
        let is_all = self.warps[index].live() == arrival.lanes;
        let barrier = &mut self.barriers[arrival.id as usize];
        if barrier.arrived > 0 && barrier.count != arrival.count {
            return undefined(self, "threads disagree about the barrier's thread count".to_owned());
        }
        barrier.count = arrival.count;
        let num_lanes = arrival.lanes.count_ones();
        // Counted by warps where a count is given.
        barrier.arrived += if arrival.count.is_some() && is_all { 32 } else { num_lanes };
        barrier.num_lanes += num_lanes;
        barrier.num_holding += arrival.holds.count_ones();
        if self.env.kernel.options.check_races {
            self.env.shared.races.arrive(index, &mut barrier.passed);
        }
        let expected = arrival.count.unwrap_or(self.env.kernel.num_threads());
        if barrier.arrived < expected {
            return Ok(());
        }
        if barrier.arrived > expected {
            return undefined(
                self,
                "more threads arrive at a barrier than it waits for".to_owned(),
            );
        }
        let complete = std::mem::take(barrier);
        self.pass(arrival.id, &complete);
        Ok(())
    }

    fn pass(&mut self, id: u32, barrier: &Barrier) {
        let kernel = self.env.kernel;
        for (index, warp) in self.warps.iter_mut().enumerate() {
            let has_passed = warp.pass(kernel, id, |reduce| match reduce.what {
                ReduceOp::Popc => barrier.num_holding,
                ReduceOp::And if barrier.num_holding == barrier.num_lanes => u32::MAX,
                ReduceOp::Or if barrier.num_holding > 0 => u32::MAX,
                _ => 0,
            });
            if !has_passed {
                continue;
            }
            if kernel.options.check_races {
                self.env.shared.races.leave(index, &barrier.passed);
            }
            if !self.ready.contains(&index) {
                self.ready.push(index);
            }
        }
    }

    /// Nobody can go on: names a thread that waits, and what it waits for.
    fn stuck(&self) -> BlockFault {
        let waiting = self
            .warps
            .iter()
            .enumerate()
            .flat_map(|(index, warp)| warp.paths.iter().map(move |path| (index, *path)));
        let all: Vec<_> = waiting.collect();
        // A thread that waits for its own warp explains more than those that wait at a barrier.
        let chosen = all.iter().find(|(_, path)| path.wait == Wait::Members).or(all.first());
        let Some(&(index, path)) = chosen else {
            let what = FaultKind::DivergentBarrier { reason: "nothing can run".to_owned() };
            return BlockFault { ctaid: self.ctaid, thread: 0, pc: 0, what };
        };
        let num_exited: u32 = self.warps.iter().map(|warp| warp.exited.count_ones()).sum();
        let others = all.iter().filter(|(_, other)| other.pc != path.pc).count();
        let state =
            format!("{num_exited} threads of the block exited, {others} groups wait elsewhere");
        let reason = match path.wait {
            Wait::Barrier(id) => {
                let barrier = &self.barriers[id as usize % NUM_BARRIERS];
                let expected = barrier.count.unwrap_or(self.env.kernel.num_threads());
                format!(
                    "{} of {expected} threads arrived at barrier {id}; {state}",
                    barrier.arrived
                )
            }
            _ => format!(
                "lanes {:#x} of a warp wait for lanes {:#x}; {state}",
                path.mask,
                self.warps[index].live() & !path.mask
            ),
        };
        let what = FaultKind::DivergentBarrier { reason };
        self.fault(index, path.pc, Stop { lane: path.mask.trailing_zeros(), what })
    }
}
