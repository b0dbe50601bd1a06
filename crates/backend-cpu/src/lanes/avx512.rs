//! Lanes as one 512-bit register.
#![allow(clippy::undocumented_unsafe_blocks, reason = "the one reason stands below")]
// SAFETY of every block in this file: a value of this type exists only inside functions compiled for
// AVX-512 F, BW, DQ and VL, which `multiversion` calls where the CPU has them (see `Lanes`); loads and
// stores go through references to arrays of exactly the size that is read or written.

use std::arch::x86_64::*;

use oarlock_sampler::math::EXP_ROUND;

use super::{F16_MAX, LANES, Lanes};

/// Sixteen floats in a zmm register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

impl Lanes for Avx512 {
    const MAX_SUMS: usize = 8;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        unsafe { Self(_mm512_set1_ps(value)) }
    }
    #[inline(always)]
    fn load(values: &[f32; LANES]) -> Self {
        unsafe { Self(_mm512_loadu_ps(values.as_ptr())) }
    }
    #[inline(always)]
    fn store(self, out: &mut [f32; LANES]) {
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn load_f16(bits: &[u16; LANES]) -> Self {
        unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(bits.as_ptr().cast()))) }
    }
    #[inline(always)]
    fn store_f16(self, out: &mut [u16; LANES]) {
        unsafe {
            // The second operand is what a NaN gives: the value itself.
            let value = _mm512_min_ps(_mm512_set1_ps(F16_MAX), self.0);
            let value = _mm512_max_ps(_mm512_set1_ps(-F16_MAX), value);
            let bits = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(value);
            _mm256_storeu_si256(out.as_mut_ptr().cast(), bits);
        }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        unsafe { Self(_mm512_add_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        unsafe { Self(_mm512_sub_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        unsafe { Self(_mm512_div_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        unsafe { Self(_mm512_fmadd_ps(self.0, factor.0, addend.0)) }
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        unsafe { Self(_mm512_max_ps(self.0, other.0)) }
    }
    #[inline(always)]
    fn select_less(self, bound: Self, yes: Self, no: Self) -> Self {
        unsafe {
            let less = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, bound.0);
            Self(_mm512_mask_blend_ps(less, no.0, yes.0))
        }
    }
    #[inline(always)]
    fn exponent_bits(self) -> Self {
        unsafe {
            let bias = _mm512_set1_epi32(127_i32.wrapping_sub(EXP_ROUND.to_bits().cast_signed()));
            let exponent = _mm512_add_epi32(_mm512_castps_si512(self.0), bias);
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent)))
        }
    }
    #[inline(always)]
    fn bf16_pairs(pairs: &[u32; LANES]) -> (Self, Self) {
        unsafe {
            let pairs = _mm512_loadu_si512(pairs.as_ptr().cast());
            let high = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
            (
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs))),
                Self(_mm512_castsi512_ps(high)),
            )
        }
    }
    #[inline(always)]
    fn transpose(rows: [&[u32; LANES]; LANES], out: &mut [[u32; LANES]; LANES]) {
        unsafe {
            let mut a = [_mm512_setzero_si512(); LANES];
            for (a, row) in a.iter_mut().zip(rows) {
                *a = _mm512_loadu_si512(row.as_ptr().cast());
            }
            // Squares of 4 words inside of every quarter of four neighbouring rows.
            let mut b = a;
            for i in (0..LANES).step_by(4) {
                let (low0, high0) =
                    (_mm512_unpacklo_epi32(a[i], a[i + 1]), _mm512_unpackhi_epi32(a[i], a[i + 1]));
                let (low2, high2) = (
                    _mm512_unpacklo_epi32(a[i + 2], a[i + 3]),
                    _mm512_unpackhi_epi32(a[i + 2], a[i + 3]),
                );
                b[i] = _mm512_unpacklo_epi64(low0, low2);
                b[i + 1] = _mm512_unpackhi_epi64(low0, low2);
                b[i + 2] = _mm512_unpacklo_epi64(high0, high2);
                b[i + 3] = _mm512_unpackhi_epi64(high0, high2);
            }
            // Quarter q of b[4 r + w] is word 4 q + w of rows 4 r to 4 r + 3.
            for w in 0..4 {
                let (b0, b1, b2, b3) = (b[w], b[4 + w], b[8 + w], b[12 + w]);
                let even01 = _mm512_shuffle_i32x4::<0b10_00_10_00>(b0, b1);
                let odd01 = _mm512_shuffle_i32x4::<0b11_01_11_01>(b0, b1);
                let even23 = _mm512_shuffle_i32x4::<0b10_00_10_00>(b2, b3);
                let odd23 = _mm512_shuffle_i32x4::<0b11_01_11_01>(b2, b3);
                for (word, value) in [
                    (w, _mm512_shuffle_i32x4::<0b10_00_10_00>(even01, even23)),
                    (4 + w, _mm512_shuffle_i32x4::<0b10_00_10_00>(odd01, odd23)),
                    (8 + w, _mm512_shuffle_i32x4::<0b11_01_11_01>(even01, even23)),
                    (12 + w, _mm512_shuffle_i32x4::<0b11_01_11_01>(odd01, odd23)),
                ] {
                    _mm512_storeu_si512(out[word].as_mut_ptr().cast(), value);
                }
            }
        }
    }
}
