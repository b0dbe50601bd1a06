//! A Gemma 3 of random weights with everything that the 270M model lacks: scaled angles, soft caps,
//! several key heads, a scale of its own (`fixtures/tiny-gemma3/make.py`). Needs no download.

use oarlock_backend::{Backend, BackendLimits, OracleBackend};
use oarlock_backend_cpu::{CpuBackend, CpuConfig};
use oarlock_model::Checkpoint;
use oarlock_testkit::{fixture, fixture_json};
use oarlock_types::{TokenId, TokenScore};
use serde_json::Value;

use crate::scoring::{Model, ids, limits};

const NUM_BLOCKS: usize = 20;
const LIMITS: BackendLimits = limits(NUM_BLOCKS, 64);

/// Scores of the token after each one; of the last token, those of the twenty best.
fn score<B: Backend>(backend: B, prompts: &[Vec<TokenId>]) -> Vec<Vec<TokenScore>> {
    let checkpoint = Checkpoint::open(&fixture("tiny-gemma3/model.gguf")).unwrap();
    let mut model = Model::load(&checkpoint, backend, NUM_BLOCKS);
    let mut score_one = |tokens: &Vec<TokenId>| {
        let next = [&tokens[1..], &[TokenId(0)]].concat();
        model.score(tokens, 0, &next, LIMITS.max_tokens)
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
    let prompts: Vec<_> = cases.iter().map(|case| ids(&case["prompt"])).collect();
    let oracle = worst(cases, &score(OracleBackend::new(LIMITS), &prompts));
    let config = CpuConfig { threads: 2, instruction_set: None, ..CpuConfig::default() };
    let cpu = worst(cases, &score(CpuBackend::new(config, LIMITS).unwrap(), &prompts));
    eprintln!("worst logprob: the oracle {oracle:.6}, the CPU {cpu:.6}");
    assert!(oracle <= 1e-4, "{oracle}");
    // bfloat16 operands in seven layers of random weights.
    assert!(cpu <= 0.15, "{cpu}");
}
