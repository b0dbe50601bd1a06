//! The tiny models of the hub, written as GGUF files in the way of llama.cpp's converter, give the same scores
//! as their folders: keys, names, and what a converter does to tensors (queries and keys of Llama are
//! reordered, Gemma's norms get their 1, experts are stacked, factors of frequencies become a tensor).

use std::collections::BTreeMap;
use std::fs;

use half::bf16;
use oarlock_backend::{BackendLimits, OracleBackend};
use oarlock_model::Checkpoint;
use oarlock_testkit::{GgufWriter, fixture, fixture_json};
use oarlock_types::{Shard, TokenId};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::scoring::{Model, ids, limits};

pub(crate) const NUM_BLOCKS: usize = 32;
pub(crate) const LIMITS: BackendLimits = limits(NUM_BLOCKS, 64);
/// GGUF's type numbers.
const F32: u32 = 0;
const BF16: u32 = 30;

/// Folder, architecture of the file, and what the converter does.
const MODELS: [(&str, &str, Rules); 12] = [
    ("llama", "llama", Rules { is_reordered: true, ..PLAIN }),
    ("llama3-rope", "llama", Rules { is_reordered: true, ..PLAIN }),
    // The converter writes no window for it; a file that has one means it.
    ("mistral-swa", "llama", Rules { is_reordered: true, ..PLAIN }),
    ("mixtral", "llama", Rules { is_reordered: true, ..PLAIN }),
    ("llama-tied-mqa", "llama", Rules { is_reordered: true, ..PLAIN }),
    ("qwen2", "qwen2", PLAIN),
    ("qwen3", "qwen3", PLAIN),
    ("qwen3-moe", "qwen3moe", PLAIN),
    ("gemma2", "gemma2", Rules { norms_get_one: true, ..PLAIN }),
    ("gemma3", "gemma3", Rules { norms_get_one: true, ..PLAIN }),
    ("phi3", "phi3", PLAIN),
    ("llama-biases", "llama", Rules { is_reordered: true, ..PLAIN }),
];

#[derive(Clone, Copy)]
struct Rules {
    is_reordered: bool,
    norms_get_one: bool,
}

const PLAIN: Rules = Rules { is_reordered: false, norms_get_one: false };

/// A tensor in float32.
struct Tensor {
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// Where a folder is.
fn place(name: &str) -> String {
    let folder = if name == "llama-biases" { "relatives" } else { "tiny" };
    format!("{folder}/{name}")
}

fn tensors(folder: &str) -> BTreeMap<String, Tensor> {
    let bytes = fs::read(fixture(&place(folder)).join("model.safetensors")).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let one = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        let data = view.data();
        let values = if view.dtype() == safetensors::Dtype::F32 {
            data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        } else {
            let pairs = data.as_chunks::<2>().0.iter();
            pairs.map(|pair| bf16::from_le_bytes(*pair).to_f32()).collect()
        };
        (name, Tensor { shape: view.shape().to_vec(), values })
    };
    all.tensors().into_iter().map(one).collect()
}

