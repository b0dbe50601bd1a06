//! A warp: its registers, the paths on which its lanes are, and one step after the other.

use std::sync::Mutex;

use super::access::lanes;
use super::cache::Cache;
use super::convert::convert;
use super::copies::Copies;
use super::kernel::{Kernel, Stop};
use super::local::Local;
use super::matrix;
use super::program::{Collective, Compare, Inst, Join, NONE, Op};
use super::random::Random;
use super::registers::Registers;
use super::shared::Shared;
use super::stores::Stores;
use super::tally::Tally;
use crate::fault::FaultKind;

/// What the warps of a block share while they run.
#[derive(Debug)]
pub(crate) struct Env<'a> {
    pub(crate) kernel: &'a Kernel<'a>,
    pub(crate) shared: Shared,
    pub(crate) stores: Stores,
    pub(crate) random: Random,
    pub(crate) tally: Tally,
    pub(crate) cache: &'a Mutex<Cache>,
    /// Instructions of the block so far.
    pub(crate) clock: u64,
}

/// What a path waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Nothing.
    Ready,
    /// Other lanes of the warp, at the same instruction.
    Members,
    /// A barrier of the block.
    Barrier(u32),
}

/// Lanes that are at the same instruction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path {
    pub(crate) pc: u32,
    pub(crate) mask: u32,
    pub(crate) wait: Wait,
}

/// A warp that reached a barrier.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival {
    pub(crate) id: u32,
    /// Threads that the barrier waits for; none for all of the block.
    pub(crate) count: Option<u32>,
    pub(crate) lanes: u32,
    /// Lanes for which the predicate of a reduction holds.
    pub(crate) holds: u32,
    pub(crate) pc: u32,
}

/// Why a warp stopped running for now.
#[derive(Debug)]
pub(crate) enum Event {
    /// Its time is over.
    Paused,
    /// No path can go on.
    Blocked,
    Arrived(Arrival),
    /// `nanosleep`.
    Yielded,
    /// All lanes exited.
    Done,
}

/// What follows an instruction.
pub(super) enum Next {
    Go,
    Stop(Event),
}

/// A warp.
#[derive(Debug, Default)]
pub(crate) struct Warp {
    pub(crate) index: u32,
    pub(crate) registers: Registers,
    pub(crate) paths: Vec<Path>,
    /// Lanes that have a thread.
    pub(crate) valid: u32,
    pub(crate) exited: u32,
    pub(crate) local: Local,
    pub(crate) copies: Copies,
}

impl Warp {
    pub(crate) fn start(&mut self, kernel: &Kernel<'_>, index: u32, ctaid: [u32; 3]) {
        let program = kernel.program;
        self.index = index;
        self.registers.reset(program.num_rows, program.num_preds);
        kernel.constants(&mut self.registers, index, ctaid);
        let num_lanes = (kernel.num_threads() - index * 32).min(32);
        self.valid = u32::MAX >> (32 - num_lanes);
        self.exited = 0;
        self.paths.clear();
        self.paths.push(Path { pc: 0, mask: self.valid, wait: Wait::Ready });
        self.local.reset(program.local_bytes);
        self.copies.reset();
    }

    pub(crate) fn live(&self) -> u32 {
        self.valid & !self.exited
    }

    /// Runs for at most `quantum` instructions.
    pub(crate) fn run(&mut self, env: &mut Env<'_>, quantum: u32) -> Result<Event, (u32, Stop)> {
        let Some((mut index, limit)) = self.choose(env) else {
            return Ok(Event::Blocked);
        };
        index = self.meet_all(index);
        let code = env.kernel.program.code.as_slice();
        for _ in 0..quantum {
            let Path { pc, mask, .. } = self.paths[index];
            let inst = &code[pc as usize];
            let active = match inst.guard {
                NONE => mask,
                guard => mask & (self.registers.preds[guard as usize] ^ inst.flip),
            };
            env.tally.instruction(pc, active);
            env.clock += 1;
            if let Op::Alu(function, slots) = &inst.op {
                if active != 0 {
                    function(&mut self.registers, slots, active);
                }
                self.paths[index].pc = pc + 1;
            } else {
                match self.step(env, index, inst, active).map_err(|stop| (pc, stop))? {
                    Next::Go => {}
                    Next::Stop(event) => return Ok(event),
                }
            }
            if self.paths.len() > 1 {
                let at = self.paths[index].pc;
                index = self.meet_all(index);
                if at > limit {
                    break;
                }
            }
        }
        Ok(Event::Paused)
    }

