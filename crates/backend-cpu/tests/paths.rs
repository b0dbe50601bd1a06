//! Every operation gives the same bits on every instruction set and any number of threads.
#![expect(clippy::unwrap_used, reason = "a helper of tests may fail the test")]

use oarlock_backend::conformance::{Sequence, TestStep};
use oarlock_backend::quant::{SplitMix, random_row};
use oarlock_backend::{
    Activation, AttentionParams, Backend, BackendLimits, ExpertsShape, History, InnerSplit,
    KvCacheShape, LogitKind, LogitRow, RotaryStyle, RowResult, RowSet, WeightKind, WeightView,
};
use oarlock_backend_cpu::{CpuBackend, CpuConfig, Dtype, InstructionSet};
use oarlock_types::{SamplingParams, TokenId};

const KINDS: [WeightKind; 9] = [
    WeightKind::F32,
    WeightKind::F16,
    WeightKind::Bf16,
    WeightKind::Q4_0,
    WeightKind::Q5_0,
    WeightKind::Q8_0,
    WeightKind::Q4K,
    WeightKind::Q5K,
    WeightKind::Q6K,
];

/// Kinds that are rounded to Q8_0 while they are packed.
const RARE: [WeightKind; 6] = [
    WeightKind::Q4_1,
    WeightKind::Q5_1,
    WeightKind::Q2K,
    WeightKind::Q3K,
    WeightKind::Iq4Nl,
    WeightKind::Iq4Xs,
];

fn backend(set: InstructionSet, threads: usize) -> CpuBackend {
    backend_of(set, threads, Dtype::Auto)
}

fn backend_of(set: InstructionSet, threads: usize, dtype: Dtype) -> CpuBackend {
    let limits =
        BackendLimits { max_tokens: 300, max_gathered: 16, max_chunks: 4, max_positions: 700 };
    CpuBackend::new(CpuConfig { threads, instruction_set: Some(set), dtype }, limits).unwrap()
}

/// The bits of every value; all NaNs are one.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| if v.is_nan() { u32::MAX } else { v.to_bits() }).collect()
}

/// Compares `run` on all instruction sets, types and several numbers of threads with the portable path on
/// one thread.
fn same_everywhere(run: impl Fn(&mut CpuBackend) -> Vec<u32>) {
    for (dtype, threads) in
        [(Dtype::Auto, 1..=5), (Dtype::Bfloat16, 2..=2), (Dtype::Float32, 3..=3)]
    {
        let want = run(&mut backend_of(InstructionSet::Portable, 1, dtype));
        for set in InstructionSet::available() {
            for threads in threads.clone() {
                let got = run(&mut backend_of(set, threads, dtype));
                let differs = got.iter().zip(&want).position(|(a, b)| a != b);
                let what = format!("{set} in {dtype} with {threads} threads");
                assert_eq!((got.len(), differs), (want.len(), None), "{what}");
            }
        }
    }
}

/// Values of all magnitudes, with some extremes.
fn wild_values(len: usize, seed: u64) -> Vec<f32> {
    let extremes =
        [0.0, -0.0, 1e-40, 1e-30, 65_504.0, -7e4, 1e30, f32::MAX, f32::INFINITY, f32::NAN];
    let mut random = SplitMix(seed);
    (0..len)
        .map(|i| match random.next() % 400 {
            0 if i % 3 == 0 => extremes[random.next() as usize % extremes.len()],
            choice if choice < 40 => random.uniform() * 2.0_f32.powi((choice as i32 - 20) / 2),
            _ => random.uniform(),
        })
        .collect()
}

fn linear(
    backend: &mut CpuBackend,
    kind: WeightKind,
    shape: (usize, usize),
    data: &[u8],
    rows: usize,
) -> Vec<u32> {
    let (outputs, columns) = shape;
    let view = WeightView::whole("w", kind, outputs, columns, data);
    let weight = backend.pack_linear(&[view], InnerSplit { segments: 4 }).unwrap();
    let mut from = backend.tensor(RowSet::Tokens, columns).unwrap();
    let mut to = backend.tensor(RowSet::Tokens, outputs).unwrap();
    TestStep::rows(rows).begin(backend, &[]);
    backend.write(&mut from, &wild_values(rows * columns, rows as u64));
    backend.linear(&mut to, &from, &weight, None);
    bits(&backend.read(&to))
}