/// Parts of a name on the hub and in the file.
fn file_name(name: &str, architecture: &str) -> String {
    let is_gemma = architecture.starts_with("gemma");
    let ffn_norm = if is_gemma { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
    let pairs = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        (ffn_norm, "ffn_norm"),
        ("post_attention_layernorm", "post_attention_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.qkv_proj", "attn_qkv"),
        ("self_attn.q_norm", "attn_q_norm"),
        ("self_attn.k_norm", "attn_k_norm"),
        ("mlp.gate_up_proj", "ffn_up"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("block_sparse_moe.gate", "ffn_gate_inp"),
        ("mlp.gate.", "ffn_gate_inp."),
    ];
    pairs.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
}

/// Rows of each head in turn from its halves, as files of Llama have them.
fn reordered(tensor: &Tensor, heads: usize) -> Vec<f32> {
    let width = tensor.values.len() / tensor.shape[0];
    let dim = tensor.shape[0] / heads;
    let rows = (0..tensor.shape[0]).map(|row| {
        let (head, at) = (row / dim, row % dim);
        head * dim + at % 2 * (dim / 2) + at / 2
    });
    rows.flat_map(|row| &tensor.values[row * width..][..width]).copied().collect()
}

fn bytes(values: &[f32], kind: u32) -> Vec<u8> {
    if kind == F32 {
        return values.iter().flat_map(|value| value.to_le_bytes()).collect();
    }
    values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect()
}

/// The experts of a layer's part, one after the other.
fn stacked(all: &BTreeMap<String, Tensor>, prefix: &str, part: &str, count: usize) -> Tensor {
    let tensors: Vec<_> = (0..count)
        .map(|expert| &all[&format!("{prefix}.experts.{expert}.{part}.weight")])
        .collect();
    let shape = [&[count][..], &tensors[0].shape].concat();
    Tensor { shape, values: tensors.iter().flat_map(|tensor| &tensor.values).copied().collect() }
}

fn with_tensors(
    mut file: GgufWriter,
    folder: &str,
    architecture: &str,
    rules: Rules,
) -> GgufWriter {
    let config = fixture_json(&format!("{}/config.json", place(folder)));
    let number = |field: &str| config[field].as_u64().unwrap() as usize;
    let all = tensors(folder);
    let mut add = |name: &str, tensor: &Tensor, values: &[f32]| {
        let dimensions: Vec<u64> = tensor.shape.iter().rev().map(|size| *size as u64).collect();
        let is_small = dimensions.len() == 1 || name.contains("ffn_gate_inp");
        let kind = if is_small || folder == "llama-biases" { F32 } else { BF16 };
        file = std::mem::take(&mut file).tensor(name, &dimensions, kind, &bytes(values, kind));
    };
    for (name, tensor) in &all {
        if name.contains(".experts.") {
            continue;
        }
        let mut values = tensor.values.clone();
        if rules.is_reordered && name.contains("q_proj") {
            values = reordered(tensor, number("num_attention_heads"));
        } else if rules.is_reordered && name.contains("k_proj") {
            values = reordered(tensor, number("num_key_value_heads"));
        } else if rules.norms_get_one && name.contains("norm") {
            for value in &mut values {
                *value += 1.0;
            }
        }
        add(&file_name(name, architecture), tensor, &values);
    }
    if let Some(count) = config["num_local_experts"].as_u64() {
        for layer in 0..number("num_hidden_layers") {
            let (inside, parts) = if folder == "mixtral" {
                ("block_sparse_moe", ["w1", "w3", "w2"])
            } else {
                ("mlp", ["gate_proj", "up_proj", "down_proj"])
            };
            for (part, own) in parts.into_iter().zip(["gate", "up", "down"]) {
                let prefix = format!("model.layers.{layer}.{inside}");
                let tensor = stacked(&all, &prefix, part, count as usize);
                let values = tensor.values.clone();
                add(&format!("blk.{layer}.ffn_{own}_exps.weight"), &tensor, &values);
            }
        }
    }
    if folder == "llama3-rope" {
        let factors = llama3_factors(&config);
        file =
            file.tensor("rope_freqs.weight", &[factors.len() as u64], F32, &bytes(&factors, F32));
    }
    file
}

/// What the converter computes of Llama 3's rope scaling.
fn llama3_factors(config: &Value) -> Vec<f32> {
    let rope = &config["rope_parameters"];
    let number = |field: &str| rope[field].as_f64().unwrap();
    let (theta, factor) = (number("rope_theta"), number("factor"));
    let (low, high) = (number("low_freq_factor"), number("high_freq_factor"));
    let context = number("original_max_position_embeddings");
    let dim = config["head_dim"].as_u64().unwrap();
    let one = |pair: u64| {
        let wave = std::f64::consts::TAU * theta.powf(2.0 * pair as f64 / dim as f64);
        if wave < context / high {
            1.0
        } else if wave > context / low {
            factor
        } else {
            let smooth = (context / wave - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..dim / 2).map(|pair| one(pair) as f32).collect()
}

/// The tiny Llama 3, whose factors of frequencies are a tensor.
pub(crate) fn llama_with_factors() -> GgufWriter {
    converted("llama3-rope", "llama", Rules { is_reordered: true, ..PLAIN })
}

fn converted(folder: &str, architecture: &str, rules: Rules) -> GgufWriter {
    let config = fixture_json(&format!("{}/config.json", place(folder)));
    let mut file = GgufWriter::default().string("general.architecture", architecture);
    let key = |name: &str| format!("{architecture}.{name}");
    for (name, field) in [
        ("block_count", "num_hidden_layers"),
        ("embedding_length", "hidden_size"),
        ("attention.head_count", "num_attention_heads"),
        ("attention.head_count_kv", "num_key_value_heads"),
        ("attention.key_length", "head_dim"),
        ("attention.value_length", "head_dim"),
        ("feed_forward_length", "intermediate_size"),
        ("vocab_size", "vocab_size"),
        ("context_length", "max_position_embeddings"),
        ("attention.sliding_window", "sliding_window"),
        ("expert_count", "num_local_experts"),
        ("expert_used_count", "num_experts_per_tok"),
        ("expert_feed_forward_length", "moe_intermediate_size"),
    ] {
        if let Some(value) = config[field].as_u64() {
            file = file.u32(&key(name), value as u32);
        }
    }
    if architecture == "phi3" && config["sliding_window"].is_null() {
        // What the converter writes of no window.
        file = file.u32(&key("attention.sliding_window"), 0);
    }
    let rope = &config["rope_parameters"];
    let rope = if rope["full_attention"].is_null() { rope } else { &rope["full_attention"] };
    for (name, value) in [
        ("attention.layer_norm_rms_epsilon", &config["rms_norm_eps"]),
        ("rope.freq_base", &rope["rope_theta"]),
        ("attn_logit_softcapping", &config["attn_logit_softcapping"]),
        ("final_logit_softcapping", &config["final_logit_softcapping"]),
    ] {
        if let Some(value) = value.as_f64() {
            file = file.f32(&key(name), value as f32);
        }
    }
    with_tensors(file, folder, architecture, rules)
}

#[test]
fn files_and_folders_are_the_same_models() {
    let folder = tempfile::tempdir().unwrap();
    for (name, architecture, rules) in MODELS {
        let path = folder.path().join(format!("{name}.gguf"));
        fs::write(&path, converted(name, architecture, rules).finish()).unwrap();
        let file = Checkpoint::open(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        let original = Checkpoint::open(&fixture(&place(name))).unwrap();
        assert_eq!(file.tensor_parallel_degrees(), original.tensor_parallel_degrees(), "{name}");
        assert!(file.shard_bytes(Shard::WHOLE) >= original.shard_bytes(Shard::WHOLE), "{name}");
        let cases = fixture_json(&format!("{}/expected.json", place(name)));
        let prompts = cases["cases"].as_array().unwrap().iter().map(|case| ids(&case["prompt"]));
        let prompt: Vec<TokenId> = prompts.max_by_key(Vec::len).unwrap();
        let scores = |checkpoint: &Checkpoint| {
            let mut model = Model::load(checkpoint, OracleBackend::new(LIMITS), NUM_BLOCKS);
            model.score(&prompt[..prompt.len() - 1], 0, &prompt[1..], LIMITS.max_tokens)
        };
        let pairs = scores(&file).into_iter().zip(scores(&original));
        let worst = pairs.map(|(a, b)| (a.logprob - b.logprob).abs()).fold(0.0, f32::max);
        eprintln!("{name}: {} tokens, {worst:.7} apart at most", prompt.len());
        assert!(worst <= 2e-5, "{name}: {worst}");
    }
}
