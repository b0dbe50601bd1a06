//! A Gemma 3 of random weights with everything that the 270M model lacks: scaled angles, soft caps,
//! several key heads, a scale of its own (`fixtures/tiny-gemma3/make.py`). Needs no download.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use oarlock_backend::{
    Backend, BackendLimits, BlockTables, ChunkRows, LogitKind, LogitRow, OracleBackend, StepInput,
};
use oarlock_backend_cpu::{CpuBackend, CpuConfig};
use oarlock_model::{Checkpoint, load};
use oarlock_testkit::{fixture, fixture_json};
use oarlock_types::{BLOCK_TOKENS, BlockId, SlotId, TokenId, TokenScore};
use serde_json::Value;

const NUM_BLOCKS: usize = 20;
const LIMITS: BackendLimits = BackendLimits {
    max_tokens: NUM_BLOCKS * BLOCK_TOKENS,
    max_gathered: 64,
    max_chunks: 1,
    max_positions: NUM_BLOCKS * BLOCK_TOKENS,
};

/// Scores of the token after each one; of the last token, those of the twenty best.
fn score<B: Backend>(mut backend: B, prompts: &[Vec<TokenId>]) -> Vec<Vec<TokenScore>> {
    let checkpoint = Checkpoint::open(&fixture("tiny-gemma3/model.gguf")).unwrap();
    let mut model = load(&checkpoint, &mut backend, NUM_BLOCKS, &mut |_| ()).unwrap();
    let mut tables = BlockTables::new(1, NUM_BLOCKS);
    (0..NUM_BLOCKS as u32).for_each(|block| tables.push(SlotId(0), BlockId(block)));
    let mut score_one = |tokens: &Vec<TokenId>| {
        let row = |row: usize| {
            let token = *tokens.get(row + 1).unwrap_or(&TokenId(0));
            LogitRow { row: row as u32, kind: LogitKind::Score { token, top: 20 } }
        };
        let logit_rows: Vec<_> = (0..tokens.len()).map(row).collect();
        let rows = tokens.len() as u32;
        let input = StepInput {
            tokens,
            chunks: &[ChunkRows { slot: SlotId(0), first_row: 0, rows, start: 0 }],
            block_tables: &tables,
            logit_rows: &logit_rows,
        };
        let mut results = Vec::new();
        model.step(&mut backend, &input, &mut results).unwrap();
        results.into_iter().map(|result| result.outcome.unwrap().1.unwrap()).collect()
    };
    prompts.iter().map(&mut score_one).collect()
}

fn floats(value: &Value) -> Vec<f64> {
    let list = value.as_array().expect("a list");
    list.iter().map(|number| number.as_f64().expect("a number")).collect()
}

/// The greatest distance between our logprobs and the reference's.
fn worst(cases: &[Value], scores: &[Vec<TokenScore>]) -> f64 {
    let mut worst = 0.0_f64;
    for (case, scores) in cases.iter().zip(scores) {
        let (last, before) = scores.split_last().expect("scores");
        for (score, reference) in before.iter().zip(floats(&case["token_logprobs"])) {
            worst = worst.max((f64::from(score.logprob) - reference).abs());
        }
        let reference = floats(&case["last_logprobs"]);
        for ranked in &last.top {
            let difference = f64::from(ranked.logprob) - reference[ranked.token.index()];
            worst = worst.max(difference.abs());
        }
        assert_eq!(last.top.len(), 20);
    }
    worst
}

#[test]
fn scaled_angles_caps_and_windows_are_as_in_transformers() {
    let file = fixture_json("tiny-gemma3/expected.json");
    let cases = file["cases"].as_array().expect("cases");
    let id = |value: &Value| TokenId(value.as_u64().expect("an id") as u32);
    let prompt = |case: &Value| case["prompt"].as_array().expect("ids").iter().map(id).collect();
    let prompts: Vec<Vec<TokenId>> = cases.iter().map(prompt).collect();
    let oracle = worst(cases, &score(OracleBackend::new(LIMITS), &prompts));
    let config = CpuConfig { threads: 2, instruction_set: None };
    let cpu = worst(cases, &score(CpuBackend::new(config, LIMITS).unwrap(), &prompts));
    eprintln!("worst logprob: the oracle {oracle:.6}, the CPU {cpu:.6}");
    assert!(oracle <= 1e-4, "{oracle}");
    // bfloat16 operands in seven layers of random weights.
    assert!(cpu <= 0.15, "{cpu}");
}
