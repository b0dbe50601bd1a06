//! The demo model on the float32 oracle against what transformers computes in float32.

use crate::scoring::{Model, ids, limits};
use oarlock_backend::{Backend, OracleBackend};
use oarlock_model::Checkpoint;
use oarlock_testkit::{demo_model, fixture_json};
use oarlock_types::TokenId;

/// The reference's top-5 logprobs at every position of `greedy`, for the two shortest cases.
#[test]
fn the_oracle_agrees_with_float32_within_a_thousandth() {
    let Some(path) = demo_model() else { return };
    let file = fixture_json("qwen2.5-coder-0.5b/generation.json");
    let mut cases = file["cases"].as_array().expect("cases").clone();
    cases.sort_by_key(|case| ids(&case["prompt_ids"]).len());
    let checkpoint = Checkpoint::open(&path).unwrap();
    let num_blocks = 8;
    let limits = limits(num_blocks, 128);
    let oracle = OracleBackend::new(limits);
    assert!(oracle.instruction_set().contains("oracle"));
    let mut model = Model::load(&checkpoint, oracle, num_blocks);
    for case in &cases[..2] {
        let prompt = ids(&case["prompt_ids"]);
        let greedy = ids(&case["greedy"]);
        let all = [prompt.clone(), greedy.clone()].concat();
        let scores = model.score(&all, prompt.len() - 1, &greedy, limits.max_tokens);
        let mut worst = 0.0_f64;
        for (score, reference) in scores.iter().zip(case["top5"].as_array().expect("positions")) {
            let top = &score.top;
            for pair in reference.as_array().expect("five") {
                let id = TokenId(pair[0].as_u64().expect("an id") as u32);
                let ours =
                    top.iter().find(|ranked| ranked.token == id).expect("among the best twenty");
                worst =
                    worst.max((f64::from(ours.logprob) - pair[1].as_f64().expect("a float")).abs());
            }
        }
        eprintln!("{} positions, worst difference {worst:.6}", greedy.len());
        assert!(worst <= 1e-3, "{worst}");
    }
}
