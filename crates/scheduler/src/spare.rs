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

#[derive(Debug, Default)]
pub(crate) struct Spare {
    token_lists: Vec<Vec<TokenId>>,
    block_lists: Vec<Vec<BlockId>>,
    tables: Vec<BlockTable>,
    records: Vec<PlanRecord>,
}

impl Spare {
    /// Empties a plan that was used before and keeps its memory.
    pub(crate) fn take_apart(&mut self, plan: &mut StepPlan) {
        self.token_lists.extend(plan.start.drain(..).map(|start| start.tokens));
        self.block_lists.extend(plan.blocks.drain(..).map(|new| new.blocks));
        plan.clear();
    }

    pub(crate) fn tokens(&mut self, content: &[TokenId]) -> Vec<TokenId> {
        let mut list = self.token_lists.pop().unwrap_or_default();
        list.clear();
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

    pub(crate) fn put_sequence(&mut self, tokens: Vec<TokenId>, table: BlockTable) {
        debug_assert!(table.is_empty(), "a table is released before its memory is used again");
        self.token_lists.push(tokens);
        self.tables.push(table);
    }

    pub(crate) fn put_record(&mut self, mut record: PlanRecord) {
        record.chunks.clear();
        self.records.push(record);
    }
}
