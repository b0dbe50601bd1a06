//! The demo model on the float32 oracle against what transformers computes in float32.

use oarlock_backend::{
    Backend, BackendLimits, BlockTables, ChunkRows, LogitKind, LogitRow, OracleBackend, StepInput,
};
use oarlock_model::{Checkpoint, load};
use oarlock_testkit::{demo_model, fixture_json};
use oarlock_types::{BLOCK_TOKENS, BlockId, SlotId, TokenId};
use serde_json::Value;

fn ids(value: &Value) -> Vec<TokenId> {
    let list = value.as_array().expect("a list");
    list.iter().map(|id| TokenId(id.as_u64().expect("an id") as u32)).collect()
}

/// The reference's top-5 logprobs at every position of `greedy`, for the two shortest cases.
#[test]
fn the_oracle_agrees_with_float32_within_a_thousandth() {
    let Some(path) = demo_model() else { return };
    let file = fixture_json("qwen2.5-coder-0.5b/generation.json");
    let mut cases = file["cases"].as_array().expect("cases").clone();
    cases.sort_by_key(|case| ids(&case["prompt_ids"]).len());
    let checkpoint = Checkpoint::open(&path).unwrap();
    let num_blocks = 8;
    let positions = num_blocks * BLOCK_TOKENS;
    let mut backend = OracleBackend::new(BackendLimits {
        max_tokens: positions,
        max_gathered: positions,
        max_chunks: 1,
        max_positions: positions,
    });
    let mut model = load(&checkpoint, &mut backend, num_blocks, &mut |_| ()).unwrap();
    for case in &cases[..2] {
        let prompt = ids(&case["prompt_ids"]);
        let greedy = ids(&case["greedy"]);
        let all = [prompt.clone(), greedy.clone()].concat();
        let mut block_tables = BlockTables::new(1, num_blocks);
        (0..num_blocks).for_each(|block| block_tables.push(SlotId(0), BlockId(block as u32)));
        let row = |index: usize| LogitRow {
            row: (prompt.len() - 1 + index) as u32,
            kind: LogitKind::Score { token: greedy[index], top: 20 },
        };
        let logit_rows: Vec<_> = (0..greedy.len()).map(row).collect();
        let chunk = ChunkRows { slot: SlotId(0), first_row: 0, rows: all.len() as u32, start: 0 };
        let input = StepInput {
            tokens: &all,
            chunks: &[chunk],
            block_tables: &block_tables,
            logit_rows: &logit_rows,
        };
        let mut results = Vec::new();
        model.step(&mut backend, &input, &mut results).unwrap();
        let mut worst = 0.0_f64;
        for (result, reference) in results.iter().zip(case["top5"].as_array().expect("positions")) {
            let (_, score) = result.outcome.as_ref().unwrap();
            let top = &score.as_ref().expect("a score").top;
            for pair in reference.as_array().expect("five") {
                let id = TokenId(pair[0].as_u64().expect("an id") as u32);
                let ours =
                    top.iter().find(|ranked| ranked.token == id).expect("among the best twenty");
                worst =
                    worst.max((f64::from(ours.logprob) - pair[1].as_f64().expect("a float")).abs());
            }
        }
        eprintln!("{} positions, worst difference {worst:.6}", greedy.len());
        assert_eq!(results.len(), greedy.len());
        assert!(worst <= 1e-3, "{worst}");
    }
    assert!(backend.instruction_set().contains("oracle"));
}
