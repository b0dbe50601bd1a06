//! Tiny models in the hub's format, against what transformers computes of them in float32
//! (`fixtures/tiny/*/expected.json`). Needs no download.

use oarlock_backend::{Backend, BackendLimits, OracleBackend};
use oarlock_backend_cpu::{CpuBackend, CpuConfig, Dtype};
use oarlock_model::{BufferType, Checkpoint, Quantization};
use oarlock_testkit::{fixture, fixture_json};
use oarlock_types::{TokenId, TokenScore};
use serde_json::Value;

use crate::scoring::{Model, ids, limits};

const MODELS: [&str; 11] = [
    "llama",
    "llama-tied-mqa",
    "llama3-rope",
    "mistral-swa",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen3-moe",
    "gemma2",
    "gemma3",
    "phi3",
];
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

/// Scores of every token after the first, and of the answer.
fn scores<B: Backend>(name: &str, backend: B) -> Vec<Vec<TokenScore>> {
    scores_with(name, backend, BufferType::Float32)
}

fn scores_with<B: Backend>(
    name: &str,
    backend: B,
    frequencies: BufferType,
) -> Vec<Vec<TokenScore>> {
    let checkpoint = Checkpoint::open(&fixture(&format!("tiny/{name}"))).unwrap();
    score_all(name, &checkpoint.with_buffers(frequencies), backend)
}

fn score_all<B: Backend>(name: &str, checkpoint: &Checkpoint, backend: B) -> Vec<Vec<TokenScore>> {
    let mut model = Model::load(checkpoint, backend, NUM_BLOCKS);
    let score = |case: Case| {
        let all = [&case.prompt[..], &case.greedy[..]].concat();
        model.score(&all[..all.len() - 1], 0, &all[1..], LIMITS.max_tokens)
    };
    cases(name).into_iter().map(score).collect()
}

/// The reference was computed by a model that had been cast to bfloat16 and back as a whole, its inverse
/// frequencies included: transformers 5.19 gives these numbers to 1e-5 after `.to(bfloat16).float()`, and is
/// itself 0.09 to 0.34 off where it loads the folder as people do. What people run is the default here; the
/// reference is compared with what it is of.
#[test]
fn the_oracle_agrees_with_float32() {
    for name in MODELS {
        let all = scores_with(name, OracleBackend::new(LIMITS), BufferType::Bfloat16);
        let (mut worst, mut margin) = (0.0_f64, 0.0_f64);
        for (case, scores) in cases(name).iter().zip(all) {
            let (prompt, answer) = scores.split_at(case.prompt.len() - 1);
            assert_eq!(case.prompt_logprobs.len(), prompt.len());
            let mut near =
                |ours: f32, theirs: f64| worst = worst.max((f64::from(ours) - theirs).abs());
            for (score, reference) in prompt.iter().zip(&case.prompt_logprobs) {
                near(score.logprob, *reference);
            }
            for (token, reference) in &case.top {
                let ours = answer[0].top.iter().find(|ranked| ranked.token == *token);
                near(ours.expect("among twenty").logprob, *reference);
            }
            for ((score, token), lead) in answer.iter().zip(&case.greedy).zip(&case.margins) {
                if score.top[0].token != *token {
                    margin = margin.max(*lead);
                }
            }
        }
        eprintln!("{name}: worst logprob {worst:.6}, worst margin of another choice {margin:.6}");
        assert!(worst <= 5e-5, "{name}: {worst}");
        assert!(margin <= 5e-5, "{name}: {margin}");
    }
}

/// Distances of a backend's logprobs from the reference's, ascending: of prompts, of the most likely tokens after
/// them, and of the greedy answer where its margin is known.
fn distances<B: Backend>(name: &str, backend: B, buffers: BufferType) -> Vec<f64> {
    distances_of(name, &scores_with(name, backend, buffers))
}

fn distances_of(name: &str, scores: &[Vec<TokenScore>]) -> Vec<f64> {
    let mut all = Vec::new();
    for (case, scores) in cases(name).iter().zip(scores) {
        let (prompt, answer) = scores.split_at(case.prompt.len() - 1);
        let pairs = prompt.iter().zip(&case.prompt_logprobs);
        all.extend(pairs.map(|(score, reference)| (f64::from(score.logprob) - reference).abs()));
        for (token, reference) in &case.top {
            let ours = answer[0].top.iter().find(|ranked| ranked.token == *token);
            all.extend(ours.map(|ours| (f64::from(ours.logprob) - reference).abs()));
        }
    }
    all.sort_by(f64::total_cmp);
    all
}

/// With bfloat16 operands, in models whose random weights make logits of ten, on average and at the 99th
/// percentile; angles as people run models, and as the reference has them.
#[test]
fn the_cpu_agrees_within_bfloat16() {
    for name in MODELS {
        for buffers in [BufferType::Float32, BufferType::Bfloat16] {
            let config = CpuConfig { threads: 2, instruction_set: None, ..CpuConfig::default() };
            let all = distances(name, CpuBackend::new(config, LIMITS).unwrap(), buffers);
            let mean = all.iter().sum::<f64>() / all.len() as f64;
            let p99 = all[all.len() * 99 / 100];
            eprintln!(
                "{name}, buffers in {buffers}: {mean:.4} on average, {p99:.4} at the 99th percentile"
            );
            assert!(mean <= 0.1 && p99 <= 0.5, "{name}: {mean}, {p99}");
        }
    }
}

/// What `--quantize` costs: random weights, whose blocks have no structure, lose more than trained ones.
#[test]
fn quantizing_at_load_costs_what_it_should() {
    for name in MODELS {
        let mut means = Vec::new();
        for (quantization, most) in
            [(Quantization::None, 0.1), (Quantization::Q8_0, 0.15), (Quantization::Q4_0, 2.0)]
        {
            let checkpoint = Checkpoint::open(&fixture(&format!("tiny/{name}"))).unwrap();
            let checkpoint =
                checkpoint.with_buffers(BufferType::Bfloat16).with_quantization(quantization);
            let config = CpuConfig { threads: 2, ..CpuConfig::default() };
            let backend = CpuBackend::new(config, LIMITS).unwrap();
            let all = distances_of(name, &score_all(name, &checkpoint, backend));
            let mean = all.iter().sum::<f64>() / all.len() as f64;
            let p99 = all[all.len() * 99 / 100];
            eprintln!(
                "{name}, {quantization}: {mean:.4} on average, {p99:.4} at the 99th percentile"
            );
            assert!(mean <= most, "{name}: {mean}");
            means.push(mean);
        }
        // It does something, and the more the fewer the bits.
        assert!(means[0] < means[2] && means[1] < means[2], "{name}: {means:?}");
    }
}

/// The greatest distance of a backend's logprobs from the oracle's.
fn distance<B: Backend>(name: &str, backend: B) -> f32 {
    let (ours, oracle) = (scores(name, backend), scores(name, OracleBackend::new(LIMITS)));
    let pairs = ours.iter().flatten().zip(oracle.iter().flatten());
    pairs.map(|(a, b)| (a.logprob - b.logprob).abs()).fold(0.0, f32::max)
}

#[test]
fn the_cpu_in_float32_is_the_oracle() {
    for name in MODELS {
        let config = CpuConfig { threads: 2, dtype: Dtype::Float32, ..CpuConfig::default() };
        let worst = distance(name, CpuBackend::new(config, LIMITS).unwrap());
        eprintln!("{name}: worst logprob {worst:.6}");
        assert!(worst <= 5e-5, "{name}: {worst}");
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
