//! Memory that is used again, so that planning allocates nothing once warm.

use oarlock_kv_cache::BlockTable;
use oarlock_types::{BlockId, SlotId, StepId, StepPlan, TokenId};

use crate::shelf::Shelf;

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
    /// Tokens of running sequences, with room for all that they generate, and of their starts.
    token_lists: Shelf<Vec<TokenId>>,
    block_lists: Shelf<Vec<BlockId>>,
    tables: Shelf<BlockTable>,
    records: Vec<PlanRecord>,
}

impl Spare {
    /// For `max_seqs` running sequences.
    pub(crate) fn new(max_seqs: usize) -> Self {
        Self {
            token_lists: Shelf::new(2 * max_seqs),
            block_lists: Shelf::new(max_seqs),
            tables: Shelf::new(max_seqs),
            records: Vec::new(),
        }
    }

    /// Empties a plan that was used before and keeps its memory.
    pub(crate) fn take_apart(&mut self, plan: &mut StepPlan) {
        for start in plan.start.drain(..) {
            self.put_tokens(start.tokens);
        }
        for new in plan.blocks.drain(..) {
            self.block_lists.put(new.blocks);
        }
        plan.clear();
    }

    /// A copy of a sequence's tokens that can grow to `len` tokens.
    pub(crate) fn tokens(&mut self, content: &[TokenId], len: usize) -> Vec<TokenId> {
        let mut list = self.token_lists.take(len.max(content.len()));
        list.clear();
        list.extend_from_slice(content);
        list
    }

    pub(crate) fn blocks(&mut self, content: &[BlockId]) -> Vec<BlockId> {
        let mut list = self.block_lists.take(content.len());
        list.clear();
        list.extend_from_slice(content);
        list
    }

    /// A table with memory for so many blocks.
    pub(crate) fn table(&mut self, num_blocks: usize) -> BlockTable {
        self.tables.take(num_blocks)
    }

    pub(crate) fn record(&mut self) -> PlanRecord {
        self.records.pop().unwrap_or_default()
    }

    /// Takes back a list of [`Self::tokens`].
    pub(crate) fn put_tokens(&mut self, tokens: Vec<TokenId>) {
        self.token_lists.put(tokens);
    }

    /// The table of a sequence that ended.
    pub(crate) fn put_table(&mut self, table: BlockTable) {
        debug_assert!(table.is_empty(), "a table is released before its memory is used again");
        self.tables.put(table);
    }

    pub(crate) fn put_record(&mut self, mut record: PlanRecord) {
        record.chunks.clear();
        self.records.push(record);
    }
}
