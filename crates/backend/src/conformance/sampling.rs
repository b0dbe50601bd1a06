//! Sampling and scoring: exactly what the sampler gives for the same logits.

use std::sync::Arc;

use oarlock_types::{LogitRules, SamplingParams, SlotError, TokenId};

use crate::{
    Backend, BackendLimits, History, LogitKind, LogitRow, OracleBackend, RowResult, RowSet,
};

use super::{Make, TestStep, limits, oracle, random_values};

const VOCABULARY: usize = 5000;

fn rules() -> LogitRules {
    LogitRules {
        bad_words: vec![vec![TokenId(2), TokenId(11)], vec![TokenId(12)]],
        min_tokens: 6,
        min_tokens_banned: vec![TokenId(0), TokenId(1)],
        bias: vec![(TokenId(3), -2.5), (TokenId(20), 4.0)],
        repetition_penalty: 1.3,
        frequency_penalty: 0.4,
        presence_penalty: 0.7,
        ..LogitRules::default()
    }
}

fn params() -> Vec<SamplingParams> {
    let base = SamplingParams::default();
    vec![
        SamplingParams { temperature: 0.0, top_logprobs: Some(3), ..base.clone() },
        SamplingParams { seed: 1, ..base.clone() },
        SamplingParams { seed: 2, top_k: 40, top_p: 0.9, ..base.clone() },
        SamplingParams {
            seed: 3,
            min_p: 0.05,
            temperature: 0.7,
            top_logprobs: Some(0),
            ..base.clone()
        },
        SamplingParams { seed: 4, top_logprobs: Some(2), rules: Some(Arc::new(rules())), ..base },
    ]
}

/// One tile after the other over the wanted rows; logits are given, by wanted row.
fn run<B: Backend>(
    backend: &mut B,
    wanted: &[LogitRow<'_>],
    logits: &[f32],
    tile: usize,
) -> Vec<RowResult> {
    let mut from = backend.tensor(RowSet::Tokens, 16).expect("a tensor");
    let mut gathered = backend.tensor(RowSet::Gathered, 16).expect("a tensor");
    let mut scores = backend.float_tensor(RowSet::Gathered, VOCABULARY).expect("a tensor");
    TestStep::rows(20).begin(backend, wanted);
    backend.write(&mut from, &random_values(20 * 16, 1));
    let input = backend.read(&from);
    let mut start = 0;
    while start < wanted.len() {
        let end = wanted.len().min(start + tile);
        backend.gather(&mut gathered, &from, start..end);
        for (row, wanted) in backend.read(&gathered).chunks(16).zip(&wanted[start..end]) {
            assert_eq!(
                row,
                &input[wanted.row as usize * 16..][..16],
                "gathered row {}",
                wanted.row
            );
        }
        backend.write(&mut scores, &logits[start * VOCABULARY..end * VOCABULARY]);
        backend.sample(&scores);
        start = end;
    }
    let mut results = Vec::new();
    backend.finish_step(&mut results).expect("a working device");
    results
}

fn sample(params: &SamplingParams, position: u32) -> LogitKind<'_> {
    // Repeats itself, so that penalties count to more than one.
    const TOKENS: [TokenId; 8] = [
        TokenId(3),
        TokenId(5),
        TokenId(5),
        TokenId(9),
        TokenId(3),
        TokenId(3),
        TokenId(40),
        TokenId(2),
    ];
    LogitKind::Sample { params, position, history: History { tokens: &TOKENS, num_prompt: 3 } }
}

fn wanted(params: &[SamplingParams]) -> Vec<LogitRow<'_>> {
    let mut wanted = Vec::new();
    for row in 0..20 {
        if row % 3 == 0 {
            let kind = LogitKind::Score { token: TokenId(row * 7), top: 5 };
            wanted.push(LogitRow { row, kind });
        }
        if row % 2 == 0 {
            let params = &params[row as usize / 2 % params.len()];
            wanted.push(LogitRow { row, kind: sample(params, 100 + row) });
        }
    }
    wanted
}

/// Tokens and logprob bits are the oracle's; an invalid row fails alone.
pub(super) fn as_the_sampler<B: Backend>(make: Make<'_, B>) {
    let params = params();
    let wanted = wanted(&params);
    let mut logits = random_values(wanted.len() * VOCABULARY, 21);
    for logit in &mut logits {
        *logit *= 3.0;
    }
    logits[2 * VOCABULARY + 17] = f32::NAN;
    let got = run(&mut make(limits()), &wanted, &logits, 40);
    let want = run(&mut oracle(), &wanted, &logits, 40);
    assert_eq!(got, want, "sampled and scored rows");
    assert_eq!(got[2].outcome, Err(SlotError::InvalidLogits), "a row with a NaN");
    assert!(
        got.iter().enumerate().all(|(i, result)| i == 2 || result.outcome.is_ok()),
        "other rows"
    );
}

/// Gemma's vocabulary, with the best tokens at its ends.
pub(super) fn large_vocabulary<B: Backend>(make: Make<'_, B>) {
    fn run<B: Backend>(backend: &mut B, wanted: &[LogitRow<'_>], logits: &[f32]) -> Vec<RowResult> {
        let mut from = backend.tensor(RowSet::Tokens, 16).expect("a tensor");
        let mut gathered = backend.tensor(RowSet::Gathered, 16).expect("a tensor");
        let mut scores = backend.float_tensor(RowSet::Gathered, LARGE).expect("a tensor");
        TestStep::rows(wanted.len()).begin(backend, wanted);
        backend.write(&mut from, &vec![0.0; wanted.len() * 16]);
        backend.gather(&mut gathered, &from, 0..wanted.len());
        backend.write(&mut scores, logits);
        backend.sample(&scores);
        let mut results = Vec::new();
        backend.finish_step(&mut results).expect("a working device");
        results
    }
    const LARGE: usize = 1 << 18;
    let limits = BackendLimits { max_gathered: 5, ..limits() };
    let params = params();
    let row = |(row, params)| LogitRow { row, kind: sample(params, 100 + row) };
    let wanted: Vec<_> = (0..).zip(&params).map(row).collect();
    let mut logits = random_values(wanted.len() * LARGE, 23);
    logits[LARGE - 1] = 30.0;
    logits[LARGE] = 40.0;
    let got = run(&mut make(limits), &wanted, &logits);
    let want = run(&mut OracleBackend::new(limits), &wanted, &logits);
    assert_eq!(got, want, "sampled rows of a large vocabulary");
    let drawn = |row: usize| got[row].outcome.as_ref().expect("a token").0;
    assert_eq!(drawn(0), TokenId(LARGE as u32 - 1), "the last token is the best");
    assert_eq!(drawn(1), TokenId(0), "the first token is the best");
}

/// Tiles of any size give the same results.
pub(super) fn tiles<B: Backend>(make: Make<'_, B>) {
    let params = params();
    let wanted = wanted(&params);
    let logits = random_values(wanted.len() * VOCABULARY, 22);
    let mut backend = make(limits());
    let whole = run(&mut backend, &wanted, &logits, 40);
    for tile in [1, 3, 10] {
        assert_eq!(run(&mut backend, &wanted, &logits, tile), whole, "tiles of {tile}");
    }
}