    /// One instruction that is not a pure operation. `active` are the path's lanes for which the
    /// guard holds.
    fn step(
        &mut self,
        env: &mut Env<'_>,
        index: usize,
        inst: &Inst,
        active: u32,
    ) -> Result<Next, Stop> {
        let Path { pc, mask, .. } = self.paths[index];
        match &inst.op {
            Op::Branch(target) => {
                self.branch(env, index, *target, active);
                return Ok(Next::Go);
            }
            Op::BranchTable(row, targets) => {
                self.branch_table(index, *row, targets, active)?;
                return Ok(Next::Go);
            }
            Op::Exit => return Ok(self.exit(index, active)),
            _ => {}
        }
        if active == 0 {
            self.paths[index].pc = pc + 1;
            return Ok(Next::Go);
        }
        if let Some(members) = self.members(&inst.op, active)? {
            if active != mask {
                // Those that the guard holds back go on alone.
                self.paths[index].mask = active;
                self.paths.push(Path { pc: pc + 1, mask: mask & !active, wait: Wait::Ready });
            }
            let complete = self.complete(&members, active);
            if complete == 0 {
                self.paths[index].wait = Wait::Members;
                return Ok(Next::Stop(Event::Paused));
            }
            if complete != active {
                self.paths[index].mask = complete;
                self.paths.push(Path { pc, mask: active & !complete, wait: Wait::Members });
            }
            if let Op::Barrier(barrier) = &inst.op {
                return Ok(self.arrive(index, barrier, complete));
            }
            // Shuffles, votes and matrix loads wait for each other's lanes and order no memory.
            if matches!(&inst.op, Op::Collective(op) if op.what == Collective::Sync) {
                env.shared_sync(self.index);
            }
            self.operate(env, inst, complete, pc)?;
        } else if let Op::Barrier(barrier) = &inst.op {
            if active != mask {
                self.paths[index].mask = active;
                self.paths.push(Path { pc: pc + 1, mask: mask & !active, wait: Wait::Ready });
            }
            return Ok(self.arrive(index, barrier, active));
        } else {
            self.operate(env, inst, active, pc)?;
        }
        self.paths[index].pc = pc + 1;
        let is_yield = matches!(inst.op, Op::Yield);
        Ok(if is_yield { Next::Stop(Event::Yielded) } else { Next::Go })
    }

    /// What an instruction does that changes no path.
    fn operate(
        &mut self,
        env: &mut Env<'_>,
        inst: &Inst,
        active: u32,
        pc: u32,
    ) -> Result<(), Stop> {
        match &inst.op {
            Op::Compare(compare) => self.compare(compare, active),
            Op::Load(access) => self.load(env, access, active, pc)?,
            Op::Store(access) => self.store(env, access, active, pc)?,
            Op::Mma(mma) => matrix::multiply(&mut self.registers, mma),
            Op::LoadMatrix(matrix) => self.load_matrix(env, matrix, pc)?,
            Op::StoreMatrix(matrix) => self.store_matrix(env, matrix, pc)?,
            Op::TransposeMatrix(to, from) => self.transpose_matrix(*to, *from),
            Op::Convert(op) => convert(&mut self.registers, op, active),
            Op::CopyAsync(copy) => self.copy_async(env, copy, active, pc)?,
            Op::CommitCopies => self.copies.commit(active),
            Op::WaitCopies(pending) => self.wait_copies(env, *pending, active)?,
            Op::Shuffle(shuffle) => self.shuffle(shuffle, active),
            Op::Collective(op) => self.collective(op, active),
            Op::Atomic(atomic) => self.atomic(env, atomic, active, pc)?,
            Op::ActiveMask(d) => self.registers.put(*d, &[active; 32], active),
            Op::Fence => env.publish(),
            Op::Clock(d) => {
                let now = env.clock * 4;
                lanes(active).for_each(|lane| d.set(&mut self.registers, lane, now));
            }
            Op::Trap(reason) => {
                let what = FaultKind::Trap { reason: reason.to_string() };
                return Err(Stop { lane: active.trailing_zeros(), what });
            }
            Op::Alu(..)
            | Op::Branch(_)
            | Op::BranchTable(..)
            | Op::Exit
            | Op::Barrier(_)
            | Op::Yield
            | Op::Nop => {}
        }
        Ok(())
    }

    fn compare(&mut self, op: &Compare, active: u32) {
        let bits = (op.test)(&self.registers, op.a, op.b);
        let flip = if op.is_negated { u32::MAX } else { 0 };
        let c = self.registers.preds[op.c as usize] ^ flip;
        let join = |bits: u32| match op.join {
            Join::None => bits,
            Join::And => bits & c,
            Join::Or => bits | c,
            Join::Xor => bits ^ c,
        };
        self.registers.put_pred(op.p, join(bits), active);
        if op.q != NONE {
            self.registers.put_pred(op.q, join(!bits), active);
        }
    }
}

impl Env<'_> {
    fn shared_sync(&mut self, warp: u32) {
        if self.kernel.options.check_races {
            self.shared.races.sync_warp(warp as usize);
        }
    }
}
