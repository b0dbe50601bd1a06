//! What changes from step to step, in the device's memory: one copy brings all of it.

use std::sync::Arc;

use oarlock_backend::{BackendLimits, StepInput};
use oarlock_types::BLOCK_TOKENS;

use crate::driver::{Context, CudaError, DeviceBuffer, PinnedBuffer, Stream};
use crate::kernels::PlanChunk;

/// Words of 32 bits, in this order: the number of rows; for each tile of gathered rows their number; which
/// rows are gathered; token, position and first table entry of each row; block tables.
#[derive(Debug)]
pub(crate) struct StepWords {
    host: PinnedBuffer<u32>,
    device: DeviceBuffer,
    places: Places,
    /// Chunks of the current step, as attention is planned from them.
    pub(crate) chunks: Vec<PlanChunk>,
    max_gathered: usize,
}

/// Where each array begins, in words.
#[derive(Clone, Copy, Debug)]
struct Places {
    tile_rows: usize,
    gathered: usize,
    tokens: usize,
    positions: usize,
    table_entries: usize,
    tables: usize,
    end: usize,
}

impl Places {
    fn new(limits: &BackendLimits) -> Self {
        // A row may be scored and sampled from; tiles may be as small as one row.
        let max_logit_rows = limits.max_tokens + limits.max_chunks;
        let tile_rows = 1;
        let gathered = tile_rows + max_logit_rows;
        let tokens = gathered + max_logit_rows;
        let positions = tokens + limits.max_tokens;
        let table_entries = positions + limits.max_tokens;
        let tables = table_entries + limits.max_tokens;
        let max_blocks = limits.max_positions.div_ceil(BLOCK_TOKENS);
        let end = tables + limits.max_chunks * max_blocks;
        Self { tile_rows, gathered, tokens, positions, table_entries, tables, end }
    }
}

impl StepWords {
    pub(crate) fn new(context: &Arc<Context>, limits: &BackendLimits) -> Result<Self, CudaError> {
        let places = Places::new(limits);
        Ok(Self {
            host: PinnedBuffer::new(context, places.end)?,
            device: DeviceBuffer::new(context, places.end * 4)?,
            places,
            chunks: Vec::with_capacity(limits.max_chunks),
            max_gathered: limits.max_gathered,
        })
    }

    /// Takes a step's input and sends it. The step before must have ended.
    pub(crate) fn set(&mut self, stream: &Stream, input: &StepInput<'_>) -> Result<(), CudaError> {
        let Places { gathered, tokens, positions, table_entries, tables, .. } = self.places;
        let words = &mut self.host[..];
        self.chunks.clear();
        words[0] = input.tokens.len() as u32;
        for (to, wanted) in words[gathered..].iter_mut().zip(input.logit_rows) {
            *to = wanted.row;
        }
        for (to, token) in words[tokens..].iter_mut().zip(input.tokens) {
            *to = token.0;
        }
        let mut end = tables;
        for chunk in input.chunks {
            let first_table_entry = (end - tables) as u32;
            let rows = chunk.first_row as usize..(chunk.first_row + chunk.rows) as usize;
            for (row, position) in rows.zip(chunk.start..) {
                words[positions + row] = position;
                words[table_entries + row] = first_table_entry;
            }
            let needed = ((chunk.start + chunk.rows) as usize).div_ceil(BLOCK_TOKENS);
            let table = &input.block_tables.get(chunk.slot)[..needed];
            words[end..end + needed].copy_from_slice(table);
            end += needed;
            self.chunks.push(PlanChunk {
                first_row: chunk.first_row,
                rows: chunk.rows,
                start: chunk.start,
                first_table_entry,
            });
        }
        stream.upload(&self.device, 0, &self.host, 0..end)
    }

    /// Sends the number of rows of a tile that begins at `first`.
    pub(crate) fn set_tile(
        &mut self,
        stream: &Stream,
        first: usize,
        rows: usize,
    ) -> Result<(), CudaError> {
        assert!(rows <= self.max_gathered, "a tile fits the workspace");
        let word = self.places.tile_rows + first;
        self.host[word] = rows as u32;
        stream.upload(&self.device, word * 4, &self.host, word..word + 1)
    }

    fn address(&self, word: usize) -> u64 {
        self.device.address() + word as u64 * 4
    }

    /// `[1]`: rows of the step.
    pub(crate) fn num_rows(&self) -> u64 {
        self.address(0)
    }

    /// `[1]`: rows of the tile that begins at `first`.
    pub(crate) fn num_gathered(&self, first: usize) -> u64 {
        self.address(self.places.tile_rows + first)
    }

    /// Rows of a tile, in the step.
    pub(crate) fn gathered(&self, first: usize) -> u64 {
        self.address(self.places.gathered + first)
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.address(self.places.tokens)
    }

    pub(crate) fn positions(&self) -> u64 {
        self.address(self.places.positions)
    }

    pub(crate) fn table_entries(&self) -> u64 {
        self.address(self.places.table_entries)
    }

    pub(crate) fn tables(&self) -> u64 {
        self.address(self.places.tables)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.device.bytes() as u64
    }
}
