//! Tiny models in the hub's format, against what transformers computes of them in float32
//! (`fixtures/tiny/*/expected.json`). Needs no download.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod scoring;

use oarlock_backend::{Backend, BackendLimits, OracleBackend};
use oarlock_backend_cpu::{CpuBackend, CpuConfig};
use oarlock_model::Checkpoint;
use oarlock_testkit::{fixture, fixture_json};
use oarlock_types::{TokenId, TokenScore};
use scoring::{Model, ids, limits};
use serde_json::Value;

const MODELS: [&str; 3] = ["llama", "qwen2", "llama-tied-mqa"];
const NUM_BLOCKS: usize = 32;
const LIMITS: BackendLimits = limits(NUM_BLOCKS, 64);

/// What the reference says of one prompt.
struct Case {
    prompt: Vec<TokenId>,
    greedy: Vec<TokenId>,
    margins: Vec<f64>,
    /// Of each prompt token but the first.
    prompt_logprobs: Vec<f64>,
    /// The most likely tokens after the prompt.
    top: Vec<(TokenId, f64)>,
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn cases(model: &str) -> Vec<Case> {
    let file = fixture_json(&format!("tiny/{model}/expected.json"));
    let case = |case: &Value| Case {
        prompt: ids(&case["prompt"]),
        greedy: ids(&case["greedy24"]),
        margins: floats(&case["greedy_margins"]),
        prompt_logprobs: floats(&case["prompt_logprobs"]),
        top: ids(&case["top8_ids"]).into_iter().zip(floats(&case["top8_logprobs"])).collect(),
    };
    file["cases"].as_array().unwrap().iter().map(case).collect()
}

/// The greatest distance between our logprobs and the reference's, and of margins at which the first
/// choice differs.
fn compare<B: Backend>(name: &str, backend: B) -> (f64, f64) {
    let checkpoint = Checkpoint::open(&fixture(&format!("tiny/{name}"))).unwrap();
    let mut model = Model::load(&checkpoint, backend, NUM_BLOCKS);
    let (mut worst, mut worst_margin) = (0.0_f64, 0.0_f64);
    let mut near =
        |ours: f32, reference: f64| worst = worst.max((f64::from(ours) - reference).abs());
    for case in cases(name) {
        let all = [&case.prompt[..], &case.greedy[..]].concat();
        let scores = model.score(&all[..all.len() - 1], 0, &all[1..], LIMITS.max_tokens);
        let (prompt, answer) = scores.split_at(case.prompt.len() - 1);
        assert_eq!(case.prompt_logprobs.len(), prompt.len());
        for (score, reference) in prompt.iter().zip(&case.prompt_logprobs) {
            near(score.logprob, *reference);
        }
        let find = |score: &TokenScore, token| {
            score.top.iter().find(|ranked| ranked.token == token).expect("among twenty").logprob
        };
        for (token, reference) in &case.top {
            near(find(&answer[0], *token), *reference);
        }
        for ((score, token), margin) in answer.iter().zip(&case.greedy).zip(&case.margins) {
            if score.top[0].token != *token {
                worst_margin = worst_margin.max(*margin);
            }
        }
    }
    (worst, worst_margin)
}

#[test]
fn the_oracle_agrees_with_float32() {
    for name in MODELS {
        let (worst, margin) = compare(name, OracleBackend::new(LIMITS));
        eprintln!("{name}: worst logprob {worst:.6}, worst margin of another choice {margin:.6}");
        assert!(worst <= 1e-4, "{name}: {worst}");
        assert!(margin <= 1e-4, "{name}: {margin}");
    }
}

#[test]
fn the_cpu_agrees_within_bfloat16() {
    for name in MODELS {
        let config = CpuConfig { threads: 2, instruction_set: None };
        let (worst, margin) = compare(name, CpuBackend::new(config, LIMITS).unwrap());
        eprintln!("{name}: worst logprob {worst:.6}, worst margin of another choice {margin:.6}");
        // bfloat16 operands in three layers of random weights with logits of up to ten.
        assert!(worst <= 0.2, "{name}: {worst}");
        assert!(margin <= 0.1, "{name}: {margin}");
    }
}

#[test]
fn cards_come_from_the_folder() {
    let checkpoint = Checkpoint::open(&fixture("tiny/qwen2")).unwrap();
    let card = checkpoint.card().unwrap();
    assert_eq!((card.name.as_str(), card.architecture.as_str()), ("qwen2", "qwen2"));
    assert_eq!((card.vocab_size, card.context_length), (320, 512));
    assert_eq!(card.eos_token_ids, [TokenId(2)]);
    assert_eq!((card.bos_token_id, card.add_bos), (Some(TokenId(1)), false));
    assert!(card.tokenizer.is_none() && card.chat_template.is_none());
    assert!(card.num_parameters > 100_000);
}
