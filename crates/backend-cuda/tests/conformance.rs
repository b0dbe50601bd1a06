//! The suite that every backend runs, on simulated devices: the test starts itself again with a library
//! path on which `libcuda.so` is the simulated one.

#![expect(clippy::unwrap_used, reason = "a failure here fails the test")]

use std::process::Command;
use std::{env, fs};

use oarlock_backend::conformance::{Tolerances, run_all};
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
