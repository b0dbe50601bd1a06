//! Steps for tests: sequences with chunks, block tables and wanted logits.

use oarlock_types::{BLOCK_TOKENS, BlockId, SlotId, TokenId};

use crate::{Backend, BlockTables, ChunkRows, LogitRow, StepInput};

/// One sequence's part of a step.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// Position of its first row.
    pub start: usize,
    /// Rows.
    pub rows: usize,
    /// Its blocks, in order of position.
    pub blocks: Vec<u32>,
}

impl Sequence {
    /// Blocks `first..` in order, enough for the rows.
    #[must_use]
    pub fn contiguous(start: usize, rows: usize, first: u32) -> Self {
        let count = (start + rows).div_ceil(BLOCK_TOKENS) as u32;
        Self { start, rows, blocks: (first..first + count).collect() }
    }
}

/// The input of a step, owned.
#[derive(Clone, Debug)]
pub struct TestStep {
    tokens: Vec<TokenId>,
    chunks: Vec<ChunkRows>,
    tables: BlockTables,
}

impl TestStep {
    /// One chunk per sequence; tokens are the row numbers.
    #[must_use]
    pub fn new(sequences: &[Sequence]) -> Self {
        let max_blocks = sequences.iter().map(|sequence| sequence.blocks.len()).max().unwrap_or(0);
        let mut tables = BlockTables::new(sequences.len(), max_blocks);
        let mut chunks = Vec::new();
        let mut first_row = 0;
        for (slot, sequence) in sequences.iter().enumerate() {
            let slot = SlotId(slot as u32);
            sequence.blocks.iter().for_each(|&block| tables.push(slot, BlockId(block)));
            let (rows, start) = (sequence.rows as u32, sequence.start as u32);
            chunks.push(ChunkRows { slot, first_row, rows, start });
            first_row += rows;
        }
        Self { tokens: (0..first_row).map(TokenId).collect(), chunks, tables }
    }

    /// Rows of one sequence from position 0.
    #[must_use]
    pub fn rows(rows: usize) -> Self {
        Self::new(&[Sequence::contiguous(0, rows, 0)])
    }

    /// Replaces the tokens.
    #[must_use]
    pub fn with_tokens(mut self, tokens: &[u32]) -> Self {
        assert_eq!(tokens.len(), self.tokens.len(), "one token per row");
        self.tokens = tokens.iter().copied().map(TokenId).collect();
        self
    }

    /// Begins the step.
    pub fn begin<B: Backend>(&self, backend: &mut B, logit_rows: &[LogitRow<'_>]) {
        backend.begin_step(&StepInput {
            tokens: &self.tokens,
            chunks: &self.chunks,
            block_tables: &self.tables,
            logit_rows,
        });
    }
}
