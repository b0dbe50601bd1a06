//! A warm step allocates nothing.
#![expect(unsafe_code, reason = "a counting allocator")]
#![expect(clippy::unwrap_used, reason = "a helper of tests may fail the test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};

use oarlock_backend::conformance::{Sequence, TestStep};
use oarlock_backend::quant::random_row;
use oarlock_backend::{
    Activation, AttentionParams, Backend, BackendLimits, ExpertsShape, History, InnerSplit,
    KvCacheShape, LogitKind, LogitRow, RotaryStyle, RowSet, WeightKind, WeightView,
};
use oarlock_backend_cpu::{CpuBackend, CpuConfig};
use oarlock_types::SamplingParams;

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

/// Whether this is the first thread, which is the test harness's: it may note something at any time.
fn is_harness() -> bool {
    // SAFETY: both only tell numbers.
    unsafe { libc::gettid() == libc::getpid() }
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !is_harness() {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PARAMS: AttentionParams = AttentionParams {
    num_heads: 4,
    num_kv_heads: 4,
    head_dim: 64,
    scale: 0.125,
    sliding_window: Some(100),
    soft_cap: None,
};

fn random_matrix(kind: WeightKind, rows: usize, columns: usize) -> Vec<u8> {
    (0..rows as u64).flat_map(|row| random_row(kind, columns, 0.05, row)).collect()
}

/// A layer of four experts, of which a token takes two.
fn experts(
    backend: &mut CpuBackend,
    width: usize,
) -> (<CpuBackend as Backend>::Experts, <CpuBackend as Backend>::Routing) {
    let shape = ExpertsShape {
        num_experts: 4,
        top_k: 2,
        normalize: true,
        hidden: width,
        feed_forward: width,
        split: InnerSplit { segments: 8 },
    };
    let [router, matrix] = [4, width].map(|rows| random_matrix(WeightKind::Q8_0, rows, width));
    let floats: Vec<u8> = router.iter().flat_map(|byte| f32::from(*byte).to_le_bytes()).collect();
    let router =
        WeightView::whole("r", WeightKind::F32, 4, width, &floats[..4 * width * size_of::<f32>()]);
    let mut layer = backend.experts(&shape, &router).unwrap();
    let view = WeightView::whole("w", WeightKind::Q8_0, width, width, &matrix);
    (0..4).for_each(|_| backend.pack_expert(&mut layer, &[view, view], &view).unwrap());
    let routing = backend.routing(&shape).unwrap();
    (layer, routing)
}

/// An embedding of eight tokens.
fn table(backend: &mut CpuBackend, width: usize) -> <CpuBackend as Backend>::Table {
    let data = random_matrix(WeightKind::Q8_0, 8, width);
    let table = WeightView::whole("t", WeightKind::Q8_0, 8, width, &data);
    backend.pack_table(&table, 0).unwrap()
}

fn assert_this_thread_is_counted() {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    drop(black_box(vec![0_u8; 100]));
    assert!(ALLOCATIONS.load(Ordering::Relaxed) > before, "an allocation was not counted");
}

#[test]
fn a_warm_decode_step_allocates_nothing() {
    const WIDTH: usize = 256;
    const VOCABULARY: usize = 4096;
    let limits =
        BackendLimits { max_tokens: 8, max_gathered: 8, max_chunks: 8, max_positions: 512 };
    let mut backend = CpuBackend::new(
        CpuConfig { threads: 3, instruction_set: None, ..CpuConfig::default() },
        limits,
    )
    .unwrap();
    let mut pack = |outputs: usize, columns: usize, kind| {
        let data = random_matrix(kind, outputs, columns);
        let view = WeightView::whole("w", kind, outputs, columns, &data);
        backend.pack_linear(&[view], InnerSplit::WHOLE).unwrap()
    };
    let qkv_weight = pack(3 * WIDTH, WIDTH, WeightKind::Q5_0);
    let gate_up_weight = pack(2 * WIDTH, WIDTH, WeightKind::F16);
    let output_weight = pack(VOCABULARY, WIDTH, WeightKind::Q8_0);
    let table = table(&mut backend, WIDTH);
    let (experts, mut routing) = experts(&mut backend, WIDTH);
    let norm = backend.vector(&[1.0; WIDTH]).unwrap();
    let head_norm = backend.vector(&[1.0; 64]).unwrap();
    let rotary = backend.rotary(&[0.5; 32], 1.0, RotaryStyle::Half).unwrap();
    let shape = KvCacheShape { num_layers: 1, num_blocks: 64, num_kv_heads: 4, head_dim: 64 };
    let mut cache = backend.kv_cache(shape).unwrap();
    let [mut x, mut residual, mut delta] =
        [0; 3].map(|_| backend.tensor(RowSet::Tokens, WIDTH).unwrap());
    let mut qkv = backend.tensor(RowSet::Tokens, 3 * WIDTH).unwrap();
    let mut gate_up = backend.tensor(RowSet::Tokens, 2 * WIDTH).unwrap();
    let mut gathered = backend.tensor(RowSet::Gathered, WIDTH).unwrap();
    let mut logits = backend.tensor(RowSet::Gathered, VOCABULARY).unwrap();
    let greedy = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let seeded = SamplingParams { seed: 3, top_p: 0.9, top_k: 50, ..SamplingParams::default() };
    let (mut results, mut counts) = (Vec::new(), Vec::new());
    assert_this_thread_is_counted();
    for position in 250..280 {
        let step = TestStep::new(&[
            Sequence::contiguous(position, 1, 0),
            Sequence::contiguous(position, 1, 30),
        ]);
        let wanted = [(0, &greedy), (1, &seeded)].map(|(row, params)| LogitRow {
            row,
            kind: LogitKind::Sample {
                params,
                position: position as u32 + 1,
                history: History::default(),
            },
        });
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        step.begin(&mut backend, &wanted);
        backend.embed(&mut residual, &table, 1.0);
        backend.add_rms_norm(&mut x, &mut residual, None, &norm, 1e-6);
        backend.linear(&mut qkv, &x, &qkv_weight, None);
        backend.head_rms_norm(&mut qkv, &head_norm, &head_norm, 1e-6, &PARAMS);
        backend.rotary_kv_write(&mut qkv, &mut cache, 0, &rotary, &PARAMS);
        backend.paged_attention(&mut x, &qkv, &cache, 0, &PARAMS);
        backend.linear(&mut gate_up, &x, &gate_up_weight, None);
        backend.gated_activation(&mut x, &gate_up, Activation::Silu);
        backend.route(&mut routing, &x, &experts);
        backend.expert_feed_forward(&mut delta, &x, &routing, &experts, Activation::Silu);
        backend.add_bias(&mut delta, &norm);
        backend.rms_norm(&mut x, &norm, 1e-6);
        backend.gather(&mut gathered, &x, 0..2);
        backend.linear(&mut logits, &gathered, &output_weight, None);
        backend.soft_cap(&mut logits, 30.0);
        backend.sample(&logits);
        backend.finish_step(&mut results).unwrap();
        counts.push(ALLOCATIONS.load(Ordering::Relaxed) - before);
        assert!(results.iter().all(|result| result.outcome.is_ok()));
    }
    // The first steps make room for results.
    assert!(counts[5..].iter().all(|&count| count == 0), "allocations by step: {counts:?}");
}
