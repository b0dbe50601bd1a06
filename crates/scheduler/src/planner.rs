//! Making the next plan: the budget of tokens, class by class.

use oarlock_kv_cache::OutOfBlocks;
use oarlock_types::{BLOCK_TOKENS, Chunk, Event, NewBlocks, Priority, StepId, StepPlan, Tick};

use crate::isolation::Trial;
use crate::scheduler::Scheduler;
use crate::sequence::Place;
use crate::spare::{ChunkRecord, PlanRecord};

/// Blocks that hold this many tokens.
pub(crate) fn blocks_for(num_tokens: u32) -> usize {
    (num_tokens as usize).div_ceil(BLOCK_TOKENS)
}

/// A plan in the making.
pub(crate) struct Draft<'a> {
    pub(crate) plan: &'a mut StepPlan,
    pub(crate) events: &'a mut Vec<Event>,
    record: PlanRecord,
    /// Tokens left.
    pub(crate) budget: u32,
    /// Running sequences before this place in their order have their tokens; those from here on can
    /// still lose their slots and blocks.
    pub(crate) next: usize,
    /// Blocks that a waiting sequence above everything that follows needs, as soon as plans in flight
    /// give some back.
    pub(crate) reserved: usize,
    /// Sequences of this class and below do not start any more, if given.
    closed: Option<Priority>,
}

impl Draft<'_> {
    /// From now on, only sequences above this class start.
    pub(crate) fn close(&mut self, class: Priority) {
        self.closed = Some(self.closed.map_or(class, |closed| closed.min(class)));
    }

    /// The higher of two bounds: that of [`Self::close`] and `below`.
    pub(crate) fn bound(&self, below: Option<Priority>) -> Option<Priority> {
        match (self.closed, below) {
            (Some(closed), Some(below)) => Some(closed.min(below)),
            (closed, below) => closed.or(below),
        }
    }
}

impl Scheduler {
    /// Makes the next plan, after ending requests whose deadline has come.
    ///
    /// The plan is overwritten; pass the same one again to reuse its memory. It is empty, and then
    /// no step to execute or to commit, if nothing can be done now: no work, or everything waits for
    /// plans in flight.
    pub fn plan(&mut self, now: Tick, plan: &mut StepPlan, events: &mut Vec<Event>) {
        self.spare.take_apart(plan);
        self.expire(now, events);
        if self.in_flight.len() >= self.max_plans_in_flight() {
            return;
        }
        plan.epoch = self.epoch;
        plan.step = StepId(self.step.0 + 1);
        plan.release.extend_from_slice(&self.released_slots);
        self.free_slots.append(&mut self.released_slots);

        let mut record = self.spare.record();
        record.step = plan.step;
        let budget = self.limits.step_tokens;
        let mut draft = Draft { plan, events, record, budget, next: 0, reserved: 0, closed: None };
        match self.trial(&mut draft) {
            Trial::Nobody => self.fill(&mut draft),
            Trial::Of(at) => self.fill_trial(at, &mut draft),
            Trial::Wait => {}
        }
        // Siblings that wait for a prompt have room.
        let is_full = self.free_slots.is_empty()
            || draft.budget == 0
            || draft.closed.is_some()
            || self.is_isolating();
        let Draft { plan, record, .. } = draft;
        debug_assert!(plan.num_tokens() <= self.limits.step_tokens as usize, "over the budget");
        self.is_backlogged = is_full && !self.waiting.is_empty();
        self.is_restarting = false;
        self.advance_drain(now);
        if plan.is_empty() {
            self.spare.put_record(record);
        } else {
            self.step = plan.step;
            self.in_flight.push_back(record);
        }
    }

    /// Goes through the classes from the highest on: in each, running sequences get their tokens
    /// before waiting ones start. So whoever takes from others takes from those that this plan does
    /// not name yet, and no chunk has to be taken back.
    fn fill(&mut self, draft: &mut Draft<'_>) {
        let mut last_class: Option<Priority> = None;
        while draft.budget > 0 {
            let class = self.running.class(draft.next);
            if class.is_none() || class != last_class {
                self.admit(class, draft);
                last_class = class;
            }
            if draft.budget > 0 && draft.next < self.running.len() {
                self.plan_running(draft);
            } else if class.is_none() {
                return;
            }
        }
    }

    /// Gives the next running sequence its tokens.
    fn plan_running(&mut self, draft: &mut Draft<'_>) {
        let at = self.running.get(draft.next);
        // One token is left for each that follows, so that a long prompt stops nobody.
        let num_behind = self.running.len() - draft.next - 1;
        if self.plan_chunk(at, num_behind, draft).is_ok() {
            draft.next += 1;
            return;
        }
        if self.pool.num_returning() > 0 {
            // Blocks are on their way; taking more from others would not bring them sooner.
            draft.close(self.sequences[at].order.priority);
            draft.next += 1;
        } else if let Some((last, _)) = self.running.last() {
            // It may be this one itself. Whoever starts in that class would be the next to go.
            draft.close(last.priority);
            self.preempt_last(draft);
        }
    }

    /// Plans the next tokens of a running sequence, leaving one of the budget for each of
    /// `num_behind` others: fewer where blocks are scarce, none where everything is planned already.
    pub(crate) fn plan_chunk(
        &mut self,
        at: usize,
        num_behind: usize,
        draft: &mut Draft<'_>,
    ) -> Result<(), OutOfBlocks> {
        let sequence = &mut self.sequences[at];
        let Place::Running(slot) = sequence.place else {
            unreachable!("only running sequences are planned");
        };
        let start = sequence.planned;
        let expected = sequence.num_expected();
        let share = draft.budget.saturating_sub(num_behind as u32).max(1);
        let wanted = expected.min(sequence.compute_end()) - start;
        let wanted = wanted.min(share).min(self.limits.chunk_tokens());
        if wanted == 0 {
            return Ok(());
        }
        let num_available = self.pool.num_available().saturating_sub(draft.reserved);
        let room = (sequence.table.len() + num_available) * BLOCK_TOKENS;
        let len = wanted.min(room as u32 - start);
        if len == 0 {
            return Err(OutOfBlocks);
        }
        let end = start + len;
        let missing = blocks_for(end).saturating_sub(sequence.table.len());
        self.pool.extend(&mut sequence.table, missing)?;
        self.promises.update(sequence);
        if sequence.table.len() > sequence.num_announced {
            let blocks = self.spare.blocks(&sequence.table.blocks()[sequence.num_announced..]);
            draft.plan.blocks.push(NewBlocks { slot, blocks });
            sequence.num_announced = sequence.table.len();
        }
        let sample = end == expected && expected < sequence.goal;
        let (score_start, score_end) = sequence.score_range(start, end);
        draft.plan.chunks.push(Chunk { slot, start, len, sample, score_start, score_end });
        draft.record.chunks.push(ChunkRecord {
            sequence: at,
            arrival: sequence.order.arrival,
            attempt: sequence.attempt,
            slot,
            end,
            sample,
            score_start,
            score_end,
        });
        // What was lost by preemption is not counted again.
        let charge = end.saturating_sub(start.max(sequence.num_charged));
        self.waiting.charge(sequence.tenant, charge);
        sequence.num_charged = sequence.num_charged.max(end);
        sequence.planned = end;
        sequence.num_in_flight += 1;
        sequence.num_sampling += u32::from(sample);
        sequence.num_scores_planned = sequence.num_scores_planned.max(score_end);
        sequence.last_step = draft.plan.step;
        draft.budget -= len;
        Ok(())
    }
}
