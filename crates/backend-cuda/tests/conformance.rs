//! The suite that every backend runs, on simulated devices: the test starts itself again with a library
//! path on which `libcuda.so` is the simulated one.

#![expect(clippy::unwrap_used, reason = "a failure here fails the test")]

use std::process::Command;
use std::{env, fs};

use oarlock_backend::conformance::{TestStep, Tolerances, limits, run_all};
use oarlock_backend::quant::{SplitMix, random_row};
use oarlock_backend::{
    Activation, Backend, BackendError, BackendLimits, ExpertsShape, InnerSplit, OracleBackend,
    RowSet, WeightKind, WeightView,
};
use oarlock_backend_cuda::{CudaBackend, CudaDevice, HAS_KERNELS, WorkType};

/// A file that the test inside writes when it has run to its end.
const INSIDE: &str = "OARLOCK_TEST_INSIDE";

/// Runs the test of this name again where devices are simulated: once for each seed of their schedules and
/// compute capability.
fn with_simulated_gpus(test: &str, devices: &[(u64, &str)], run: impl Fn()) {
    if let Some(done) = env::var_os(INSIDE) {
        run();
        return fs::write(done, "done").unwrap();
    }
    if env::var_os("OARLOCK_TEST_REAL_GPU").is_some() {
        return run();
    }
    if !HAS_KERNELS {
        assert!(env::var_os("CI").is_none(), "no kernels: run `cargo xtask cuda-toolkit`");
        eprintln!("skipped: this build has no kernels; `cargo xtask cuda-toolkit` installs nvcc");
        return;
    }
    for (seed, capability) in devices {
        let done = env::temp_dir().join(format!("oarlock-{test}-{}", std::process::id()));
        drop(fs::remove_file(&done));
        let status = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env("LD_LIBRARY_PATH", oarlock_testkit::simulated_gpus())
            .env("OARLOCK_SIMGPU", "1x8GiB")
            .env("OARLOCK_SIMGPU_SEED", seed.to_string())
            .env("OARLOCK_SIMGPU_CAPABILITY", capability)
            .env(INSIDE, &done)
            .status()
            .unwrap();
        assert!(status.success(), "{test}, seed {seed}, {capability}: {status}");
        // A name that no test has would succeed, too.
        fs::remove_file(&done).expect("the test inside ran");
    }
}

fn conforms(work: WorkType, tolerances: &Tolerances) {
    let device = CudaDevice::open(0).unwrap();
    run_all(&|limits| CudaBackend::new(&device, work, limits).unwrap(), tolerances);
}

#[test]
fn float32_conforms() {
    with_simulated_gpus("float32_conforms", &[(1, "99.0")], || {
        conforms(WorkType::F32, &Tolerances::FLOAT32);
    });
}

#[test]
fn bfloat16_conforms() {
    // The second has little shared memory, the third takes other PTX.
    let devices = [(1, "99.0"), (2, "8.6"), (3, "8.0")];
    with_simulated_gpus("bfloat16_conforms", &devices, || {
        conforms(WorkType::Bf16, &Tolerances::BFLOAT16);
    });
}

/// Eight experts that every row takes.
const CROWDED: ExpertsShape = ExpertsShape {
    num_experts: 8,
    top_k: 8,
    normalize: true,
    hidden: 256,
    feed_forward: 64,
    split: InnerSplit { segments: 8 },
};

fn random_matrix(kind: WeightKind, rows: usize, columns: usize) -> Vec<u8> {
    (0..rows as u64).flat_map(|row| random_row(kind, columns, 0.1, row)).collect()
}

