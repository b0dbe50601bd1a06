//! On which paths the lanes of a warp are: where they part, wait, and meet.

use super::access::lanes;
use super::kernel::{Kernel, Stop};
use super::program::{Barrier, NONE, Op, Reduce, ReduceOp};
use super::warp::{Arrival, Env, Event, Next, Path, Wait, Warp};
use crate::fault::FaultKind;

impl Warp {
    /// Which path runs next, and past which instruction it must not run on alone.
    pub(super) fn choose(&self, env: &mut Env<'_>) -> Option<(usize, u32)> {
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

    /// Joins the path with all others at the same instruction; where it is now.
    pub(super) fn meet_all(&mut self, mut index: usize) -> usize {
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

    pub(super) fn branch(&mut self, env: &mut Env<'_>, index: usize, target: u32, active: u32) {
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

    pub(super) fn branch_table(
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

    pub(super) fn exit(&mut self, index: usize, active: u32) -> Next {
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
    pub(super) fn members(&self, op: &Op, active: u32) -> Result<Option<[u32; 32]>, Stop> {
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
    pub(super) fn complete(&self, members: &[u32; 32], active: u32) -> u32 {
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

    pub(super) fn arrive(&mut self, index: usize, barrier: &Barrier, lanes: u32) -> Next {
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
                    ReduceOp::Popc => {
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
