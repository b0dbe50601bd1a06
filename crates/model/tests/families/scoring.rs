//! A loaded model that scores tokens, for the tests that compare logprobs.

use oarlock_backend::{
    Backend, BackendLimits, BlockTables, ChunkRows, LogitKind, LogitRow, StepInput,
};
use oarlock_collective::Alone;
use oarlock_model::{Checkpoint, Decoder, load};
use oarlock_testkit::fixture_json;
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

/// What transformers says of one prompt.
pub(crate) struct Case {
    pub(crate) prompt: Vec<TokenId>,
    greedy: Vec<TokenId>,
    margins: Vec<f64>,
    /// Of each prompt token but the first.
    prompt_logprobs: Vec<f64>,
    /// The most likely tokens after the prompt.
    top: Vec<(TokenId, f64)>,
}

/// The cases of a folder of fixtures.
pub(crate) fn cases(folder: &str) -> Vec<Case> {
    let floats = |value: &Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
    };
    let case = |case: &Value| Case {
        prompt: ids(&case["prompt"]),
        greedy: ids(&case["greedy24"]),
        margins: floats(&case["greedy_margins"]),
        prompt_logprobs: floats(&case["prompt_logprobs"]),
        top: ids(&case["top8_ids"]).into_iter().zip(floats(&case["top8_logprobs"])).collect(),
    };
    let file = fixture_json(&format!("{folder}/expected.json"));
    file["cases"].as_array().unwrap().iter().map(case).collect()
}

impl Case {
    /// Scores of every token after the first, of prompt and answer, computed in one chunk.
    pub(crate) fn score<B: Backend>(&self, model: &mut Model<B>) -> Vec<TokenScore> {
        let all = [&self.prompt[..], &self.greedy].concat();
        model.score(&all[..all.len() - 1], 0, &all[1..], all.len())
    }

    /// Distances of logprobs from the reference's: of the prompt, and of the most likely tokens after it. One that
    /// is not among ours is at least as far as the last of ours.
    pub(crate) fn distances(&self, scores: &[TokenScore]) -> Vec<f64> {
        let (prompt, answer) = scores.split_at(self.prompt.len() - 1);
        assert_eq!(self.prompt_logprobs.len(), prompt.len());
        let pairs =
            prompt.iter().map(|score| score.logprob).zip(self.prompt_logprobs.iter().copied());
        let top = &answer[0].top;
        let of_top = self.top.iter().map(|(token, reference)| {
            let ours = top.iter().find(|ranked| ranked.token == *token).or(top.last());
            (ours.expect("twenty tokens").logprob, *reference)
        });
        pairs.chain(of_top).map(|(ours, theirs)| (f64::from(ours) - theirs).abs()).collect()
    }

    /// The greatest lead of a token that the reference chose and the model did not.
    pub(crate) fn lead(&self, scores: &[TokenScore]) -> f64 {
        let answer = scores[self.prompt.len() - 1..].iter().zip(&self.greedy).zip(&self.margins);
        let others = answer.filter(|((score, token), _)| score.top[0].token != **token);
        others.map(|(_, margin)| *margin).fold(0.0, f64::max)
    }
}
