//! Decode and prompt speed of a model with the demo model's shapes and random weights: 24 layers,
//! hidden 896, 14 heads over 2 of 64, feed-forward 4864, vocabulary 151,936.
//!
//! `cargo run --release -p oarlock-backend-cpu --example demo_shapes [threads] [configuration]...`
//!
//! A configuration is `portable`, `avx2`, `avx512` or `amx`, with `-whole` for inner sums in one piece
//! instead of the contract's segments, and with `-bfloat16` or `-float32` for that `--dtype`. Several are
//! compared: their steps take turns, so that what else the machine does meets all alike, and each is
//! set against the first by the median of the rounds' ratios.
#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::time::{Duration, Instant};

use oarlock_backend::conformance::{Sequence, TestStep};
use oarlock_backend::quant::random_row;
use oarlock_backend::{
    Activation, AttentionParams, Backend, BackendLimits, History, InnerSplit, KvCacheShape,
    LogitKind, LogitRow, RotaryStyle, RowSet, WeightKind, WeightView,
};
use oarlock_backend_cpu::{CpuBackend, CpuConfig, InstructionSet};
use oarlock_types::SamplingParams;

const LAYERS: usize = 24;
const HIDDEN: usize = 896;
const FFN: usize = 4864;
const VOCABULARY: usize = 151_936;
const PROMPT: usize = 512;
/// The contract's segments: of 14 heads, and of 152 sub-blocks of 32 columns.
const ATTENTION_UNITS: usize = 14;
const FFN_UNITS: usize = FFN / 32;

type Weight = <CpuBackend as Backend>::Weight;
type Tensor = <CpuBackend as Backend>::Tensor;
type Vector = <CpuBackend as Backend>::Vector;

struct Model {
    backend: CpuBackend,
    layers: Vec<[Weight; 4]>,
    output: Weight,
    table: <CpuBackend as Backend>::Table,
    norm: Vector,
    rotary: <CpuBackend as Backend>::Rotary,
    cache: <CpuBackend as Backend>::KvCache,
    /// x, residual, qkv, attention, gate_up, ffn.
    tensors: [Tensor; 6],
    gathered: Tensor,
    logits: Tensor,
}

fn matrix(kind: WeightKind, rows: usize, columns: usize) -> (WeightKind, usize, usize, Vec<u8>) {
    let some: Vec<u8> = (0..16).flat_map(|row| random_row(kind, columns, 0.03, row)).collect();
    let data: Vec<u8> = some.iter().copied().cycle().take(some.len() / 16 * rows).collect();
    (kind, rows, columns, data)
}

fn pack(
    backend: &mut CpuBackend,
    parts: &[(WeightKind, usize, usize)],
    split: InnerSplit,
) -> Weight {
    let stored: Vec<_> =
        parts.iter().map(|&(kind, rows, columns)| matrix(kind, rows, columns)).collect();
    let views: Vec<_> = stored
        .iter()
        .map(|(kind, rows, columns, data)| WeightView::whole("w", *kind, *rows, *columns, data))
        .collect();
    backend.pack_linear(&views, split).expect("a weight")
}

impl Model {
    fn new(config: CpuConfig, whole: bool) -> Self {
        let split = |units| if whole { InnerSplit::WHOLE } else { InnerSplit::of_units(units) };
        let limits = BackendLimits {
            max_tokens: PROMPT,
            max_gathered: 32,
            max_chunks: 32,
            max_positions: 4096,
        };
        let mut backend = CpuBackend::new(config, limits).expect("a backend");
        let layers = (0..LAYERS)
            .map(|layer| {
                let down = if layer % 2 == 0 { WeightKind::Q6K } else { WeightKind::Q4K };
                let q5 = WeightKind::Q5_0;
                [
                    pack(
                        &mut backend,
                        &[(q5, HIDDEN, HIDDEN), (q5, 128, HIDDEN), (WeightKind::Q8_0, 128, HIDDEN)],
                        InnerSplit::WHOLE,
                    ),
                    pack(&mut backend, &[(q5, HIDDEN, HIDDEN)], split(ATTENTION_UNITS)),
                    pack(&mut backend, &[(q5, FFN, HIDDEN), (q5, FFN, HIDDEN)], InnerSplit::WHOLE),
                    pack(&mut backend, &[(down, HIDDEN, FFN)], split(FFN_UNITS)),
                ]
            })
            .collect();
        let output =
            pack(&mut backend, &[(WeightKind::Q8_0, VOCABULARY, HIDDEN)], InnerSplit::WHOLE);
        let (kind, rows, columns, data) = matrix(WeightKind::Q8_0, 1000, HIDDEN);
        let table = backend
            .pack_table(&WeightView::whole("t", kind, rows, columns, &data), 0)
            .expect("a table");
        let norm = backend.vector(&[1.0; HIDDEN]).expect("a vector");
        let frequencies: Vec<f32> = (0..32).map(|i| 1e6_f32.powf(-(i as f32) / 32.0)).collect();
        let rotary = backend.rotary(&frequencies, 1.0, RotaryStyle::Half).expect("angles");
        let shape =
            KvCacheShape { num_layers: LAYERS, num_blocks: 256, num_kv_heads: 2, head_dim: 64 };
        let cache = backend.kv_cache(shape).expect("a cache");
        let tensors = [HIDDEN, HIDDEN, HIDDEN + 256, HIDDEN, 2 * FFN, FFN]
            .map(|width| backend.tensor(RowSet::Tokens, width).expect("a tensor"));
        let gathered = backend.tensor(RowSet::Gathered, HIDDEN).expect("a tensor");
        let logits = backend.tensor(RowSet::Gathered, VOCABULARY).expect("a tensor");
        Self { backend, layers, output, table, norm, rotary, cache, tensors, gathered, logits }
    }