#[test]
fn linear_layers() {
    for kind in KINDS {
        for (outputs, columns) in [(37, 512), (64, 1280)] {
            let data: Vec<u8> =
                (0..outputs).flat_map(|row| random_row(kind, columns, 0.1, row as u64)).collect();
            for rows in [1, 2, 7, 16, 33, 150] {
                same_everywhere(|backend| linear(backend, kind, (outputs, columns), &data, rows));
            }
        }
    }
}

/// Segments that are padded to whole blocks, with full groups of rows and without.
#[test]
fn linear_layers_with_short_segments() {
    for kind in [WeightKind::F32, WeightKind::F16, WeightKind::Bf16] {
        for columns in [4, 100, 264] {
            let data: Vec<u8> =
                (0..19).flat_map(|row| random_row(kind, columns, 0.1, row)).collect();
            for rows in [1, 8, 15, 77] {
                same_everywhere(|backend| linear(backend, kind, (19, columns), &data, rows));
            }
        }
    }
}

/// Experts: which are chosen, and what they add up to.
#[test]
fn experts() {
    for (kinds, segments) in [
        ([WeightKind::Bf16, WeightKind::Bf16], 8),
        ([WeightKind::Q4K, WeightKind::Q6K], 2),
        ([WeightKind::Q8_0, WeightKind::F16], 4),
    ] {
        let (num_experts, hidden, feed_forward) = (5, 256, 256);
        let split = InnerSplit { segments };
        let shape =
            ExpertsShape { num_experts, top_k: 2, normalize: true, hidden, feed_forward, split };
        let matrix = |kind, rows: usize, seed: u64| -> Vec<u8> {
            (0..rows as u64).flat_map(|row| random_row(kind, 256, 0.1, seed * 1000 + row)).collect()
        };
        let router = matrix(WeightKind::F32, num_experts, 1);
        let experts: Vec<_> = (0..num_experts as u64)
            .map(|expert| [2, 3, 4].map(|part| (10 * expert + part, part)))
            .map(|parts| parts.map(|(seed, part)| matrix(kinds[usize::from(part == 4)], 256, seed)))
            .collect();
        for rows in [1, 7, 60] {
            same_everywhere(|backend| {
                let view = |kind, rows, data| WeightView::whole("w", kind, rows, 256, data);
                let router = view(WeightKind::F32, num_experts, &router);
                let mut layer = backend.experts(&shape, &router).unwrap();
                for [gate, up, down] in &experts {
                    let gate_up = [view(kinds[0], 256, gate), view(kinds[0], 256, up)];
                    let down = view(kinds[1], 256, down);
                    backend.pack_expert(&mut layer, &gate_up, &down).unwrap();
                }
                let mut routing = backend.routing(&shape).unwrap();
                let mut from = backend.tensor(RowSet::Tokens, hidden).unwrap();
                let mut to = backend.float_tensor(RowSet::Tokens, hidden).unwrap();
                TestStep::rows(rows).begin(backend, &[]);
                backend.write(&mut from, &wild_values(rows * hidden, rows as u64));
                backend.route(&mut routing, &from, &layer);
                let activation = Activation::Silu;
                backend.expert_feed_forward(&mut to, &from, &routing, &layer, activation);
                let choices = backend.read_routing(&routing);
                let choices =
                    choices.into_iter().flat_map(|(expert, weight)| [expert as f32, weight]);
                bits(&choices.chain(backend.read(&to)).collect::<Vec<_>>())
            });
        }
    }
}

/// Random bytes are valid blocks too: scales of any f16, infinities and NaNs among them.
#[test]
fn linear_layers_with_random_bytes() {
    for kind in KINDS.into_iter().chain(RARE) {
        let mut random = SplitMix(5);
        let data: Vec<u8> =
            (0..20 * kind.row_bytes(1024).unwrap()).map(|_| random.next() as u8).collect();
        let rows: &[_] = if RARE.contains(&kind) { &[5] } else { &[1, 5, 40] };
        for rows in rows {
            same_everywhere(|backend| linear(backend, kind, (20, 1024), &data, *rows));
        }
    }
}

