//! The suite that every backend runs, on simulated devices: the test starts itself again with a library
//! path on which `libcuda.so` is the simulated one.

#![expect(clippy::unwrap_used, reason = "a failure here fails the test")]

use std::env;
use std::process::Command;

use oarlock_backend::conformance::{Tolerances, run_all};
use oarlock_backend_cuda::{CudaBackend, CudaDevice, HAS_KERNELS, WorkType};

const INSIDE: &str = "OARLOCK_TEST_INSIDE";

/// Runs the test of this name again where devices are simulated, once for each seed of their schedules.
fn with_simulated_gpus(test: &str, seeds: &[u64], run: impl Fn()) {
    if env::var_os(INSIDE).is_some() || env::var_os("OARLOCK_TEST_REAL_GPU").is_some() {
        return run();
    }
    if !HAS_KERNELS {
        assert!(env::var_os("CI").is_none(), "no kernels: run `cargo xtask cuda-toolkit`");
        eprintln!("skipped: this build has no kernels; `cargo xtask cuda-toolkit` installs nvcc");
        return;
    }
    for seed in seeds {
        let status = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env("LD_LIBRARY_PATH", oarlock_testkit::simulated_gpus())
            .env("OARLOCK_SIMGPU", "1x8GiB")
            .env("OARLOCK_SIMGPU_SEED", seed.to_string())
            .env(INSIDE, "1")
            .status()
            .unwrap();
        assert!(status.success(), "{test}, seed {seed}: {status}");
    }
}

fn conforms(work: WorkType, tolerances: &Tolerances) {
    let device = CudaDevice::open(0).unwrap();
    run_all(&|limits| CudaBackend::new(&device, work, limits).unwrap(), tolerances);
}

#[test]
fn float32_conforms() {
    with_simulated_gpus("float32_conforms", &[1], || {
        conforms(WorkType::F32, &Tolerances::FLOAT32);
    });
}

#[test]
fn bfloat16_conforms() {
    with_simulated_gpus("bfloat16_conforms", &[1, 2, 3], || {
        conforms(WorkType::Bf16, &Tolerances::BFLOAT16);
    });
}
