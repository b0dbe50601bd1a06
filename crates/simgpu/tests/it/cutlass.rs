//! A CUTLASS GEMM for sm_80: tensor cores, `ldmatrix`, a pipeline of `cp.async`.

use crate::harness::{Arg, Device, words};
use crate::nvcc::{compile, cutlass};

fn multiplies(element: &str, to_bits: impl Fn(f32) -> u16) {
    let Some(include) = cutlass() else { return };
    let include = format!("-I{}", include.display());
    let define = format!("-DELEMENT=cutlass::{element}");
    let Some(ptx) = compile("cutlass_gemm.cu", &[&include, &define]) else { return };
    let mut device = Device::new(&ptx);
    // The last round of the main loop loads fragments of a stage that was never filled.
    device.options.check_uninitialized_shared = false;
    for (seed, m, n, k) in [(1, 128, 64, 64), (2, 100, 72, 136), (3, 64, 128, 256)] {
        device.options.seed = seed;
        // Small whole numbers: every order of summation gives the same.
        let numbers = |seed, len| -> Vec<f32> {
            words(seed, len).into_iter().map(|word| (word % 17) as f32 - 8.0).collect()
        };
        let (a, b) = (numbers(seed, m * k), numbers(seed + 10, n * k));
        let bits =
            |values: &[f32]| -> Vec<u16> { values.iter().map(|&value| to_bits(value)).collect() };
        let (a_at, b_at) = (device.upload(&bits(&a)), device.upload(&bits(&b)));
        let d = device.alloc(4 * m * n);
        let shape = device.alloc(20);
        let params = device.alloc(1024);
        let mut args: Vec<Arg> = [params, shape, a_at, b_at, d, d].map(Arg::U64).into();
        args.extend([m, n, k].map(|size| Arg::U32(size as u32)));
        device.launch("gemm_params", 1, 1, 0, &args);
        let shape = device.download::<u32>(shape, 5);
        let params = device.download::<u8>(params, shape[0] as usize);
        let config = oarlock_simgpu::LaunchConfig {
            grid: [shape[3], shape[4], 1],
            block: [shape[2], 1, 1],
            dynamic_shared_bytes: shape[1],
            params: &params,
        };
        oarlock_simgpu::launch(&device.loaded, "gemm", &config, &device.memory, &device.options)
            .unwrap_or_else(|fault| panic!("{fault}"));
        let result = device.download::<f32>(d, m * n);
        for row in 0..m {
            for column in 0..n {
                let expected: f32 = (0..k).map(|i| a[row * k + i] * b[column * k + i]).sum();
                assert_eq!(result[row * n + column], expected, "{row} {column} seed {seed}");
            }
        }
    }
}

#[test]
fn gemm_in_f16() {
    // Whole numbers up to 8, as f16.
    multiplies("half_t", |value| {
        let bits = value.to_bits();
        if value == 0.0 {
            0
        } else {
            ((bits >> 16 & 0x8000) | ((bits >> 13 & 0x3ffff) - (112 << 10))) as u16
        }
    });
}

#[test]
fn gemm_in_bf16() {
    multiplies("bfloat16_t", |value| (value.to_bits() >> 16) as u16);
}
