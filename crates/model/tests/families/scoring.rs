//! A loaded model that scores tokens, for the tests that compare logprobs.

use oarlock_backend::{
    Backend, BackendLimits, BlockTables, ChunkRows, LogitKind, LogitRow, StepInput,
};
use oarlock_collective::Alone;
use oarlock_model::{Checkpoint, Decoder, load};
use oarlock_types::{BLOCK_TOKENS, BlockId, SlotId, TokenId, TokenScore};
use serde_json::Value;

/// Most likely tokens that are reported at each place.
const TOP: u8 = 20;

/// Limits for one sequence of so many blocks, all of it in one step.
pub(crate) const fn limits(num_blocks: usize, max_gathered: usize) -> BackendLimits {
    let positions = num_blocks * BLOCK_TOKENS;
    BackendLimits { max_tokens: positions, max_gathered, max_chunks: 1, max_positions: positions }
}

/// A model with room for one sequence.
pub(crate) struct Model<B: Backend> {
    backend: B,
    decoder: Decoder<B>,
    num_blocks: usize,
}

impl<B: Backend> Model<B> {
    pub(crate) fn load(checkpoint: &Checkpoint, mut backend: B, num_blocks: usize) -> Self {
        let alone = Box::new(Alone);
        let decoder = load(checkpoint, &mut backend, alone, num_blocks, &mut |_| ()).unwrap();
        Self { backend, decoder, num_blocks }
    }

    /// Scores of `wanted`: the first at row `first` of `tokens`, the others at the rows after it.
    /// `tokens` are computed in chunks of so many rows.
    pub(crate) fn score(
        &mut self,
        tokens: &[TokenId],
        first: usize,
        wanted: &[TokenId],
        chunk_rows: usize,
    ) -> Vec<TokenScore> {
        let mut tables = BlockTables::new(1, self.num_blocks);
        (0..self.num_blocks as u32).for_each(|block| tables.push(SlotId(0), BlockId(block)));
        let mut scores = Vec::new();
        for (index, tokens) in tokens.chunks(chunk_rows).enumerate() {
            let start = index * chunk_rows;
            let row = |(at, token): (usize, &TokenId)| {
                let row = (first + at).checked_sub(start).filter(|row| *row < tokens.len())?;
                let kind = LogitKind::Score { token: *token, top: TOP };
                Some(LogitRow { row: row as u32, kind })
            };
            let logit_rows: Vec<_> = wanted.iter().enumerate().filter_map(row).collect();
            let (rows, start) = (tokens.len() as u32, start as u32);
            let input = StepInput {
                tokens,
                chunks: &[ChunkRows { slot: SlotId(0), first_row: 0, rows, start }],
                block_tables: &tables,
                logit_rows: &logit_rows,
            };
            let mut results = Vec::new();
            self.decoder.step(&mut self.backend, &input, &mut results).unwrap();
            scores.extend(results.into_iter().map(|result| result.outcome.unwrap().1.unwrap()));
        }
        assert_eq!(scores.len(), wanted.len());
        scores
    }
}

/// Token ids of a reference file.
pub(crate) fn ids(value: &Value) -> Vec<TokenId> {
    let list = value.as_array().expect("a list");
    list.iter().map(|id| TokenId(id.as_u64().expect("an id") as u32)).collect()
}
