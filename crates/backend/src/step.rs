//! What changes from step to step: which tokens are computed, where their KV pages are, and which
//! rows' logits are wanted.

use oarlock_sampler::History;
use oarlock_types::{BlockId, SamplingParams, SlotError, SlotId, TokenId, TokenScore};

/// The rows of one step.
#[derive(Clone, Copy, Debug)]
pub struct StepInput<'a> {
    /// Token of each row.
    pub tokens: &'a [TokenId],
    /// Which rows belong to which sequence, in order of rows, without gaps.
    pub chunks: &'a [ChunkRows],
    /// Block tables by slot.
    pub block_tables: &'a BlockTables,
    /// Rows whose logits are wanted, ascending.
    pub logit_rows: &'a [LogitRow<'a>],
}

/// Consecutive positions of one sequence in consecutive rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRows {
    /// Whose block table.
    pub slot: SlotId,
    /// First row.
    pub first_row: u32,
    /// Number of rows.
    pub rows: u32,
    /// Absolute position of the first row.
    pub start: u32,
}

/// One row whose logits are wanted. A row may be wanted twice, to be scored and to be sampled from.
#[derive(Clone, Copy, Debug)]
pub struct LogitRow<'a> {
    /// Row of the step.
    pub row: u32,
    /// What for.
    pub kind: LogitKind<'a>,
}

/// What a row's logits are for.
#[derive(Clone, Copy, Debug)]
pub enum LogitKind<'a> {
    /// Draw the token at `position`.
    Sample {
        /// How.
        params: &'a SamplingParams,
        /// Absolute position of the drawn token: that of the row, plus one.
        position: u32,
        /// The tokens before it; only looked at if `params` has rules.
        history: History<'a>,
    },
    /// Score a token that is already known.
    Score {
        /// The token.
        token: TokenId,
        /// How many of the most likely tokens to report.
        top: u8,
    },
}

/// The result of one [`LogitRow`].
#[derive(Clone, Debug, PartialEq)]
pub struct RowResult {
    /// The drawn or scored token and, where wanted, its score.
    pub outcome: Result<(TokenId, Option<TokenScore>), SlotError>,
}

/// Block tables of all slots in one flat array, as a device keeps them.
#[derive(Clone, Debug)]
pub struct BlockTables {
    blocks: Vec<u32>,
    lens: Vec<u32>,
    max_blocks: usize,
}

impl BlockTables {
    /// Empty tables for `num_slots` sequences of at most `max_blocks` blocks each.
    #[must_use]
    pub fn new(num_slots: usize, max_blocks: usize) -> Self {
        Self { blocks: vec![0; num_slots * max_blocks], lens: vec![0; num_slots], max_blocks }
    }

    /// Forgets the blocks of a slot.
    pub fn clear(&mut self, slot: SlotId) {
        self.lens[slot.index()] = 0;
    }

    /// Appends a block to a slot's table.
    ///
    /// # Panics
    /// If the table is full: the scheduler promised otherwise.
    pub fn push(&mut self, slot: SlotId, block: BlockId) {
        let len = &mut self.lens[slot.index()];
        assert!((*len as usize) < self.max_blocks, "block table of slot {slot} is full");
        self.blocks[slot.index() * self.max_blocks + *len as usize] = block.0;
        *len += 1;
    }

    /// Blocks of a slot, in order of position.
    #[must_use]
    pub fn get(&self, slot: SlotId) -> &[u32] {
        let first = slot.index() * self.max_blocks;
        &self.blocks[first..first + self.lens[slot.index()] as usize]
    }

    /// Number of slots.
    #[must_use]
    pub fn num_slots(&self) -> usize {
        self.lens.len()
    }

    /// Blocks that one table holds at most.
    #[must_use]
    pub fn max_blocks(&self) -> usize {
        self.max_blocks
    }
}
