//! Lanes as an array of floats.

use half::f16;
use oarlock_sampler::math::EXP_ROUND;

use super::{F16_MAX, LANES, Lanes};

/// Sixteen floats in plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
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
        Self(bits.map(|bits| f16::from_bits(bits).to_f32()))
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
        Self(std::array::from_fn(|i| self.0[i].mul_add(factor.0[i], addend.0[i])))
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn select_less(self, bound: Self, yes: Self, no: Self) -> Self {
        Self(std::array::from_fn(|i| if self.0[i] < bound.0[i] { yes.0[i] } else { no.0[i] }))
    }
    #[inline(always)]
    fn exponent_bits(self) -> Self {
        Self(self.0.map(|rounded| {
            let exponent = rounded.to_bits().wrapping_sub(EXP_ROUND.to_bits()).wrapping_add(127);
            f32::from_bits(exponent << 23)
        }))
    }
    #[inline(always)]
    fn bf16_pairs(pairs: &[u32; LANES]) -> (Self, Self) {
        (Self(pairs.map(|pair| f32::from_bits(pair << 16))), Self(pairs.map(|pair| f32::from_bits(pair & 0xffff_0000))))
    }
}
