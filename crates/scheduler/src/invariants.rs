//! What is always true of a scheduler; used by property tests.

use std::collections::BTreeSet;

use oarlock_kv_cache::BlockTable;
use oarlock_types::{BLOCK_TOKENS, BlockId, RequestId, SlotId, StepPlan};

use crate::planner::blocks_for;
use crate::scheduler::Scheduler;
use crate::sequence::{Place, Sequence};

impl Scheduler {
    /// Checks everything that is always true between calls.
    ///
    /// # Panics
    /// If something is not true.
    pub fn check_invariants(&self) {
        self.pool.check_invariants(self.sequences.iter().map(|(_, sequence)| &sequence.table));
        self.check_queues();
        self.check_slots();
        for (at, sequence) in self.sequences.iter() {
            self.check_progress(at, sequence);
        }
    }

    /// Checks what is true right after [`Scheduler::plan`] has made `plan`, other than
    /// [`Scheduler::check_invariants`].
    ///
    /// # Panics
    /// If something is not true.
    pub fn check_plan(&self, plan: &StepPlan) {
        assert!(plan.num_tokens() <= self.limits.step_tokens as usize, "over the budget");
        if plan.is_empty() && self.in_flight.is_empty() {
            assert!(self.sequences.is_empty(), "sequences live, and nothing will ever happen");
        }
        if self.is_isolating() {
            assert!(plan.chunks.len() <= 1, "a suspect has company");
            let chunks = || self.in_flight.iter().flat_map(|record| &record.chunks);
            let is_same = chunks().zip(chunks().skip(1)).all(|(a, b)| a.arrival == b.arrival);
            assert!(plan.chunks.is_empty() || is_same, "two suspects are in flight");
        } else if !plan.is_empty() && plan.num_tokens() < self.limits.step_tokens as usize {
            self.check_classes();
        }
    }

    /// The first running sequence in the order, and numbers of which one changes whenever it gets on;
    /// `None` if nothing runs or it may have to wait for blocks that are on their way. For tests.
    pub fn progress_of_first(&self) -> Option<(RequestId, [u32; 3])> {
        let (_, at) = self.running.iter().next()?;
        let sequence = &self.sequences[at];
        let progress = [sequence.attempt, sequence.computed, sequence.num_tokens()];
        (self.pool.num_returning() == 0).then_some((sequence.request.id, progress))
    }

    /// No sequence runs while one of a higher class waits that could run in its place, unless that
    /// one's blocks, or a token of it, are still on their way.
    fn check_classes(&self) {
        let Some((last, _)) = self.running.last() else { return };
        let candidate = self.waiting.candidate(&self.sequences, &self.groups, Some(last.priority));
        let Some(candidate) = candidate else { return };
        let sequence = &self.sequences[candidate.sequence];
        if sequence.num_in_flight > 0 || self.pool.num_returning() > 0 {
            return;
        }
        let class = sequence.order.priority;
        let above = || self.running.iter().filter(|(order, _)| order.priority <= class);
        let tables = above().map(|(_, at)| &self.sequences[at].table);
        let held: BTreeSet<BlockId> = tables.flat_map(BlockTable::blocks).copied().collect();
        // As if nothing were cached, so that this does not depend on what the sequence would hit.
        let needed = blocks_for(sequence.num_tokens() + 1).min(self.pool.num_blocks());
        let fits = above().count() < self.limits.max_seqs as usize
            && held.len() + self.promises.up_to(class) + needed <= self.pool.num_blocks();
        assert!(!fits, "a lower class runs while a sequence that could run waits");
    }

    /// The queues hold each sequence where it says it is.
    fn check_queues(&self) {
        self.waiting.check_invariants(&self.sequences);
        self.groups.check_invariants(&self.sequences);
        self.promises.check_invariants(&self.sequences);
        self.check_queue_bounds();
        assert!(
            self.running.iter().is_sorted_by_key(|entry| entry.0),
            "running sequences are out of order"
        );
        assert!(self.running.len() <= self.limits.max_seqs as usize, "more sequences than slots");
        let num_sequences = self.sequences.iter().count();
        assert_eq!(self.waiting.len() + self.running.len(), num_sequences, "each waits or runs");
        for (_, sequence) in self.sequences.iter().filter(|(_, s)| s.slot().is_none()) {
            assert!(sequence.table.is_empty(), "a waiting sequence holds blocks");
        }
        for (order, at) in self.running.iter() {
            let sequence = &self.sequences[at];
            assert_eq!(sequence.order, order);
            assert!(matches!(sequence.place, Place::Running(_)));
        }
    }

    /// Each slot is free, to be released, or of one running sequence.
    fn check_slots(&self) {
        let running = self.sequences.iter().filter_map(|(_, sequence)| sequence.slot());
        let mut slots: Vec<SlotId> =
            self.free_slots.iter().chain(&self.released_slots).copied().chain(running).collect();
        slots.sort_unstable();
        assert!(
            slots.into_iter().eq((0..self.limits.max_seqs).map(SlotId)),
            "slots are lost or doubled"
        );
    }

    /// Progress agrees with the plans in flight, and every planned position has its block.
    fn check_progress(&self, at: usize, sequence: &Sequence) {
        let chunks = || {
            let records = self.in_flight.iter().flat_map(|record| &record.chunks);
            records.filter(|c| c.sequence == at && c.arrival == sequence.order.arrival)
        };
        assert_eq!(chunks().count() as u32, sequence.num_in_flight, "chunks in flight");
        let num_sampling = chunks().filter(|chunk| chunk.sample).count() as u32;
        assert_eq!(num_sampling, sequence.num_sampling, "tokens in flight");
        assert!(sequence.computed <= sequence.planned);
        assert!(sequence.planned <= sequence.num_expected().min(sequence.compute_end()));
        assert!(sequence.planned as usize <= sequence.table.len() * BLOCK_TOKENS);
        assert_eq!(sequence.num_announced, sequence.table.len(), "blocks that the workers know");
        assert!(sequence.num_tokens() <= self.limits.sequence_tokens());
    }
}
