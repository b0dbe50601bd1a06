//! How fast the operations are on the device of number 0: a table in Markdown. On simulated devices the times
//! mean nothing.
//!
//! `cargo run --release -p oarlock-backend-cuda --example device_speed`
#![expect(clippy::print_stdout, reason = "the table is what it is for")]

use std::collections::BTreeSet;
use std::time::Instant;

use oarlock_backend::conformance::{Sequence, TestStep};
use oarlock_backend::quant::{SplitMix, random_row};
use oarlock_backend::{
    Activation, AttentionParams, Backend, BackendLimits, ExpertsShape, InnerSplit, KvCacheShape,
    RotaryStyle, RowSet, WeightKind, WeightView,
};
use oarlock_backend_cuda::{CudaBackend, CudaDevice, WorkType};

/// Width of the linear layers, as a model of 8 billion parameters has it.
const WIDTH: usize = 4096;
/// Positions of the attention.
const CONTEXT: usize = 4096;
/// Enqueued at once, so that the host's part does not count.
const REPEATS: usize = 48;
/// What calls go through in turns: far more than a cache of the second level holds.
const WORKING_SET: usize = 512 << 20;

fn main() -> anyhow::Result<()> {
    let device = CudaDevice::open(0)?;
    println!("| operation | rows | time, µs | GB/s | TFLOP/s |");
    println!("|---|---:|---:|---:|---:|");
    for (name, kind) in
        [("bfloat16", WeightKind::Bf16), ("Q8_0", WeightKind::Q8_0), ("Q4_K", WeightKind::Q4K)]
    {
        for rows in [1, 8, 64, 512, 4096] {
            linear(&device, name, kind, rows)?;
        }
    }
    for (name, kind) in [("bfloat16", WeightKind::Bf16), ("Q4_K", WeightKind::Q4K)] {
        for rows in [1, 8, 64, 512, 4096] {
            experts(&device, name, kind, rows)?;
        }
    }
    for sequences in [1, 8, 64] {
        attention(&device, sequences)?;
    }
    Ok(())
}

fn limits(max_tokens: usize, max_chunks: usize) -> BackendLimits {
    BackendLimits { max_tokens, max_gathered: 1, max_chunks, max_positions: CONTEXT + 16 }
}

/// Seconds of one of many calls, each told its number.
fn time(
    backend: &mut CudaBackend,
    mut enqueue: impl FnMut(&mut CudaBackend, usize),
) -> anyhow::Result<f64> {
    enqueue(backend, 0);
    backend.finish_step(&mut Vec::new())?;
    let begin = Instant::now();
    (0..REPEATS).for_each(|call| enqueue(backend, call));
    backend.finish_step(&mut Vec::new())?;
    Ok(begin.elapsed().as_secs_f64() / REPEATS as f64)
}

fn row(operation: &str, rows: usize, seconds: f64, bytes: f64, operations: f64) {
    let (micros, rate, flops) = (seconds * 1e6, bytes / seconds / 1e9, operations / seconds / 1e12);
    println!("| {operation} | {rows} | {micros:.1} | {rate:.0} | {flops:.1} |");
}

fn linear(device: &CudaDevice, name: &str, kind: WeightKind, rows: usize) -> anyhow::Result<()> {
    let data: Vec<u8> =
        (0..WIDTH as u64).flat_map(|row| random_row(kind, WIDTH, 0.05, row)).collect();
    let mut backend = CudaBackend::new(device, WorkType::Bf16, limits(rows, 1))?;
    let view = WeightView::whole("weight", kind, WIDTH, WIDTH, &data);
    let copies = (WORKING_SET / data.len()).clamp(1, REPEATS);
    let weights: Vec<_> = (0..copies)
        .map(|_| backend.pack_linear(&[view], InnerSplit::WHOLE))
        .collect::<Result<_, _>>()?;
    let mut input = backend.tensor(RowSet::Tokens, WIDTH)?;
    let mut out = backend.tensor(RowSet::Tokens, WIDTH)?;
    TestStep::rows(rows).begin(&mut backend, &[]);
    backend.write(&mut input, &vec![0.5; rows * WIDTH]);
    let seconds = time(&mut backend, |backend, call| {
        backend.linear(&mut out, &input, &weights[call % copies], None);
    })?;
    let bytes = data.len() + 2 * rows * WIDTH * 2;
    let operations = 2.0 * (rows * WIDTH * WIDTH) as f64;
    row(&format!("linear {WIDTH} x {WIDTH}, {name}"), rows, seconds, bytes as f64, operations);
    Ok(())
}

