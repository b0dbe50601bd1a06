//! Lanes as two 256-bit registers.
#![allow(clippy::undocumented_unsafe_blocks, reason = "the one reason stands below")]
// SAFETY of every block in this file: a value of this type exists only inside functions compiled for
// AVX2, FMA and F16C, which `multiversion` calls where the CPU has them (see `Lanes`); loads and stores
// go through references to arrays of exactly the size that is read or written in two halves.

use std::arch::x86_64::*;

use oarlock_sampler::math::EXP_ROUND;

use super::{F16_MAX, LANES, Lanes};

/// Sixteen floats in two ymm registers.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

impl Lanes for Avx2 {
    const MAX_SUMS: usize = 4;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        unsafe { Self(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
    }
    #[inline(always)]
    fn load(values: &[f32; LANES]) -> Self {
        unsafe { Self(_mm256_loadu_ps(values.as_ptr()), _mm256_loadu_ps(values.as_ptr().add(8))) }
    }
    #[inline(always)]
    fn store(self, out: &mut [f32; LANES]) {
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), self.0);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), self.1);
        }
    }
    #[inline(always)]
    fn load_f16(bits: &[u16; LANES]) -> Self {
        unsafe {
            Self(
                _mm256_cvtph_ps(_mm_loadu_si128(bits.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(bits.as_ptr().add(8).cast())),
            )
        }
    }
    #[inline(always)]
    fn store_f16(self, out: &mut [u16; LANES]) {
        unsafe {
            // The second operand is what a NaN gives: the value itself.
            let (limit, least) = (_mm256_set1_ps(F16_MAX), _mm256_set1_ps(-F16_MAX));
            for (value, at) in [(self.0, 0), (self.1, 8)] {
                let value = _mm256_max_ps(least, _mm256_min_ps(limit, value));
                let bits = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(value);
                _mm_storeu_si128(out.as_mut_ptr().add(at).cast(), bits);
            }
        }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        unsafe { Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        unsafe { Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        unsafe { Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        unsafe { Self(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1)) }
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, addend: Self) -> Self {
        unsafe {
            Self(
                _mm256_fmadd_ps(self.0, factor.0, addend.0),
                _mm256_fmadd_ps(self.1, factor.1, addend.1),
            )
        }
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        unsafe { Self(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
    }
    #[inline(always)]
    fn select_less(self, bound: Self, yes: Self, no: Self) -> Self {
        unsafe {
            let low = _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, bound.0);
            let high = _mm256_cmp_ps::<_CMP_LT_OQ>(self.1, bound.1);
            Self(_mm256_blendv_ps(no.0, yes.0, low), _mm256_blendv_ps(no.1, yes.1, high))
        }
    }
    #[inline(always)]
    fn exponent_bits(self) -> Self {
        unsafe {
            let bias = _mm256_set1_epi32(127_i32.wrapping_sub(EXP_ROUND.to_bits().cast_signed()));
            let shift = |value| {
                let exponent = _mm256_add_epi32(_mm256_castps_si256(value), bias);
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
            };
            Self(shift(self.0), shift(self.1))
        }
    }
    #[inline(always)]
    fn bf16_pairs(pairs: &[u32; LANES]) -> (Self, Self) {
        unsafe {
            let low = _mm256_loadu_si256(pairs.as_ptr().cast());
            let high = _mm256_loadu_si256(pairs.as_ptr().add(8).cast());
            let mask = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
            let even = |v| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(v));
            let odd = |v| _mm256_castsi256_ps(_mm256_and_si256(v, mask));
            (Self(even(low), even(high)), Self(odd(low), odd(high)))
        }
    }
    #[inline(always)]
    fn transpose(rows: [&[u32; LANES]; LANES], out: &mut [[u32; LANES]; LANES]) {
        // Quarters of 8 rows by 8 words.
        for first_row in [0, 8] {
            for first_word in [0, 8] {
                unsafe {
                    let mut a = [_mm256_setzero_si256(); 8];
                    for (a, row) in a.iter_mut().zip(&rows[first_row..]) {
                        *a = _mm256_loadu_si256(row.as_ptr().add(first_word).cast());
                    }
                    // Squares of 4 words inside of both halves of four neighbouring rows.
                    let mut b = a;
                    for i in [0, 4] {
                        let low0 = _mm256_unpacklo_epi32(a[i], a[i + 1]);
                        let high0 = _mm256_unpackhi_epi32(a[i], a[i + 1]);
                        let low2 = _mm256_unpacklo_epi32(a[i + 2], a[i + 3]);
                        let high2 = _mm256_unpackhi_epi32(a[i + 2], a[i + 3]);
                        b[i] = _mm256_unpacklo_epi64(low0, low2);
                        b[i + 1] = _mm256_unpackhi_epi64(low0, low2);
                        b[i + 2] = _mm256_unpacklo_epi64(high0, high2);
                        b[i + 3] = _mm256_unpackhi_epi64(high0, high2);
                    }
                    for w in 0..4 {
                        let low = _mm256_permute2x128_si256::<0x20>(b[w], b[4 + w]);
                        let high = _mm256_permute2x128_si256::<0x31>(b[w], b[4 + w]);
                        for (word, value) in [(w, low), (4 + w, high)] {
                            let to = &mut out[first_word + word][first_row..];
                            _mm256_storeu_si256(to.as_mut_ptr().cast(), value);
                        }
                    }
                }
            }
        }
    }
}
