//! A warp: its registers, the paths on which its lanes are, and one step after the other.

use std::sync::Mutex;

use super::access::lanes;
use super::cache::Cache;
use super::convert::convert;
use super::copies::Copies;
use super::kernel::{Kernel, Stop};
use super::local::Local;
use super::matrix;
use super::program::{Barrier, Compare, Inst, Join, NONE, Op, Reduce};
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
enum Next {
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

    /// Which path runs next, and past which instruction it must not run on alone.
    fn choose(&self, env: &mut Env<'_>) -> Option<(usize, u32)> {
        if let [path] = self.paths[..] {
            return (path.wait == Wait::Ready).then_some((0, u32::MAX));
        }
        let is_ready = |index: &usize| self.paths[*index].wait == Wait::Ready;
        let ready = (0..self.paths.len()).filter(is_ready);
        if env.kernel.options.hostile_schedule && env.random.one_in(2) {
            let ready: Vec<usize> = ready.collect();
            return (!ready.is_empty()).then(|| (ready[env.random.below(ready.len())], u32::MAX));
        }
        // The one that is furthest back, up to where it can meet the next one.
        let first = ready.min_by_key(|&index| self.paths[index].pc)?;
        let others = (0..self.paths.len()).filter(|&index| index != first && is_ready(&index));
        let limit = others.map(|index| self.paths[index].pc).min().unwrap_or(u32::MAX);
        Some((first, limit))
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

    /// Joins the path with all others at the same instruction; where it is now.
    fn meet_all(&mut self, mut index: usize) -> usize {
        while self.paths.len() > 1
            && let Some(met) = self.meet(index)
        {
            index = met;
        }
        index
    }

    /// Joins the path with another one at the same instruction.
    fn meet(&mut self, index: usize) -> Option<usize> {
        let Path { pc, mask, .. } = self.paths[index];
        let joins = |path: &Path| path.pc == pc && !matches!(path.wait, Wait::Barrier(_));
        let other =
            (0..self.paths.len()).find(|&other| other != index && joins(&self.paths[other]))?;
        self.paths[other].mask |= mask;
        self.paths[other].wait = Wait::Ready;
        self.paths.swap_remove(index);
        Some(if other == self.paths.len() { index } else { other })
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
            env.shared_sync(self.index);
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

    fn branch(&mut self, env: &mut Env<'_>, index: usize, target: u32, active: u32) {
        let Path { pc, mask, .. } = self.paths[index];
        if active == mask {
            self.paths[index].pc = target;
        } else if active == 0 {
            self.paths[index].pc = pc + 1;
        } else {
            let mut sides = [(target, active), (pc + 1, mask & !active)];
            if env.kernel.options.hostile_schedule && env.random.one_in(2) || target > pc {
                sides.swap(0, 1);
            }
            self.paths[index] = Path { pc: sides[0].0, mask: sides[0].1, wait: Wait::Ready };
            self.paths.push(Path { pc: sides[1].0, mask: sides[1].1, wait: Wait::Ready });
        }
    }

    fn branch_table(
        &mut self,
        index: usize,
        row: u32,
        targets: &[u32],
        active: u32,
    ) -> Result<(), Stop> {
        let Path { pc, mask, .. } = self.paths[index];
        let choice = *self.registers.get::<u32>(row);
        let mut sides: Vec<(u32, u32)> = vec![];
        let mut add = |target: u32, lanes: u32| match sides.iter_mut().find(|side| side.0 == target)
        {
            Some(side) => side.1 |= lanes,
            None => sides.push((target, lanes)),
        };
        for lane in lanes(active) {
            let Some(&target) = targets.get(choice[lane] as usize) else {
                let what = FaultKind::Undefined { reason: "branch index out of range".to_owned() };
                return Err(Stop { lane: lane as u32, what });
            };
            add(target, 1 << lane);
        }
        if mask != active {
            add(pc + 1, mask & !active);
        }
        let mut sides = sides.into_iter().map(|(pc, mask)| Path { pc, mask, wait: Wait::Ready });
        if let Some(first) = sides.next() {
            self.paths[index] = first;
        }
        self.paths.extend(sides);
        Ok(())
    }

    fn exit(&mut self, index: usize, active: u32) -> Next {
        self.exited |= active;
        let path = &mut self.paths[index];
        path.mask &= !active;
        path.pc += 1;
        if active != 0 {
            // Who waited for these lanes need not any more.
            let waiting = self.paths.iter_mut().filter(|path| path.wait == Wait::Members);
            waiting.for_each(|path| path.wait = Wait::Ready);
        }
        if self.paths[index].mask != 0 {
            return Next::Go;
        }
        self.paths.swap_remove(index);
        Next::Stop(if self.paths.is_empty() { Event::Done } else { Event::Paused })
    }

    /// The member mask of each lane for an instruction that waits for them.
    fn members(&self, op: &Op, active: u32) -> Result<Option<[u32; 32]>, Stop> {
        let row = match op {
            Op::Shuffle(shuffle) => shuffle.members,
            Op::Collective(collective) => collective.members,
            Op::Barrier(barrier) if barrier.is_aligned => return Ok(Some([u32::MAX; 32])),
            Op::Mma(_) | Op::LoadMatrix(_) | Op::StoreMatrix(_) | Op::TransposeMatrix(..) => {
                return if self.live() == u32::MAX {
                    Ok(Some([u32::MAX; 32]))
                } else {
                    let reason = "a matrix instruction needs all 32 threads of the warp".to_owned();
                    Err(Stop {
                        lane: active.trailing_zeros(),
                        what: FaultKind::Undefined { reason },
                    })
                };
            }
            _ => return Ok(None),
        };
        let members = *self.registers.get::<u32>(row);
        match lanes(active).find(|&lane| members[lane] >> lane & 1 == 0) {
            Some(lane) => {
                let reason = format!("the thread is not in its member mask {:#x}", members[lane]);
                Err(Stop { lane: lane as u32, what: FaultKind::Undefined { reason } })
            }
            None => Ok(Some(members)),
        }
    }

    /// Lanes whose member mask is all here (or has exited).
    fn complete(&self, members: &[u32; 32], active: u32) -> u32 {
        let live = self.live();
        let first = members[active.trailing_zeros() as usize];
        if lanes(active).all(|lane| members[lane] == first) {
            return if first & live & !active == 0 { active } else { 0 };
        }
        let same = |mask: u32| {
            lanes(active)
                .filter(|&lane| members[lane] == mask)
                .fold(0, |same, lane| same | 1 << lane)
        };
        let is_complete = |&lane: &usize| members[lane] & live & !same(members[lane]) == 0;
        lanes(active).filter(is_complete).fold(0, |complete, lane| complete | 1 << lane)
    }

    fn arrive(&mut self, index: usize, barrier: &Barrier, lanes: u32) -> Next {
        let first = lanes.trailing_zeros() as usize;
        let pc = self.paths[index].pc;
        let id = self.registers.get::<u32>(barrier.id)[first];
        let count =
            (barrier.count != NONE).then(|| self.registers.get::<u32>(barrier.count)[first]);
        let holds = barrier.reduce.map_or(0, |reduce| {
            let flip = if reduce.is_negated { u32::MAX } else { 0 };
            (self.registers.preds[reduce.pred as usize] ^ flip) & lanes
        });
        if barrier.is_arrive {
            self.paths[index].pc = pc + 1;
        } else {
            self.paths[index].wait = Wait::Barrier(id);
        }
        Next::Stop(Event::Arrived(Arrival { id, count, lanes, holds, pc }))
    }

    /// A barrier is complete: its paths go on, with the reduction's result.
    pub(crate) fn pass(
        &mut self,
        kernel: &Kernel<'_>,
        id: u32,
        result: impl Fn(&Reduce) -> u32,
    ) -> bool {
        let mut passed = false;
        for path in &mut self.paths {
            if path.wait != Wait::Barrier(id) {
                continue;
            }
            if let Op::Barrier(barrier) = &kernel.program.code[path.pc as usize].op
                && let Some(reduce) = &barrier.reduce
            {
                let value = result(reduce);
                match reduce.what {
                    super::program::ReduceOp::Popc => {
                        self.registers.put(reduce.d, &[value; 32], path.mask);
                    }
                    _ => self.registers.put_pred(reduce.d, value, path.mask),
                }
            }
            path.wait = Wait::Ready;
            path.pc += 1;
            passed = true;
        }
        // Paths that left the same barrier together are one again.
        let mut index = 0;
        while index < self.paths.len() {
            let Path { pc, wait, .. } = self.paths[index];
            match (index + 1..self.paths.len())
                .find(|&o| self.paths[o].pc == pc && self.paths[o].wait == wait)
            {
                Some(other) => {
                    self.paths[index].mask |= self.paths[other].mask;
                    self.paths.swap_remove(other);
                }
                None => index += 1,
            }
        }
        passed
    }
}

impl Env<'_> {
    fn shared_sync(&mut self, warp: u32) {
        if self.kernel.options.check_races {
            self.shared.races.sync_warp(warp as usize);
        }
    }
}