    fn step(&mut self, start: usize, rows: usize) {
        let Self { backend, layers, output, table, norm, rotary, cache, tensors, gathered, logits } =
            self;
        let [x, residual, qkv, attention, gate_up, ffn] = tensors;
        let params = AttentionParams {
            num_heads: 14,
            num_kv_heads: 2,
            head_dim: 64,
            scale: 0.125,
            sliding_window: None,
            soft_cap: None,
        };
        let sampling = SamplingParams::default();
        let kind = LogitKind::Sample {
            params: &sampling,
            position: (start + rows) as u32,
            history: History::default(),
        };
        TestStep::new(&[Sequence::contiguous(start, rows, 0)])
            .begin(backend, &[LogitRow { row: rows as u32 - 1, kind }]);
        backend.embed(residual, table, 1.0);
        for (layer, [qkv_w, out_w, gate_up_w, down_w]) in layers.iter().enumerate() {
            backend.add_rms_norm(x, residual, None, norm, 1e-6);
            backend.linear(qkv, x, qkv_w, None);
            backend.rotary_kv_write(qkv, cache, layer, rotary, &params);
            backend.paged_attention(attention, qkv, cache, layer, &params);
            backend.linear(x, attention, out_w, None);
            backend.add_rms_norm(attention, residual, Some(x), norm, 1e-6);
            backend.linear(gate_up, attention, gate_up_w, None);
            backend.gated_activation(ffn, gate_up, Activation::Silu);
            backend.linear(x, ffn, down_w, None);
        }
        backend.gather(gathered, x, 0..1);
        backend.linear(logits, gathered, output, None);
        backend.sample(logits);
        backend.finish_step(&mut Vec::new()).expect("a working device");
    }
}

/// A model of the configuration that `name` describes.
fn configured(name: &str, threads: usize) -> Model {
    let mut config = CpuConfig { threads, ..CpuConfig::default() };
    let mut whole = false;
    for word in name.split('-') {
        if let Some(set) = InstructionSet::ALL.into_iter().find(|set| set.to_string() == word) {
            config.instruction_set = Some(set);
        } else if let Ok(dtype) = word.parse() {
            config.dtype = dtype;
        } else {
            assert_eq!(word, "whole", "a word of a configuration");
            whole = true;
        }
    }
    let start = Instant::now();
    let model = Model::new(config, whole);
    println!(
        "{name}: {}, made and packed in {:.2} s, {} MB",
        model.backend.instruction_set(),
        start.elapsed().as_secs_f64(),
        model.backend.memory_bytes() / 1_000_000
    );
    model
}

/// Times `rounds` rounds of `run`, in which the models take turns, the first one changing.
fn compare(
    names: &[String],
    models: &mut [Model],
    what: &str,
    (rounds, tokens): (usize, usize),
    run: impl Fn(&mut Model),
) {
    let mut times: Vec<Vec<Duration>> = vec![Vec::with_capacity(rounds); models.len()];
    for round in 0..rounds {
        for turn in 0..models.len() {
            let index = (round + turn) % models.len();
            let began = Instant::now();
            run(&mut models[index]);
            times[index].push(began.elapsed());
        }
    }
    let speed = |time: Duration| tokens as f64 / time.as_secs_f64();
    for (name, own) in names.iter().zip(&times) {
        let mut ratios: Vec<f64> =
            own.iter().zip(&times[0]).map(|(a, b)| b.as_secs_f64() / a.as_secs_f64()).collect();
        ratios.sort_by(f64::total_cmp);
        let mut sorted = own.clone();
        sorted.sort();
        println!(
            "{what}, {name}: median {:.1}, best {:.1} tokens/s; {:.3} of the first's speed \
             (quartiles {:.3} to {:.3})",
            speed(sorted[rounds / 2]),
            speed(sorted[0]),
            ratios[rounds / 2],
            ratios[rounds / 4],
            ratios[rounds * 3 / 4],
        );
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let threads = args.next().and_then(|arg| arg.parse().ok()).unwrap_or(2);
    let mut names: Vec<String> = args.collect();
    if names.is_empty() {
        names.push(InstructionSet::detect().to_string());
    }
    println!("{threads} threads");
    let mut models: Vec<Model> = names.iter().map(|name| configured(name, threads)).collect();
    for model in &mut models {
        model.step(0, PROMPT);
    }
    for first in [16, 512, 3500] {
        compare(&names, &mut models, &format!("decode at {first}"), (41, 4), |model| {
            (first..first + 4).for_each(|position| model.step(position, 1));
        });
    }
    for (rows, rounds) in [(16, 21), (128, 11), (PROMPT, 9)] {
        compare(&names, &mut models, &format!("prompt of {rows}"), (rounds, rows), |model| {
            model.step(0, rows);
        });
    }
}
