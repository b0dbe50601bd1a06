//! Making the next plan: budget, chunks, blocks, preemption, admission.

use oarlock_kv_cache::OutOfBlocks;
use oarlock_types::{
    BLOCK_TOKENS, Chunk, Event, EventKind, NewBlocks, SlotId, SlotStart, StepId, StepPlan, Tick,
};

use crate::scheduler::Scheduler;
use crate::sequence::Place;
use crate::spare::{ChunkRecord, PlanRecord};

/// Blocks that hold this many tokens.
fn blocks_for(num_tokens: u32) -> usize {
    (num_tokens as usize).div_ceil(BLOCK_TOKENS)
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
        let mut budget = self.limits.step_tokens;
        let all_got_blocks = self.plan_running(&mut budget, plan, &mut record);
        if all_got_blocks {
            self.admit(&mut budget, plan, &mut record, events);
        }
        debug_assert!(plan.num_tokens() <= self.limits.step_tokens as usize, "over the budget");
        if plan.is_empty() {
            self.spare.put_record(record);
        } else {
            self.step = plan.step;
            self.in_flight.push_back(record);
        }
    }

    /// Gives running sequences their tokens, in order. Returns whether none lacked a block.
    fn plan_running(
        &mut self,
        budget: &mut u32,
        plan: &mut StepPlan,
        record: &mut PlanRecord,
    ) -> bool {
        let mut all_got_blocks = true;
        let mut next = 0;
        while next < self.running.len() && *budget > 0 {
            // One token is left for each that follows, so that a long prompt stops nobody.
            let num_behind = (self.running.len() - next - 1) as u32;
            let share = budget.saturating_sub(num_behind).max(1);
            if let Ok(len) = self.plan_chunk(self.running.get(next), share, plan, record) {
                *budget -= len;
                next += 1;
                continue;
            }
            all_got_blocks = false;
            if self.pool.has_quarantined() {
                // Blocks are on their way; taking more from others would not bring them sooner.
                next += 1;
            } else {
                // Behind this one nothing is planned yet, so that no chunk has to be taken back.
                self.preempt_last(plan);
            }
        }
        all_got_blocks
    }

    /// Plans the next tokens of a running sequence, `max_tokens` at most, and returns how many they
    /// are: fewer where blocks are scarce, none where everything is planned already.
    fn plan_chunk(
        &mut self,
        at: usize,
        max_tokens: u32,
        plan: &mut StepPlan,
        record: &mut PlanRecord,
    ) -> Result<u32, OutOfBlocks> {
        let sequence = &mut self.sequences[at];
        let Place::Running(slot) = sequence.place else {
            unreachable!("only running sequences are planned");
        };
        let start = sequence.planned;
        let expected = sequence.num_expected();
        let wanted = expected.min(sequence.compute_end()) - start;
        let wanted = wanted.min(max_tokens).min(self.limits.chunk_tokens());
        if wanted == 0 {
            return Ok(0);
        }
        let room = (sequence.table.len() + self.pool.num_available()) * BLOCK_TOKENS;
        let len = wanted.min(room as u32 - start);
        if len == 0 {
            return Err(OutOfBlocks);
        }
        let end = start + len;
        let missing = blocks_for(end).saturating_sub(sequence.table.len());
        self.pool.extend(&mut sequence.table, missing)?;
        if sequence.table.len() > sequence.num_announced {
            let blocks = self.spare.blocks(&sequence.table.blocks()[sequence.num_announced..]);
            plan.blocks.push(NewBlocks { slot, blocks });
            sequence.num_announced = sequence.table.len();
        }
        let sample = end == expected && expected < sequence.goal;
        let (score_start, score_end) = sequence.score_range(start, end);
        plan.chunks.push(Chunk { slot, start, len, sample, score_start, score_end });
        record.chunks.push(ChunkRecord {
            sequence: at,
            arrival: sequence.order.arrival,
            attempt: sequence.attempt,
            slot,
            end,
            sample,
            score_start,
            score_end,
        });
        sequence.planned = end;
        sequence.num_in_flight += 1;
        sequence.num_sampling += u32::from(sample);
        sequence.num_scores_planned = sequence.num_scores_planned.max(score_end);
        sequence.last_step = plan.step;
        Ok(len)
    }

    /// Takes slot and blocks from the last running sequence. It waits again, in its old place.
    fn preempt_last(&mut self, plan: &mut StepPlan) {
        let at = self.running.last().expect("the one that lacks a block runs");
        let sequence = &mut self.sequences[at];
        if let Place::Running(slot) = sequence.place {
            plan.release.push(slot);
            self.free_slots.push(slot);
        }
        self.running.remove(sequence.order);
        self.waiting.insert(sequence.order, at);
        self.pool.release(&mut sequence.table, sequence.last_step);
        sequence.lose_progress();
        self.counters.preemptions += 1;
    }

    /// Starts waiting sequences, in order, until one does not fit.
    fn admit(
        &mut self,
        budget: &mut u32,
        plan: &mut StepPlan,
        record: &mut PlanRecord,
        events: &mut Vec<Event>,
    ) {
        while *budget > 0
            && let Some(at) = self.waiting.first()
        {
            if self.sequences[at].num_in_flight > 0 {
                // Preempted, and a token that it must start with is on its way.
                return;
            }
            if let Some(reason) = self.sequences[at].finish_reason() {
                // It came here complete, from an engine that was lost before it could say so.
                self.note_start(at, 0, events);
                self.finish(at, reason, events);
                continue;
            }
            let Some(&slot) = self.free_slots.last() else { return };
            let Some(num_cached) = self.acquire_prefix(at) else { return };
            self.free_slots.pop();
            self.start(at, slot, num_cached, plan);
            self.note_start(at, num_cached, events);
            let len = self
                .plan_chunk(at, *budget, plan, record)
                .expect("blocks for all its tokens were available");
            *budget -= len;
        }
    }

    /// Takes the cached prefix of a waiting sequence and returns its tokens; `None` if there would
    /// be no blocks for the rest of its tokens and the next one.
    fn acquire_prefix(&mut self, at: usize) -> Option<u32> {
        let sequence = &mut self.sequences[at];
        // The last token is always computed, since its logits are needed.
        let max_hit = match sequence.request.prompt_logprobs {
            Some(_) => 0,
            None => (sequence.tokens.len() - 1) / BLOCK_TOKENS,
        };
        let salt = sequence.request.salt;
        let hit = self.pool.acquire(&mut sequence.table, salt, &sequence.tokens, max_hit);
        let needed = blocks_for((sequence.num_tokens() + 1).min(self.limits.sequence_tokens()));
        if needed - hit > self.pool.num_available() {
            self.pool.release(&mut sequence.table, StepId(0));
            return None;
        }
        Some((hit * BLOCK_TOKENS) as u32)
    }

    /// Moves the first waiting sequence, whose prefix is acquired, into a slot.
    fn start(&mut self, at: usize, slot: SlotId, num_cached: u32, plan: &mut StepPlan) {
        let sequence = &mut self.sequences[at];
        self.waiting.remove(sequence.order);
        self.running.insert(sequence.order, at);
        sequence.place = Place::Running(slot);
        sequence.planned = num_cached;
        sequence.computed = num_cached;
        sequence.num_scores_planned = sequence.num_scored;
        plan.start.push(SlotStart {
            slot,
            tokens: self.spare.tokens(&sequence.tokens),
            num_prompt: sequence.request.num_prompt,
            sampling: sequence.request.sampling.clone(),
            prompt_logprobs: sequence.request.prompt_logprobs,
        });
    }

    /// Reports and counts a sequence that starts for the first time.
    fn note_start(&mut self, at: usize, num_cached: u32, events: &mut Vec<Event>) {
        let sequence = &mut self.sequences[at];
        if sequence.cached_tokens.is_some() {
            return;
        }
        // A request that moved here may find generated tokens in the cache, too.
        let cached_tokens = num_cached.min(sequence.request.num_prompt);
        sequence.cached_tokens = Some(cached_tokens);
        sequence.num_prompt_counted = cached_tokens;
        self.counters.prompt_tokens += u64::from(cached_tokens);
        if sequence.request.prompt_logprobs.is_none() {
            self.counters.prefix_cache_queries += u64::from(sequence.request.num_prompt);
            self.counters.prefix_cache_hits += u64::from(cached_tokens);
        }
        let kind = EventKind::Started { cached_tokens };
        events.push(Event { request: sequence.request.id, kind });
    }
}