/// What some rows of [`CROWDED`]'s input give. Gate and up are of two kinds, so that they are two launches.
fn crowded_rows<B: Backend>(backend: &mut B, input: &[f32]) -> Vec<f32> {
    const KINDS: [WeightKind; 4] =
        [WeightKind::F32, WeightKind::Bf16, WeightKind::Q8_0, WeightKind::Bf16];
    let ExpertsShape { num_experts, hidden, feed_forward, .. } = CROWDED;
    let shapes = [
        (num_experts, hidden),
        (feed_forward, hidden),
        (feed_forward, hidden),
        (hidden, feed_forward),
    ];
    let data = [0, 1, 2, 3].map(|i| random_matrix(KINDS[i], shapes[i].0, shapes[i].1));
    let [router, gate, up, down] = [0, 1, 2, 3]
        .map(|i| WeightView::whole("experts", KINDS[i], shapes[i].0, shapes[i].1, &data[i]));
    let mut experts = backend.experts(&CROWDED, &router).unwrap();
    for _ in 0..num_experts {
        backend.pack_expert(&mut experts, &[gate, up], &down).unwrap();
    }
    let mut routing = backend.routing(&CROWDED).unwrap();
    let mut from = backend.tensor(RowSet::Tokens, hidden).unwrap();
    let mut to = backend.float_tensor(RowSet::Tokens, hidden).unwrap();
    TestStep::rows(input.len() / hidden).begin(backend, &[]);
    backend.write(&mut from, input);
    backend.route(&mut routing, &from, &experts);
    backend.expert_feed_forward(&mut to, &from, &routing, &experts, Activation::GeluTanh);
    let got = backend.read(&to);
    backend.finish_step(&mut Vec::new()).unwrap();
    got
}

fn relative_error(got: &[f32], want: &[f32]) -> f32 {
    let error: f32 = got.iter().zip(want).map(|(got, want)| (got - want).powi(2)).sum();
    (error / want.iter().map(|want| want * want).sum::<f32>()).sqrt()
}

/// Where the sums of experts have little room, segments go in ranges, with the same bits; all layers share it.
#[test]
fn ranges_of_segments_do_not_matter() {
    let test = "ranges_of_segments_do_not_matter";
    with_simulated_gpus(test, &[(4, "8.0")], || {
        let device = CudaDevice::open(0).unwrap();
        let (rows, hidden) = (50, CROWDED.hidden);
        let limits = BackendLimits { max_tokens: rows, ..limits() };
        let mut random = SplitMix(7);
        let input: Vec<f32> =
            (0..rows * hidden).map(|_| half::bf16::from_f32(random.uniform()).to_f32()).collect();
        let oracle = crowded_rows(&mut OracleBackend::new(limits), &input);
        for work in [WorkType::Bf16, WorkType::F32] {
            let mut first: Option<Vec<f32>> = None;
            for at_once in [8, 4, 2, 1] {
                let mut backend = CudaBackend::new(&device, work, limits).unwrap();
                backend.set_expert_sums_bytes(at_once * rows * CROWDED.top_k * hidden * 4);
                let got = crowded_rows(&mut backend, &input);
                let want = first.get_or_insert_with(|| got.clone());
                let most = if work == WorkType::Bf16 { 1e-2 } else { 1e-5 };
                assert!(relative_error(&got, &oracle) < most, "near the oracle in {work:?}");
                assert_eq!(got, *want, "{at_once} segments at once in {work:?}");
                let before = backend.memory_bytes();
                // Of fewer rows there are more segments at once.
                let few = crowded_rows(&mut backend, &input[..13 * hidden]);
                assert_eq!(few, want[..13 * hidden], "{at_once} segments, few rows, {work:?}");
                // A second layer takes weights, tensors and choices only.
                let weights = (8 * 3 * 64 + 8) * hidden * 4;
                let others = rows * (2 * hidden * 4 + CROWDED.top_k * 8);
                let more = (backend.memory_bytes() - before) as usize;
                assert!(work == WorkType::Bf16 || more == weights + others, "{more} bytes more");
            }
        }
    });
}

/// Who has too little memory hears what it was for.
#[test]
fn experts_that_do_not_fit_are_refused() {
    let test = "experts_that_do_not_fit_are_refused";
    with_simulated_gpus(test, &[(5, "9.0")], || {
        let device = CudaDevice::open(0).unwrap();
        let limits = BackendLimits { max_tokens: 1 << 18, ..limits() };
        let mut backend = CudaBackend::new(&device, WorkType::Bf16, limits).unwrap();
        let wide = ExpertsShape { hidden: 2048, ..CROWDED };
        let ExpertsShape { num_experts, hidden, .. } = wide;
        let data = random_matrix(WeightKind::Bf16, num_experts, hidden);
        let view = WeightView::whole("router", WeightKind::Bf16, num_experts, hidden, &data);
        let error = backend.experts(&wide, &view).unwrap_err();
        let is_of_sums = matches!(
            &error,
            BackendError::OutOfMemory { what, .. } if what == "sums of experts"
        );
        assert!(is_of_sums, "{error}");
    });
}
