//! The scheduler's state, and what changes it from outside of steps: cancel, expire, reset.

use std::collections::{BTreeMap, VecDeque};

use oarlock_kv_cache::BlockPool;
use oarlock_types::{
    EngineStats, Epoch, Event, EventKind, FinishReason, RequestId, SlotId, StepId, Tick,
};

use crate::admission::Refused;
use crate::drain::DrainRate;
use crate::groups::Groups;
use crate::isolation::{Mark, Suspect};
use crate::limits::Limits;
use crate::promises::Promises;
use crate::queue::Queue;
use crate::sequence::Sequences;
use crate::spare::{PlanRecord, Spare};
use crate::waiting::Waiting;

/// Decides which tokens run next. The crate's documentation says how.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) limits: Limits,
    pub(crate) epoch: Epoch,
    /// The last step planned.
    pub(crate) step: StepId,
    pub(crate) pool: BlockPool,
    pub(crate) sequences: Sequences,
    pub(crate) ids: BTreeMap<RequestId, usize>,
    pub(crate) waiting: Waiting,
    pub(crate) groups: Groups,
    pub(crate) running: Queue,
    pub(crate) promises: Promises,
    /// The last sequence for which there were not enough blocks.
    pub(crate) refused: Option<Refused>,
    pub(crate) free_slots: Vec<SlotId>,
    /// Slots of sequences that are gone, of which the workers have not been told.
    pub(crate) released_slots: Vec<SlotId>,
    pub(crate) in_flight: VecDeque<PlanRecord>,
    /// Requests that run one at a time, the one on trial first.
    /// Requests that were computed when a group died.
    pub(crate) marks: Vec<Mark>,
    pub(crate) suspects: VecDeque<Suspect>,
    pub(crate) spare: Spare,
    pub(crate) drain: DrainRate,
    /// Whether the last plan left something waiting that it had no room for.
    pub(crate) is_backlogged: bool,
    /// Whether nothing could be planned since the last reset.
    pub(crate) is_restarting: bool,
    pub(crate) num_arrivals: u64,
    /// No deadline is before this.
    pub(crate) next_deadline: Option<Tick>,
    /// Counters only; the load is filled in when asked for.
    pub(crate) counters: EngineStats,
}

impl Scheduler {
    /// A scheduler for a group of workers in its life `epoch`, with empty slots and an empty cache.
    ///
    /// # Panics
    /// If a limit is 0 that must not be.
    pub fn new(limits: Limits, epoch: Epoch) -> Self {
        limits.validate();
        let max_seqs = limits.max_seqs as usize;
        let mut scheduler = Self {
            limits,
            epoch,
            step: StepId(0),
            pool: BlockPool::new(limits.num_blocks),
            sequences: Sequences::default(),
            ids: BTreeMap::new(),
            waiting: Waiting::new(),
            groups: Groups::default(),
            running: Queue::with_capacity(max_seqs),
            promises: Promises::new(),
            refused: None,
            free_slots: Vec::with_capacity(max_seqs),
            released_slots: Vec::with_capacity(max_seqs),
            in_flight: VecDeque::with_capacity(limits.max_plans_in_flight as usize),
            marks: Vec::new(),
            suspects: VecDeque::new(),
            spare: Spare::new(max_seqs),
            drain: DrainRate::default(),
            is_backlogged: false,
            is_restarting: false,
            num_arrivals: 0,
            next_deadline: None,
            counters: EngineStats::default(),
        };
        scheduler.free_all_slots();
        scheduler
    }

    /// Ends a request, wherever it is; nothing happens if it is not known.
    pub fn cancel(&mut self, id: RequestId, events: &mut Vec<Event>) {
        if let Some(&at) = self.ids.get(&id) {
            self.finish(at, FinishReason::Cancelled, events);
        }
    }

    /// The group of workers is gone, and with it all slots, the cache and the plans in flight: what
    /// ran waits again, with all its tokens, in its old order. Steps count from 1 again. Suspects stay
    /// what they are.
    pub fn reset(&mut self, epoch: Epoch, now: Tick) {
        self.advance_drain(now);
        self.is_restarting = true;
        self.epoch = epoch;
        self.step = StepId(0);
        self.pool.reset();
        while let Some(record) = self.in_flight.pop_front() {
            self.spare.put_record(record);
        }
        for sequence in self.sequences.iter_mut() {
            sequence.lose_progress();
            sequence.num_in_flight = 0;
            sequence.num_sampling = 0;
            sequence.last_step = StepId(0);
            self.pool.release(&mut sequence.table, StepId(0));
            self.promises.update(sequence);
        }
        // From the last on, so that each goes to the front of its tenant's list.
        for (_, at) in self.running.iter().rev() {
            self.waiting.push_back(&mut self.sequences, at);
        }
        self.running.clear();
        self.free_all_slots();
    }

