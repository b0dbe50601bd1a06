//! Every kind of block that GGUF files have: values as ggml decodes them, and models whose layers have them.

use std::fs;
use std::path::Path;

use oarlock_backend::quant::{dequantize_row, random_row};
use oarlock_backend::{BackendLimits, WeightKind};
use oarlock_backend_cpu::{CpuBackend, CpuConfig, Dtype};
use oarlock_model::Checkpoint;
use oarlock_testkit::{GgufWriter, f32_of, fixture_json};
use oarlock_types::TokenId;

use crate::scoring::{Model, limits};

/// Names, kinds and GGUF's type numbers.
const KINDS: [(&str, WeightKind, u32); 12] = [
    ("Q4_0", WeightKind::Q4_0, 2),
    ("Q4_1", WeightKind::Q4_1, 3),
    ("Q5_0", WeightKind::Q5_0, 6),
    ("Q5_1", WeightKind::Q5_1, 7),
    ("Q8_0", WeightKind::Q8_0, 8),
    ("Q2_K", WeightKind::Q2K, 10),
    ("Q3_K", WeightKind::Q3K, 11),
    ("Q4_K", WeightKind::Q4K, 12),
    ("Q5_K", WeightKind::Q5K, 13),
    ("Q6_K", WeightKind::Q6K, 14),
    ("IQ4_NL", WeightKind::Iq4Nl, 20),
    ("IQ4_XS", WeightKind::Iq4Xs, 23),
];
const F32: u32 = 0;

#[test]
fn blocks_have_the_values_that_ggml_gives_them() {
    let all = fixture_json("gguf/blocks.json");
    assert_eq!(all.as_object().unwrap().len(), KINDS.len());
    for (name, kind, _) in KINDS {
        let hex = all[name]["bytes"].as_str().unwrap();
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        let want: Vec<f32> = all[name]["values"].as_array().unwrap().iter().map(f32_of).collect();
        let mut got = vec![0.0; want.len()];
        dequantize_row(kind, &bytes, &mut got).unwrap();
        // To the bit, but for the sign of a zero.
        assert_eq!(got, want, "{name}");
    }
}

const HIDDEN: u64 = 256;
const VOCABULARY: u64 = 96;
const FEED_FORWARD: u64 = 512;
const NUM_BLOCKS: usize = 4;
const LIMITS: BackendLimits = limits(NUM_BLOCKS, 64);

/// A model of one layer whose matrices are all of one kind; with `is_decoded`, the floats that those stand for.
fn write(path: &Path, (kind, number): (WeightKind, u32), is_decoded: bool) {
    let mut file = GgufWriter::default()
        .string("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .u32("llama.context_length", 128)
        .u32("llama.embedding_length", HIDDEN as u32)
        .u32("llama.feed_forward_length", FEED_FORWARD as u32)
        .u32("llama.attention.head_count", 8)
        .u32("llama.attention.head_count_kv", 4)
        .u32("llama.vocab_size", VOCABULARY as u32)
        .f32("llama.rope.freq_base", 10_000.0)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    let one: Vec<u8> = (0..HIDDEN).flat_map(|_| 1.0_f32.to_le_bytes()).collect();
    for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"] {
        file = file.tensor(&format!("{name}.weight"), &[HIDDEN], F32, &one);
    }
    let matrices = [
        ("token_embd", HIDDEN, VOCABULARY),
        ("output", HIDDEN, VOCABULARY),
        ("blk.0.attn_q", HIDDEN, HIDDEN),
        ("blk.0.attn_k", HIDDEN, HIDDEN / 2),
        ("blk.0.attn_v", HIDDEN, HIDDEN / 2),
        ("blk.0.attn_output", HIDDEN, HIDDEN),
        ("blk.0.ffn_gate", HIDDEN, FEED_FORWARD),
        ("blk.0.ffn_up", HIDDEN, FEED_FORWARD),
        ("blk.0.ffn_down", FEED_FORWARD, HIDDEN),
    ];
    for (seed, (name, columns, rows)) in matrices.into_iter().enumerate() {
        let row = |row: u64| random_row(kind, columns as usize, 0.08, seed as u64 * 10_000 + row);
        let decoded = |row: Vec<u8>| {
            let mut values = vec![0.0; columns as usize];
            dequantize_row(kind, &row, &mut values).unwrap();
            values.into_iter().flat_map(f32::to_le_bytes).collect()
        };
        let stored: Vec<u8> = (0..rows).flat_map(row).collect();
        let floats: Vec<u8> =
            (0..rows).map(row).flat_map(|row| -> Vec<u8> { decoded(row) }).collect();
        let (number, data) = if is_decoded { (F32, floats) } else { (number, stored) };
        file = file.tensor(&format!("{name}.weight"), &[columns, rows], number, &data);
    }
    fs::write(path, file.finish()).unwrap();
}

fn logprobs(path: &Path, dtype: Dtype) -> Vec<f32> {
    let config = CpuConfig { threads: 2, dtype, ..CpuConfig::default() };
    let backend = CpuBackend::new(config, LIMITS).unwrap();
    let mut model = Model::load(&Checkpoint::open(path).unwrap(), backend, NUM_BLOCKS);
    let tokens: Vec<_> = (0..48).map(|at: u32| TokenId(at * 37 % VOCABULARY as u32)).collect();
    let scores = model.score(&tokens[..47], 0, &tokens[1..], LIMITS.max_tokens);
    scores.iter().map(|score| score.logprob).collect()
}

#[test]
fn a_model_of_any_kind_is_the_model_of_its_floats() {
    let folder = tempfile::tempdir().unwrap();
    for (name, kind, number) in KINDS {
        let [file, floats] = ["file", "floats"].map(|part| folder.path().join(part));
        write(&file, (kind, number), false);
        write(&floats, (kind, number), true);
        for dtype in [Dtype::Float32, Dtype::Bfloat16] {
            assert_eq!(logprobs(&file, dtype), logprobs(&floats, dtype), "{name} {dtype}");
        }
        let [got, want] = [(&file, Dtype::Auto), (&floats, Dtype::Float32)]
            .map(|(path, dtype)| logprobs(path, dtype));
        let apart = || got.iter().zip(&want).map(|(got, want)| (got - want).abs());
        let (mean, worst) = (apart().sum::<f32>() / got.len() as f32, apart().fold(0.0, f32::max));
        eprintln!("{name}: {mean:.4} apart in the mean, {worst:.4} at most");
        assert!(mean <= 0.05 && worst <= 0.3, "{name}: {mean} {worst}");
    }
}
