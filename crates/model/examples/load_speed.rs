//! Speed of loading a model on the CPU backend from a file that the page cache holds, and of its hash.
//!
//! `cargo run --release -p oarlock-model --example load_speed [threads] [model]`: without a model, of a folder
//! with 0.66 GB of bfloat16 weights that is made for it.
#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use oarlock_backend::BackendLimits;
use oarlock_backend::quant::SplitMix;
use oarlock_backend_cpu::{CpuBackend, CpuConfig};
use oarlock_collective::Alone;
use oarlock_model::{Checkpoint, load};
use oarlock_types::Shard;
use serde_json::json;

const HIDDEN: usize = 2048;
const FEED_FORWARD: usize = 8192;
const KV_WIDTH: usize = 512;
const VOCABULARY: usize = 32_000;
const LAYERS: usize = 4;
/// What is measured takes turns this often; the best of each are reported, since machines are shared.
const ROUNDS: usize = 7;

fn main() {
    let argument = |index: usize| std::env::args().nth(index);
    let threads = argument(1).and_then(|arg| arg.parse().ok()).unwrap_or(2);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = argument(2).map_or_else(|| write_model(folder.path()), PathBuf::from);
    let checkpoint = Checkpoint::open(&model).expect("a model");
    let gigabytes = checkpoint.shard_bytes(Shard::default()) as f64 / 1e9;
    let speed = |work: &dyn Fn()| {
        let start = Instant::now();
        work();
        gigabytes / start.elapsed().as_secs_f64()
    };
    let hash = || {
        black_box(checkpoint.hash(None, &AtomicBool::new(false), &|| ()).expect("a hash"));
    };
    let load_and_hash = || {
        std::thread::scope(|scope| {
            scope.spawn(hash);
            pack(&checkpoint, threads);
        });
    };
    let mut best = [0.0_f64; 4];
    for _ in 0..ROUNDS {
        let speeds = [
            speed(&|| read(&model)),
            speed(&|| pack(&checkpoint, threads)),
            speed(&hash),
            speed(&load_and_hash),
        ];
        for (best, speed) in best.iter_mut().zip(speeds) {
            *best = best.max(speed);
        }
    }
    println!("{gigabytes:.2} GB, {threads} threads; GB/s (of reading)");
    for (what, speed) in ["read", "loaded", "hashed", "loaded and hashed"].iter().zip(best) {
        println!("{what:18} {speed:5.2} ({:.2})", speed / best[0]);
    }
}

/// Loads the model and drops it.
fn pack(checkpoint: &Checkpoint, threads: usize) {
    let limits =
        BackendLimits { max_tokens: 16, max_gathered: 1, max_chunks: 1, max_positions: 256 };
    let config = CpuConfig { threads, ..CpuConfig::default() };
    let mut backend = CpuBackend::new(config, limits).expect("a backend");
    let decoder = load(checkpoint, &mut backend, Box::new(Alone), 16, &mut |_| ());
    black_box(&decoder.expect("a loaded model"));
}

/// Reads the weights on one thread.
fn read(model: &Path) {
    let path = if model.is_dir() { model.join("model.safetensors") } else { model.to_owned() };
    let mut file = std::fs::File::open(path).expect("the weights");
    let mut buffer = vec![0; 1 << 20];
    while file.read(&mut buffer).expect("the weights") > 0 {
        black_box(&buffer);
    }
}

/// A folder of the hub with random weights.
fn write_model(folder: &Path) -> PathBuf {
    let config = json!({
        "model_type": "llama", "hidden_size": HIDDEN, "num_attention_heads": 32,
        "num_key_value_heads": KV_WIDTH / 64, "num_hidden_layers": LAYERS,
        "intermediate_size": FEED_FORWARD, "vocab_size": VOCABULARY, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).expect("room on the disk");
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in shapes() {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        let entry = json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] });
        header.insert(format!("{name}.weight"), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut random = SplitMix(1);
    let some: Vec<u8> = (0..1 << 19)
        .flat_map(|_| half::bf16::from_f32(random.uniform() * 0.05).to_le_bytes())
        .collect();
    let path = folder.join("model.safetensors");
    let mut file = std::fs::File::create(path).expect("room on the disk");
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("room on the disk");
    file.write_all(header.as_bytes()).expect("room on the disk");
    while end > 0 {
        let len = end.min(some.len());
        file.write_all(&some[..len]).expect("room on the disk");
        end -= len;
    }
    folder.to_owned()
}

/// Names and shapes of the tensors.
fn shapes() -> Vec<(String, Vec<usize>)> {
    let mut shapes = vec![
        ("model.embed_tokens".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("lm_head".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.norm".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        for (part, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![KV_WIDTH, HIDDEN]),
            ("self_attn.v_proj", vec![KV_WIDTH, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![FEED_FORWARD, HIDDEN]),
            ("mlp.up_proj", vec![FEED_FORWARD, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, FEED_FORWARD]),
        ] {
            shapes.push((format!("model.layers.{layer}.{part}"), shape));
        }
    }
    shapes
}
