//! Code of CUDA's own headers: everything decodes, and its mathematical functions give what they should.

use oarlock_simgpu::Module;

use crate::harness::{Arg, Device, words};
use crate::nvcc::compile;

#[test]
fn intrinsics_are_known() {
    for arch in ["-arch=sm_80", "-arch=sm_90"] {
        let Some(ptx) = compile("intrinsics.cu", &[arch]) else { return };
        let module = Module::parse(&ptx).unwrap_or_else(|error| panic!("{arch}: {error}"));
        assert_eq!(module.entries().count(), 9);
    }
}

const LEN: usize = 256;

/// Numbers of both signs up to 20, then positive ones.
fn inputs() -> Vec<f32> {
    let random = words(3, 2 * LEN);
    let unit = |word: u32| (word >> 8) as f32 / (1 << 24) as f32;
    let (first, second) = random.split_at(LEN);
    let signed = first.iter().map(|&word| 40.0 * unit(word) - 20.0);
    signed.chain(second.iter().map(|&word| 0.01 + 30.0 * unit(word))).collect()
}

#[test]
fn singles() {
    let Some(ptx) = compile("math.cu", &[]) else { return };
    let device = Device::new(&ptx);
    let input = inputs();
    let (from, to) = (device.upload(&input), device.alloc(4 * 24 * LEN));
    device.launch("singles", 2, 128, 0, &[Arg::U64(to), Arg::U64(from), Arg::U32(LEN as u32)]);
    let result = device.download::<f32>(to, 24 * LEN);
    for i in 0..LEN {
        let (x, y) = (f64::from(input[i]), f64::from(input[LEN + i]));
        let erf = result[6 * LEN + i];
        assert!((-1.0..=1.0).contains(&erf) && (erf >= 0.0) == (x >= 0.0));
        let expected = [
            x.exp(),
            y.ln(),
            y.powf(x),
            x.sin(),
            x.cos(),
            x.tanh(),
            f64::from(erf),
            x.exp2(),
            y.log2(),
            x.cbrt(),
            x.atan2(y),
            x / y,
            y.sqrt(),
            1.0 / y.sqrt(),
            x % y,
            x.exp(),
            y.ln_1p(),
            x.hypot(y),
            x.floor(),
            x.round_ties_even(),
            x.exp_m1(),
            1.0 / x,
            x.tan(),
            (x / 100.0).acos(),
        ];
        for (j, expected) in expected.into_iter().enumerate() {
            let value = f64::from(result[j * LEN + i]);
            // `__expf` loses what the product of its argument loses.
            let bound = if j == 15 { 3e-6 } else { 6e-7 };
            let error = (value - expected).abs() / expected.abs().max(1e-3);
            assert!(error < bound, "{j}: {x} {y}: {value}, not {expected}");
        }
        // Division and square root are exact.
        assert_eq!(result[11 * LEN + i], input[i] / input[LEN + i]);
        assert_eq!(result[12 * LEN + i], input[LEN + i].sqrt());
    }
}

#[test]
fn doubles() {
    let Some(ptx) = compile("math.cu", &[]) else { return };
    let device = Device::new(&ptx);
    let input = inputs();
    let (from, to) = (device.upload(&input), device.alloc(8 * 8 * LEN));
    device.launch("doubles", 2, 128, 0, &[Arg::U64(to), Arg::U64(from), Arg::U32(LEN as u32)]);
    let result = device.download::<f64>(to, 8 * LEN);
    for i in 0..LEN {
        let (x, y) = (f64::from(input[i]), f64::from(input[LEN + i]));
        let expected = [x.exp(), y.ln(), y.powf(x), x.sin(), x.tanh(), x / y, y.sqrt(), x.cbrt()];
        for (j, expected) in expected.into_iter().enumerate() {
            let value = result[j * LEN + i];
            let error = (value - expected).abs() / expected.abs().max(1e-3);
            assert!(error < 2e-15, "{j}: {x} {y}: {value}, not {expected}");
        }
        assert_eq!(result[5 * LEN + i], x / y);
        assert_eq!(result[6 * LEN + i], y.sqrt());
    }
}

#[test]
fn integers() {
    let Some(ptx) = compile("math.cu", &[]) else { return };
    let device = Device::new(&ptx);
    let random = words(5, 4 * LEN);
    // Of every size: the code for 64-bit division has a short way for small numbers.
    let input: Vec<i64> = random
        .chunks(2)
        .enumerate()
        .map(|(i, pair)| (i64::from(pair[0] as i32) << 32 | i64::from(pair[1])) >> (i % 56) | 1)
        .collect();
    let (from, to) = (device.upload(&input), device.alloc(8 * 14 * LEN));
    device.launch("integers", 2, 128, 0, &[Arg::U64(to), Arg::U64(from), Arg::U32(LEN as u32)]);
    let result = device.download::<i64>(to, 14 * LEN);
    for i in 0..LEN {
        let (x, y) = (input[i], input[LEN + i]);
        let (a, b) = (x as i32, y as i32 | 1);
        let expected = [
            x.wrapping_div(y),
            x.wrapping_rem(y),
            (x as u64 / y as u64) as i64,
            ((i128::from(x) * i128::from(y)) >> 64) as i64,
            i64::from(a.wrapping_div(b)),
            i64::from(a.wrapping_rem(b)),
            i64::from(a as u32 / b as u32),
            x / 7,
            i64::from(x.trailing_zeros()) + 1,
            i64::from(y.count_ones()),
            x as f32 as i64,
            x as f64 as i64,
            i64::from((a as f32).round_ties_even() as i32),
            x >> (y & 63),
        ];
        for (j, expected) in expected.into_iter().enumerate() {
            assert_eq!(result[j * LEN + i], expected, "{j}: {x} {y}");
        }
    }
}
