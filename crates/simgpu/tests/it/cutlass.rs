//! A CUTLASS GEMM for sm_80: tensor cores, `ldmatrix`, a pipeline of `cp.async`.

use oarlock_simgpu::{LaunchConfig, launch};

use crate::harness::{Arg, Device, words};
use crate::nvcc::{compile, cutlass};

/// The PTX for an element type, or none without compiler or headers.
pub(crate) fn gemm_ptx(element: &str) -> Option<String> {
    let include = format!("-I{}", cutlass()?.display());
    compile("cutlass_gemm.cu", &[&include, &format!("-DELEMENT=cutlass::{element}")])
}

/// A device with the kernel.
pub(crate) struct Gemm {
    device: Device,
    seed: u64,
}

impl Gemm {
    pub(crate) fn new(ptx: &str, seed: u64) -> Self {
        let mut device = Device::new(ptx);
        device.options.seed = seed;
        device.options.threads = 1 + seed as usize % 2;
        // The last round of the main loop loads fragments of a stage that was never filled.
        device.options.check_uninitialized_shared = false;
        Self { device, seed }
    }

    /// Multiplies f16 matrices; whether the kernel ends, with the right result.
    pub(crate) fn is_right(&self, m: usize, n: usize, k: usize) -> bool {
        self.multiply(m, n, k, f16).is_ok()
    }

    /// Multiplies matrices of an element type; what went wrong.
    pub(crate) fn multiply(
        &self,
        m: usize,
        n: usize,
        k: usize,
        to_bits: fn(f32) -> u16,
    ) -> Result<(), String> {
        let device = &self.device;
        // Small whole numbers: every order of summation gives the same.
        let numbers = |seed, len| -> Vec<f32> {
            words(seed, len).into_iter().map(|word| (word % 17) as f32 - 8.0).collect()
        };
        let (a, b) = (numbers(self.seed, m * k), numbers(self.seed + 10, n * k));
        let bits =
            |values: &[f32]| -> Vec<u16> { values.iter().map(|&value| to_bits(value)).collect() };
        let (a_at, b_at) = (device.upload(&bits(&a)), device.upload(&bits(&b)));
        let (d, shape, params) = (device.alloc(4 * m * n), device.alloc(20), device.alloc(1024));
        let mut args: Vec<Arg> = [params, shape, a_at, b_at, d, d].map(Arg::U64).into();
        args.extend([m, n, k].map(|size| Arg::U32(size as u32)));
        device.launch("gemm_params", 1, 1, 0, &args);
        let shape = device.download::<u32>(shape, 5);
        let params = device.download::<u8>(params, shape[0] as usize);
        let config = LaunchConfig {
            grid: [shape[3], shape[4], 1],
            block: [shape[2], 1, 1],
            dynamic_shared_bytes: shape[1],
            params: &params,
        };
        let launched = launch(&device.loaded, "gemm", &config, &device.memory, &device.options);
        launched.map_err(|fault| fault.to_string())?;
        let result = device.download::<f32>(d, m * n);
        for row in 0..m {
            for column in 0..n {
                let expected: f32 = (0..k).map(|i| a[row * k + i] * b[column * k + i]).sum();
                if result[row * n + column] != expected {
                    return Err(format!(
                        "element {row}, {column}: {}, not {expected}",
                        result[row * n + column]
                    ));
                }
            }
        }
        Ok(())
    }
}

/// A whole number up to 8 as f16.
fn f16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value == 0.0 {
        0
    } else {
        ((bits >> 16 & 0x8000) | ((bits >> 13 & 0x3ffff) - (112 << 10))) as u16
    }
}

fn bf16(value: f32) -> u16 {
    (value.to_bits() >> 16) as u16
}

fn multiplies(element: &str, to_bits: fn(f32) -> u16) {
    let Some(ptx) = gemm_ptx(element) else { return };
    for (seed, m, n, k) in [(1, 128, 64, 64), (2, 100, 72, 136), (3, 64, 128, 256), (4, 40, 48, 32)]
    {
        assert_eq!(Gemm::new(&ptx, seed).multiply(m, n, k, to_bits), Ok(()), "seed {seed}");
    }
}

#[test]
fn gemm_in_f16() {
    multiplies("half_t", f16);
}

#[test]
fn gemm_in_bf16() {
    multiplies("bfloat16_t", bf16);
}