    fn free_all_slots(&mut self) {
        self.released_slots.clear();
        self.free_slots.clear();
        self.free_slots.extend((0..self.limits.max_seqs).rev().map(SlotId));
    }

    /// Tells the rate of the queue what time it is. What came since the last plan does not count as
    /// waiting, since the next one may start it; while a group restarts there is no next one.
    pub(crate) fn advance_drain(&mut self, now: Tick) {
        let stays = self.is_backlogged || self.is_restarting;
        self.drain.advance(now, stays && !self.waiting.is_empty());
    }

    /// Ends a sequence and gives its slot and blocks back.
    pub(crate) fn finish(&mut self, at: usize, reason: FinishReason, events: &mut Vec<Event>) {
        match self.sequences[at].slot() {
            None => self.waiting.remove(&mut self.sequences, at),
            Some(slot) => {
                self.running.remove(self.sequences[at].order);
                self.released_slots.push(slot);
            }
        }
        if let Some(next) = self.groups.leave(&mut self.sequences, at) {
            self.waiting.charge_whole(&mut self.sequences, next);
        }
        let mut sequence = self.sequences.remove(at);
        self.waiting.tenants.leave(sequence.tenant);
        self.ids.remove(&sequence.request.id);
        self.pool.release(&mut sequence.table, sequence.last_step);
        self.promises.forget(&mut sequence);
        match reason {
            FinishReason::Stop => self.counters.finished_stop += 1,
            FinishReason::Length => self.counters.finished_length += 1,
            FinishReason::Cancelled | FinishReason::Deadline => {
                self.counters.finished_cancelled += 1;
            }
            FinishReason::Failed(_) | FinishReason::EngineLost => {
                self.counters.finished_failed += 1;
            }
        }
        let kind = EventKind::Finished { reason, usage: sequence.usage() };
        events.push(Event { request: sequence.request.id, kind });
        if sequence.has_room {
            self.spare.put_tokens(sequence.tokens);
        }
        self.spare.put_table(sequence.table);
    }

    /// Ends sequences whose deadline has come; [`Self::plan`] does it too. For callers that cannot plan
    /// for a while.
    pub fn expire(&mut self, now: Tick, events: &mut Vec<Event>) {
        self.advance_drain(now);
        if self.next_deadline.is_none_or(|next| now < next) {
            return;
        }
        for at in 0..self.sequences.end() {
            let sequence = self.sequences.get(at);
            let deadline = sequence.and_then(|sequence| sequence.request.deadline);
            if deadline.is_some_and(|deadline| deadline <= now) {
                self.finish(at, FinishReason::Deadline, events);
            }
        }
        self.next_deadline =
            self.sequences.iter().filter_map(|(_, sequence)| sequence.request.deadline).min();
    }

    /// Whether there is anything to compute, to wait for or to tell the workers.
    pub fn has_work(&self) -> bool {
        !self.sequences.is_empty() || !self.released_slots.is_empty() || !self.in_flight.is_empty()
    }

    /// Plans whose results have not been committed.
    pub fn plans_in_flight(&self) -> u32 {
        self.in_flight.len() as u32
    }

    /// How many plans there can be in flight; [`Scheduler::plan`] gives an empty one beyond.
    pub fn max_plans_in_flight(&self) -> usize {
        self.limits.max_plans_in_flight as usize
    }

    /// Tokens of one sequence at most: by the limits, and by what the whole KV cache holds.
    pub fn max_sequence_tokens(&self) -> u32 {
        self.limits.sequence_tokens()
    }

    /// Load and counters; `worker_restarts` is not the scheduler's and stays 0.
    pub fn stats(&self) -> EngineStats {
        EngineStats {
            num_running: self.running.len() as u32,
            num_waiting: self.waiting.len() as u32,
            waiting_tokens: self.waiting.num_tokens(),
            blocks_total: self.limits.num_blocks,
            blocks_in_use: (self.pool.num_blocks() - self.pool.num_available()) as u32,
            blocks_cached: self.pool.num_cached() as u32,
            ..self.counters
        }
    }
}