#[test]
fn int8_extremes() {
    // Greatest quants against greatest activations: nothing may saturate.
    for kind in [
        WeightKind::Q4_0,
        WeightKind::Q5_0,
        WeightKind::Q8_0,
        WeightKind::Q4K,
        WeightKind::Q5K,
        WeightKind::Q6K,
    ] {
        for byte in [0x00, 0xff, 0x80, 0x7f] {
            let mut row = vec![byte; kind.row_bytes(1024).unwrap()];
            let scale_at = if kind == WeightKind::Q6K { 208 } else { 0 };
            for block in row.chunks_exact_mut(kind.block_bytes()) {
                block[scale_at..scale_at + 2].copy_from_slice(&0x3c00_u16.to_le_bytes());
            }
            let data = row.repeat(16);
            let run = |backend: &mut CpuBackend, sign: f32| {
                let view = WeightView::whole("w", kind, 16, 1024, &data);
                let weight = backend.pack_linear(&[view], InnerSplit::WHOLE).unwrap();
                let mut from = backend.tensor(RowSet::Tokens, 1024).unwrap();
                let mut to = backend.tensor(RowSet::Tokens, 16).unwrap();
                TestStep::rows(3).begin(backend, &[]);
                backend.write(&mut from, &[sign; 3 * 1024]);
                backend.linear(&mut to, &from, &weight, None);
                bits(&backend.read(&to))
            };
            same_everywhere(|backend| [run(backend, 127.0), run(backend, -127.0)].concat());
        }
    }
}

#[test]
fn norm_and_activation() {
    for width in [16, 100, 896] {
        same_everywhere(|backend| {
            let weight = backend.vector(&wild_values(width, 1)).unwrap();
            let mut tensors = [0, 1, 2].map(|_| backend.tensor(RowSet::Tokens, width).unwrap());
            let mut gate_up = backend.tensor(RowSet::Tokens, 2 * width).unwrap();
            TestStep::rows(60).begin(backend, &[]);
            let [out, residual, delta] = &mut tensors;
            backend.write(residual, &wild_values(60 * width, 2));
            backend.write(delta, &wild_values(60 * width, 3));
            backend.write(&mut gate_up, &wild_values(120 * width, 4));
            backend.add_rms_norm(out, residual, Some(delta), &weight, 1e-6);
            let mut all = bits(&backend.read(out));
            backend.rms_norm(delta, &weight, 1e-6);
            all.extend(bits(&backend.read(delta)));
            backend.soft_cap(residual, 1.5);
            all.extend(bits(&backend.read(residual)));
            for activation in [Activation::Silu, Activation::GeluTanh] {
                backend.gated_activation(out, &gate_up, activation);
                all.extend(bits(&backend.read(out)));
            }
            all
        });
    }
}

#[test]
fn attention() {
    for (group, head_dim, style, soft_cap, window) in [
        (7, 64, RotaryStyle::Half, None, None),
        (1, 128, RotaryStyle::Interleaved, Some(20.0), None),
        (10, 32, RotaryStyle::Half, None, Some(90)),
        (3, 256, RotaryStyle::Half, None, None),
    ] {
        let params = AttentionParams {
            num_heads: 2 * group,
            num_kv_heads: 2,
            head_dim,
            scale: 0.2,
            sliding_window: window,
            soft_cap,
        };
        same_everywhere(|backend| {
            let width = (2 * group + 4) * head_dim;
            let frequencies: Vec<f32> = (0..head_dim / 2).map(|i| 0.9_f32.powi(i as i32)).collect();
            let shape = KvCacheShape { num_layers: 1, num_blocks: 64, num_kv_heads: 2, head_dim };
            let mut cache = backend.kv_cache(shape).unwrap();
            let rotary = backend.rotary(&frequencies, 1.0, style).unwrap();
            let mut qkv = backend.tensor(RowSet::Tokens, width).unwrap();
            let mut out = backend.tensor(RowSet::Tokens, 2 * group * head_dim).unwrap();
            let norms = [1, 2].map(|seed| backend.vector(&wild_values(head_dim, seed)).unwrap());
            let mut all = Vec::new();
            for (start, rows) in [(0, 270), (270, 280), (550, 1)] {
                TestStep::new(&[Sequence::contiguous(start, rows, 3)]).begin(backend, &[]);
                backend.write(&mut qkv, &wild_values(rows * width, start as u64));
                if window.is_some() {
                    backend.head_rms_norm(&mut qkv, &norms[0], &norms[1], 1e-6, &params);
                }
                backend.rotary_kv_write(&mut qkv, &mut cache, 0, &rotary, &params);
                backend.paged_attention(&mut out, &qkv, &cache, 0, &params);
                all.extend(bits(&backend.read(&qkv)));
                all.extend(bits(&backend.read(&out)));
            }
            all
        });
    }
}

