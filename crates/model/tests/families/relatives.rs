//! Small relatives of the tiny models, against what transformers computes of them in float32 loaded as people
//! load a folder (`fixtures/relatives`, made by its `make.py`): biases, float16, partial and scaled angles,
//! windows on some layers, experts in some layers, widths that divide by little.

use oarlock_backend::{Backend, BackendLimits, OracleBackend};
use oarlock_backend_cpu::{CpuBackend, CpuConfig, Dtype};
use oarlock_model::Checkpoint;
use oarlock_testkit::{fixture, fixture_json};
use oarlock_types::TokenId;
use serde_json::Value;

use crate::scoring::{Model, ids, limits};

const NUM_BLOCKS: usize = 16;
const LIMITS: BackendLimits = limits(NUM_BLOCKS, 32);

const MODELS: [&str; 15] = [
    "llama-biases",
    "llama-linear-f16",
    "llama-one-head-group",
    "mistral-wide-heads",
    "mixtral-windowed",
    "qwen2-yarn",
    "qwen2-windowed",
    "qwen3-biases",
    "qwen3-moe-sparse",
    "gemma2-odd-width",
    "gemma3-scaled",
    "phi3-partial-windowed",
    "phi3-longrope",
    "llama-blocks",
    "qwen3-moe-blocks",
];

/// The greatest distance from the reference's logprobs, and the greatest lead of a token that was not chosen.
fn compare<B: Backend>(name: &str, backend: B) -> (f64, f64) {
    let checkpoint = Checkpoint::open(&fixture(&format!("relatives/{name}"))).unwrap();
    let mut model = Model::load(&checkpoint, backend, NUM_BLOCKS);
    let (mut worst, mut lead) = (0.0_f64, 0.0_f64);
    let file = fixture_json(&format!("relatives/{name}/expected.json"));
    let floats = |value: &Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
    };
    for case in file["cases"].as_array().unwrap() {
        let (prompt, greedy): (Vec<TokenId>, _) = (ids(&case["prompt"]), ids(&case["greedy24"]));
        let all = [&prompt[..], &greedy].concat();
        let scores = model.score(&all[..all.len() - 1], 0, &all[1..], LIMITS.max_tokens);
        let (of_prompt, of_answer) = scores.split_at(prompt.len() - 1);
        let mut near = |ours: f32, theirs: f64| worst = worst.max((f64::from(ours) - theirs).abs());
        for (score, reference) in of_prompt.iter().zip(floats(&case["prompt_logprobs"])) {
            near(score.logprob, reference);
        }
        for (token, reference) in ids(&case["top8_ids"]).iter().zip(floats(&case["top8_logprobs"]))
        {
            let ours = of_answer[0].top.iter().find(|ranked| ranked.token == *token);
            near(ours.expect("among twenty").logprob, reference);
        }
        let margins = floats(&case["greedy_margins"]);
        for ((score, token), margin) in of_answer.iter().zip(&greedy).zip(margins) {
            if score.top[0].token != *token {
                lead = lead.max(margin);
            }
        }
    }
    (worst, lead)
}

#[test]
fn relatives_agree_with_transformers() {
    for name in MODELS {
        let (worst, lead) = compare(name, OracleBackend::new(LIMITS));
        let config = CpuConfig { threads: 2, dtype: Dtype::Float32, ..CpuConfig::default() };
        let (on_cpu, lead_on_cpu) = compare(name, CpuBackend::new(config, LIMITS).unwrap());
        eprintln!("{name}: oracle {worst:.6}, CPU {on_cpu:.6} apart at most");
        assert!(worst.max(on_cpu) <= 1e-4, "{name}: {worst}, {on_cpu}");
        assert!(lead.max(lead_on_cpu) <= 1e-4, "{name}: {lead}, {lead_on_cpu}");
    }
}
