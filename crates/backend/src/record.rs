//! A step's input as a host backend keeps it: everything copied, nothing allocated once warm.

use oarlock_sampler::History;
use oarlock_types::{BLOCK_TOKENS, SamplingParams, TokenId};

use crate::{BackendLimits, LogitKind, StepInput};

/// A copy of a [`StepInput`] with the position and block table of every row at hand.
#[derive(Debug, Default)]
pub struct StepRecord {
    tokens: Vec<TokenId>,
    rows: Vec<RowPlace>,
    tables: Vec<u32>,
    logit_rows: Vec<LogitRecord>,
    histories: Vec<TokenId>,
}

/// Where a row's sequence lies in the cache.
#[derive(Clone, Copy, Debug)]
struct RowPlace {
    position: u32,
    first_block: u32,
    num_blocks: u32,
}

/// An owned [`crate::LogitRow`].
#[derive(Clone, Debug)]
pub struct LogitRecord {
    /// Row of the step.
    pub row: u32,
    /// What for.
    pub kind: LogitRecordKind,
}

/// Where [`StepRecord`] keeps the tokens before one to be drawn; nowhere if there are no rules.
#[derive(Clone, Copy, Debug, Default)]
pub struct HistoryRecord {
    first: usize,
    len: usize,
    num_prompt: usize,
}

/// An owned [`LogitKind`].
#[derive(Clone, Debug)]
pub enum LogitRecordKind {
    /// Draw the token at `position`.
    Sample {
        /// How.
        params: SamplingParams,
        /// Absolute position of the drawn token.
        position: u32,
        /// Where the tokens before it are kept; see [`StepRecord::history`].
        history: HistoryRecord,
    },
    /// Score a known token.
    Score {
        /// The token.
        token: TokenId,
        /// How many of the most likely tokens to report.
        top: u8,
    },
}

impl StepRecord {
    /// An empty record with memory for the limits.
    #[must_use]
    pub fn with_limits(limits: &BackendLimits) -> Self {
        let blocks_per_chunk = limits.max_positions.div_ceil(BLOCK_TOKENS);
        Self {
            tokens: Vec::with_capacity(limits.max_tokens),
            rows: Vec::with_capacity(limits.max_tokens),
            tables: Vec::with_capacity(limits.max_chunks * blocks_per_chunk),
            logit_rows: Vec::with_capacity(limits.max_tokens + limits.max_chunks),
            // Grows with the first requests that have rules, and keeps what it got.
            histories: Vec::new(),
        }
    }

    /// Takes over a step's input.
    ///
    /// # Panics
    /// If chunks do not cover the rows in order, or a block table is too short: the caller's error.
    pub fn set(&mut self, input: &StepInput<'_>) {
        self.tokens.clear();
        self.tokens.extend_from_slice(input.tokens);
        self.rows.clear();
        self.tables.clear();
        for chunk in input.chunks {
            assert_eq!(chunk.first_row as usize, self.rows.len(), "chunks cover the rows in order");
            let table = input.block_tables.get(chunk.slot);
            let end = (chunk.start + chunk.rows) as usize;
            assert!(
                table.len() * BLOCK_TOKENS >= end,
                "block table of slot {} is too short",
                chunk.slot
            );
            let place = RowPlace {
                position: chunk.start,
                first_block: self.tables.len() as u32,
                num_blocks: end.div_ceil(BLOCK_TOKENS) as u32,
            };
            self.tables.extend_from_slice(&table[..place.num_blocks as usize]);
            self.rows
                .extend((0..chunk.rows).map(|i| RowPlace { position: chunk.start + i, ..place }));
        }
        assert_eq!(self.rows.len(), self.tokens.len(), "chunks cover every row");
        self.logit_rows.clear();
        self.histories.clear();
        let histories = &mut self.histories;
        self.logit_rows.extend(input.logit_rows.iter().map(|wanted| {
            assert!((wanted.row as usize) < self.rows.len(), "logit row of the step");
            let kind = match wanted.kind {
                LogitKind::Sample { params, position, history } => {
                    let mut kept = HistoryRecord::default();
                    if params.rules.is_some() {
                        let (first, len) = (histories.len(), history.tokens.len());
                        kept = HistoryRecord { first, len, num_prompt: history.num_prompt };
                        histories.extend_from_slice(history.tokens);
                    }
                    LogitRecordKind::Sample { params: params.clone(), position, history: kept }
                }
                LogitKind::Score { token, top } => LogitRecordKind::Score { token, top },
            };
            LogitRecord { row: wanted.row, kind }
        }));
    }

    /// Rows of the step.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.rows.len()
    }

    /// Token of each row.
    #[must_use]
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Absolute position of a row.
    #[must_use]
    pub fn position(&self, row: usize) -> usize {
        self.rows[row].position as usize
    }

    /// Blocks of a row's sequence, in order of position.
    #[must_use]
    pub fn table(&self, row: usize) -> &[u32] {
        let place = self.rows[row];
        &self.tables[place.first_block as usize..][..place.num_blocks as usize]
    }

    /// The tokens before one to be drawn.
    #[must_use]
    pub fn history(&self, record: HistoryRecord) -> History<'_> {
        let HistoryRecord { first, len, num_prompt } = record;
        History { tokens: &self.histories[first..][..len], num_prompt }
    }

    /// Rows whose logits are wanted.
    #[must_use]
    pub fn logit_rows(&self) -> &[LogitRecord] {
        &self.logit_rows
    }
}
