//! Memory that is used again, so that planning allocates nothing once warm.

use oarlock_kv_cache::BlockTable;
use oarlock_types::{BlockId, SlotId, StepId, StepPlan, TokenId};

/// One chunk of a plan in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChunkRecord {
    /// Index of the sequence, and its arrival to tell whether it still is the same.
    pub(crate) sequence: usize,
    pub(crate) arrival: u64,
    pub(crate) attempt: u32,
    pub(crate) slot: SlotId,
    /// Tokens computed after the chunk.
    pub(crate) end: u32,
    pub(crate) sample: bool,
    pub(crate) score_start: u32,
    pub(crate) score_end: u32,
}

/// A plan in flight.
#[derive(Debug, Default)]
pub(crate) struct PlanRecord {
    pub(crate) step: StepId,
    pub(crate) chunks: Vec<ChunkRecord>,
}

/// Memory of what is over. Each list holds as many entries as running sequences can use, and what a
/// client sent is never kept, so that a burst leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Spare {
    /// Sequences that run at the same time at most.
    max_seqs: usize,
    /// Tokens of running sequences, with room for all that they generate, and of their starts.
    token_lists: Vec<Vec<TokenId>>,
    block_lists: Vec<Vec<BlockId>>,
    tables: Vec<BlockTable>,
    records: Vec<PlanRecord>,
}

/// Puts `item` into `list` if that has room; drops it otherwise.
fn keep<T>(list: &mut Vec<T>, capacity: usize, item: T) {
    if list.len() < capacity {
        list.push(item);
    }
}

impl Spare {
    /// For `max_seqs` running sequences.
    pub(crate) fn new(max_seqs: usize) -> Self {
        Self {
            max_seqs,
            token_lists: Vec::with_capacity(2 * max_seqs),
            block_lists: Vec::with_capacity(max_seqs),
            tables: Vec::with_capacity(max_seqs),
            records: Vec::new(),
        }
    }

    /// Empties a plan that was used before and keeps its memory.
    pub(crate) fn take_apart(&mut self, plan: &mut StepPlan) {
        for start in plan.start.drain(..) {
            self.put_tokens(start.tokens);
        }
        for new in plan.blocks.drain(..) {
            keep(&mut self.block_lists, self.max_seqs, new.blocks);
        }
        plan.clear();
    }

    /// A copy of a sequence's tokens that can grow to `len` tokens.
    pub(crate) fn tokens(&mut self, content: &[TokenId], len: usize) -> Vec<TokenId> {
        let mut list = self.token_lists.pop().unwrap_or_default();
        list.clear();
        list.reserve(len.max(content.len()));
        list.extend_from_slice(content);
        list
    }

    pub(crate) fn blocks(&mut self, content: &[BlockId]) -> Vec<BlockId> {
        let mut list = self.block_lists.pop().unwrap_or_default();
        list.clear();
        list.extend_from_slice(content);
        list
    }

    pub(crate) fn table(&mut self) -> BlockTable {
        self.tables.pop().unwrap_or_default()
    }

    pub(crate) fn record(&mut self) -> PlanRecord {
        self.records.pop().unwrap_or_default()
    }

    /// Takes back a list of [`Self::tokens`].
    pub(crate) fn put_tokens(&mut self, tokens: Vec<TokenId>) {
        keep(&mut self.token_lists, 2 * self.max_seqs, tokens);
    }

    /// The table of a sequence that ended.
    pub(crate) fn put_table(&mut self, table: BlockTable) {
        debug_assert!(table.is_empty(), "a table is released before its memory is used again");
        if !table.is_unused() {
            keep(&mut self.tables, self.max_seqs, table);
        }
    }

    pub(crate) fn put_record(&mut self, mut record: PlanRecord) {
        record.chunks.clear();
        self.records.push(record);
    }
}
