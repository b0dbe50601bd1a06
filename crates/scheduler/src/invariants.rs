//! What is always true of a scheduler; used by property tests.

use oarlock_types::{BLOCK_TOKENS, SlotId};

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

    /// Both queues are sorted and hold each sequence where it says it is.
    fn check_queues(&self) {
        for queue in [&self.waiting, &self.running] {
            assert!(queue.iter().is_sorted_by_key(|entry| entry.0), "a queue is out of order");
        }
        assert!(self.running.len() <= self.limits.max_seqs as usize, "more sequences than slots");
        let num_sequences = self.sequences.iter().count();
        assert_eq!(self.waiting.len() + self.running.len(), num_sequences, "each waits or runs");
        for (order, at) in self.waiting.iter() {
            let sequence = &self.sequences[at];
            assert_eq!((sequence.order, sequence.place), (order, Place::Waiting));
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
        let running = self.sequences.iter().filter_map(|(_, sequence)| match sequence.place {
            Place::Running(slot) => Some(slot),
            Place::Waiting => None,
        });
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