#[test]
fn samples() {
    let sampled = |backend: &mut CpuBackend| -> Vec<RowResult> {
        let mut from = backend.tensor(RowSet::Tokens, 16).unwrap();
        let mut gathered = backend.tensor(RowSet::Gathered, 16).unwrap();
        let mut logits = backend.tensor(RowSet::Gathered, 30_000).unwrap();
        let params: Vec<SamplingParams> = (0..8)
            .map(|seed| SamplingParams {
                seed,
                top_p: 1.0 - seed as f32 * 0.05,
                temperature: seed as f32 * 0.3,
                top_logprobs: Some(4),
                ..SamplingParams::default()
            })
            .collect();
        let wanted: Vec<LogitRow<'_>> = (0..16)
            .map(|i| {
                let kind = if i % 2 == 0 {
                    LogitKind::Sample {
                        params: &params[i as usize / 2],
                        position: i,
                        history: History::default(),
                    }
                } else {
                    LogitKind::Score { token: TokenId(i * 1000), top: 3 }
                };
                LogitRow { row: i, kind }
            })
            .collect();
        TestStep::rows(16).begin(backend, &wanted);
        backend.write(&mut from, &[0.0; 256]);
        backend.gather(&mut gathered, &from, 0..16);
        let mut random = SplitMix(9);
        let values: Vec<f32> = (0..16 * 30_000).map(|_| random.uniform() * 12.0).collect();
        backend.write(&mut logits, &values);
        backend.sample(&logits);
        let mut results = Vec::new();
        backend.finish_step(&mut results).unwrap();
        results
    };
    let want = sampled(&mut backend(InstructionSet::Portable, 1));
    for set in InstructionSet::available() {
        for threads in 1..=3 {
            assert_eq!(sampled(&mut backend(set, threads)), want, "{set} with {threads} threads");
        }
    }
}

#[test]
fn what_cannot_be_is_an_error() {
    let limits = BackendLimits { max_tokens: 1, max_gathered: 1, max_chunks: 1, max_positions: 16 };
    assert!(
        CpuBackend::new(
            CpuConfig { threads: 0, instruction_set: None, ..CpuConfig::default() },
            limits
        )
        .is_err()
    );
    for set in InstructionSet::ALL.into_iter().filter(|set| !set.is_available()) {
        assert!(
            CpuBackend::new(
                CpuConfig { threads: 1, instruction_set: Some(set), ..CpuConfig::default() },
                limits
            )
            .is_err()
        );
    }
}

#[test]
fn a_failure_voids_the_step_and_the_next_one_works() {
    for threads in [1, 3] {
        let mut backend = backend(InstructionSet::detect(), threads);
        let [good, short] = [64, 63].map(|len| backend.vector(&vec![1.0; len]).unwrap());
        let mut values = backend.tensor(RowSet::Tokens, 64).unwrap();
        let mut results = Vec::new();
        // Many rows run on all threads, one on the caller's alone.
        for rows in [1, 250] {
            TestStep::rows(rows).begin(&mut backend, &[]);
            backend.rms_norm(&mut values, &short, 1e-6);
            assert!(backend.finish_step(&mut results).is_err(), "a norm of another width");
            TestStep::rows(rows).begin(&mut backend, &[]);
            backend.rms_norm(&mut values, &good, 1e-6);
            backend.finish_step(&mut results).unwrap();
        }
    }
}
