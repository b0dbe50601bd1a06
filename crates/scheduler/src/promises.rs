//! Blocks that running sequences were promised when they started and have not taken yet.

use oarlock_types::Priority;

use crate::planner::blocks_for;
use crate::sequence::{Sequence, Sequences};

/// For each class, the blocks that its running sequences still need for the tokens that are known. A
/// long prompt takes its blocks chunk by chunk; whoever starts meanwhile must not count on them.
#[derive(Debug)]
pub(crate) struct Promises {
    by_class: Vec<usize>,
}

/// What a sequence still needs for its known tokens while it runs.
fn promised(sequence: &Sequence) -> usize {
    if sequence.slot().is_none() {
        return 0;
    }
    let known = sequence.num_tokens().min(sequence.compute_end());
    blocks_for(known).saturating_sub(sequence.table.len())
}

impl Promises {
    pub(crate) fn new() -> Self {
        Self { by_class: vec![0; usize::from(u8::MAX) + 1] }
    }

    /// To be called when a sequence starts or stops running, takes blocks or gets a token.
    pub(crate) fn update(&mut self, sequence: &mut Sequence) {
        self.set(sequence, promised(sequence));
    }

    /// The sequence is gone.
    pub(crate) fn forget(&mut self, sequence: &mut Sequence) {
        self.set(sequence, 0);
    }

    fn set(&mut self, sequence: &mut Sequence, num_blocks: usize) {
        let sum = &mut self.by_class[usize::from(sequence.order.priority.0)];
        *sum = *sum - sequence.num_promised + num_blocks;
        sequence.num_promised = num_blocks;
    }

    /// Blocks promised to a class and those above: what a sequence of that class cannot have.
    pub(crate) fn up_to(&self, class: Priority) -> usize {
        self.by_class[..=usize::from(class.0)].iter().sum()
    }

    /// # Panics
    /// If a sum is wrong.
    pub(crate) fn check_invariants(&self, sequences: &Sequences) {
        let mut sums = vec![0; self.by_class.len()];
        for (_, sequence) in sequences.iter() {
            assert_eq!(sequence.num_promised, promised(sequence), "a promise is out of date");
            sums[usize::from(sequence.order.priority.0)] += sequence.num_promised;
        }
        assert_eq!(sums, self.by_class, "promised blocks");
    }
}
