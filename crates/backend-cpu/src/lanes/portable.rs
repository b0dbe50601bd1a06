//! Lanes as an array of floats.

use half::f16;
use oarlock_sampler::math::EXP_ROUND;

use super::{F16_MAX, LANES, Lanes};

/// Sixteen floats in plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; LANES]);

impl Portable {
    /// A plain loop: the closures of `array::from_fn` and `map` are not always inlined.
    #[inline(always)]
    fn each(f: impl Fn(usize) -> f32) -> Self {
        let mut out = [0.0; LANES];
        for (i, out) in out.iter_mut().enumerate() {
            *out = f(i);
        }
        Self(out)
    }

    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self::each(|i| f(self.0[i], other.0[i]))
    }
}

/// An f16 as a float, by its bits: moved into place, its exponent corrected by an exact product (which
/// normalizes denormals too), infinities and NaNs given the greatest exponent.
#[inline(always)]
pub(crate) fn f16_bits_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let value = f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23);
    let special = if bits & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(value.to_bits() | special | u32::from(bits & 0x8000) << 16)
}

/// `a * b + c` rounded once, as `f32::mul_add`, but without a call where the CPU has no such
/// instruction: the product is exact in f64, the sum is rounded to odd there, and a value rounded to
/// odd with 53 bits rounds to 24 as the exact one does (Boldo and Melquiond 2008).
#[inline(always)]
pub(crate) fn fused_multiply_add(a: f32, b: f32, c: f32) -> f32 {
    let product = f64::from(a) * f64::from(b);
    let c = f64::from(c);
    let sum = product + c;
    // Knuth's TwoSum: the exact result is `sum + error`. NaN where the sum is not finite.
    let shifted = sum - product;
    let error = (product - (sum - shifted)) + (c - shifted);
    let bits = sum.to_bits();
    let inexact = error.abs() > 0.0;
    let toward = if (error > 0.0) == (sum > 0.0) { 1 } else { u64::MAX };
    let odd = if inexact && bits & 1 == 0 { bits.wrapping_add(toward) } else { bits };
    f64::from_bits(odd) as f32
}

impl Lanes for Portable {
    const MAX_SUMS: usize = 2;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        Self([value; LANES])
    }
    #[inline(always)]
    fn load(values: &[f32; LANES]) -> Self {
        Self(*values)
    }
    #[inline(always)]
    fn store(self, out: &mut [f32; LANES]) {
        *out = self.0;
    }
    #[inline(always)]
    fn load_f16(bits: &[u16; LANES]) -> Self {
        Self::each(|i| f16_bits_to_f32(bits[i]))
    }
    #[inline(always)]
    fn store_f16(self, out: &mut [u16; LANES]) {
        *out = self.0.map(|value| {
            let value = if value > F16_MAX { F16_MAX } else { value };
            f16::from_f32(if value < -F16_MAX { -F16_MAX } else { value }).to_bits()
        });
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self::each(|i| fused_multiply_add(self.0[i], factor.0[i], addend.0[i]))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn select_less(self, bound: Self, yes: Self, no: Self) -> Self {
        Self::each(|i| if self.0[i] < bound.0[i] { yes.0[i] } else { no.0[i] })
    }
    #[inline(always)]
    fn exponent_bits(self) -> Self {
        Self::each(|i| {
            let exponent = self.0[i].to_bits().wrapping_sub(EXP_ROUND.to_bits()).wrapping_add(127);
            f32::from_bits(exponent << 23)
        })
    }
    #[inline(always)]
    fn bf16_pairs(pairs: &[u32; LANES]) -> (Self, Self) {
        (
            Self::each(|i| f32::from_bits(pairs[i] << 16)),
            Self::each(|i| f32::from_bits(pairs[i] & 0xffff_0000)),
        )
    }
    #[inline(always)]
    fn transpose(rows: [&[u32; LANES]; LANES], out: &mut [[u32; LANES]; LANES]) {
        for (word, out) in out.iter_mut().enumerate() {
            for (out, row) in out.iter_mut().zip(rows) {
                *out = row[word];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oarlock_backend::quant::SplitMix;

    #[test]
    fn every_f16_is_converted() {
        for bits in 0..=u16::MAX {
            let (got, want) = (f16_bits_to_f32(bits), f16::from_bits(bits).to_f32());
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{bits:#x}");
        }
    }

    #[test]
    fn fused_is_mul_add() {
        let mut random = SplitMix(1);
        let special =
            [0.0, -0.0, 1.0, f32::INFINITY, f32::NAN, f32::MAX, f32::MIN_POSITIVE, 1e-45, -3e-39];
        for round in 0..3_000_000 {
            let mut draw = || match round % 4 {
                0 => f32::from_bits(random.next() as u32),
                1 => special[random.next() as usize % special.len()],
                // Few bits, near each other: halfway cases.
                2 => (random.next() % 4096) as f32 * 2.0_f32.powi((random.next() % 40) as i32 - 20),
                _ => random.uniform(),
            };
            let (a, b, c) = (draw(), draw(), draw());
            let (got, want) = (fused_multiply_add(a, b, c), a.mul_add(b, c));
            assert!(
                got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(),
                "{a:e} {b:e} {c:e}"
            );
        }
    }
}