/// A layer of experts, its router and all, as a model of 30 billion parameters has it. `GB/s` counts the
/// weights of the experts that rows take.
fn experts(device: &CudaDevice, name: &str, kind: WeightKind, rows: usize) -> anyhow::Result<()> {
    let (num_experts, top_k, hidden, feed_forward) = (128, 8, 2048, 768);
    let shape = ExpertsShape {
        num_experts,
        top_k,
        normalize: true,
        hidden,
        feed_forward,
        split: InnerSplit { segments: 8 },
    };
    let matrix = |kind, rows: usize, columns| -> Vec<u8> {
        (0..rows as u64).flat_map(|row| random_row(kind, columns, 0.05, row)).collect()
    };
    let router = matrix(WeightKind::Bf16, num_experts, hidden);
    let (up, down) = (matrix(kind, feed_forward, hidden), matrix(kind, hidden, feed_forward));
    let mut backend = CudaBackend::new(device, WorkType::Bf16, limits(rows, 1))?;
    let view = WeightView::whole("router", WeightKind::Bf16, num_experts, hidden, &router);
    let mut layer = backend.experts(&shape, &view)?;
    let one = 2 * up.len() + down.len();
    let up = WeightView::whole("up", kind, feed_forward, hidden, &up);
    let down = WeightView::whole("down", kind, hidden, feed_forward, &down);
    for _ in 0..num_experts {
        backend.pack_expert(&mut layer, &[up, up], &down)?;
    }
    let mut routing = backend.routing(&shape)?;
    let mut input = backend.tensor(RowSet::Tokens, hidden)?;
    let mut out = backend.float_tensor(RowSet::Tokens, hidden)?;
    TestStep::rows(rows).begin(&mut backend, &[]);
    let mut random = SplitMix(1);
    let values: Vec<f32> = (0..rows * hidden).map(|_| random.uniform()).collect();
    backend.write(&mut input, &values);
    let seconds = time(&mut backend, |backend, _| {
        backend.route(&mut routing, &input, &layer);
        backend.expert_feed_forward(&mut out, &input, &routing, &layer, Activation::Silu);
    })?;
    let choices = backend.read_routing(&routing);
    let taken: BTreeSet<u32> = choices.iter().map(|choice| choice.0).collect();
    let bytes = (one * taken.len() + router.len() + rows * hidden * 6) as f64;
    let operations = 6.0 * (rows * top_k * hidden * feed_forward) as f64;
    row(&format!("{top_k} of {num_experts} experts, {name}"), rows, seconds, bytes, operations);
    Ok(())
}

fn attention(device: &CudaDevice, sequences: usize) -> anyhow::Result<()> {
    let (num_heads, num_kv_heads, head_dim) = (32, 8, 128);
    let blocks_each = CONTEXT.div_ceil(16) + 1;
    let mut backend = CudaBackend::new(device, WorkType::Bf16, limits(CONTEXT, sequences))?;
    let num_blocks = sequences * blocks_each;
    let bytes = sequences * CONTEXT * num_kv_heads * 2 * head_dim * 2;
    let num_layers = (WORKING_SET / bytes).clamp(1, REPEATS);
    let shape = KvCacheShape { num_layers, num_blocks, num_kv_heads, head_dim };
    let mut cache = backend.kv_cache(shape)?;
    let rotary = backend.rotary(&[0.01; 64], 1.0, RotaryStyle::Half)?;
    let params = AttentionParams {
        num_heads,
        num_kv_heads,
        head_dim,
        scale: 0.088,
        sliding_window: None,
        soft_cap: None,
    };
    let mut qkv = backend.tensor(RowSet::Tokens, (num_heads + 2 * num_kv_heads) * head_dim)?;
    let mut out = backend.tensor(RowSet::Tokens, num_heads * head_dim)?;
    let width = (num_heads + 2 * num_kv_heads) * head_dim;
    let sequence =
        |at: usize, start, rows| Sequence::contiguous(start, rows, (at * blocks_each) as u32);
    for at in 0..sequences {
        for layer in 0..num_layers {
            TestStep::new(&[sequence(at, 0, CONTEXT - 1)]).begin(&mut backend, &[]);
            backend.write(&mut qkv, &vec![0.1; (CONTEXT - 1) * width]);
            backend.rotary_kv_write(&mut qkv, &mut cache, layer, &rotary, &params);
            backend.finish_step(&mut Vec::new())?;
        }
    }
    let step: Vec<_> = (0..sequences).map(|at| sequence(at, CONTEXT - 1, 1)).collect();
    TestStep::new(&step).begin(&mut backend, &[]);
    backend.write(&mut qkv, &vec![0.1; sequences * width]);
    for layer in 0..num_layers {
        backend.rotary_kv_write(&mut qkv, &mut cache, layer, &rotary, &params);
    }
    let seconds = time(&mut backend, |backend, call| {
        backend.paged_attention(&mut out, &qkv, &cache, call % num_layers, &params);
    })?;
    let bytes = bytes as f64;
    let operations = 4.0 * (sequences * CONTEXT * num_heads * head_dim) as f64;
    row(&format!("attention of {CONTEXT} positions"), sequences, seconds, bytes, operations);
    Ok(())
}
