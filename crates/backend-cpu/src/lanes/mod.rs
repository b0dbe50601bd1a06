//! Sixteen floats at once, per instruction set. Every operation is one IEEE operation per lane, so
//! that all implementations give the same bits; kernels are written once over [`Lanes`].

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use portable::{Portable, f16_bits_to_f32, fused_multiply_add};

use oarlock_sampler::math::{
    EXP_LN2_HIGH, EXP_LN2_LOW, EXP_LOG2_E, EXP_MAX, EXP_MIN, EXP_POLYNOMIAL, EXP_ROUND,
};

/// Lanes of every vector.
pub(crate) const LANES: usize = 16;

/// The greatest finite f16; the KV cache saturates there.
pub(crate) const F16_MAX: f32 = 65_504.0;

/// Sixteen floats. Values exist only inside functions compiled for the instruction set (see
/// `isa::multiversion`), which is what makes the intrinsics behind the methods sound.
pub(crate) trait Lanes: Copy {
    /// How many sums fit into registers beside their operands.
    const MAX_SUMS: usize;

    fn splat(value: f32) -> Self;
    fn load(values: &[f32; LANES]) -> Self;
    fn store(self, out: &mut [f32; LANES]);
    /// Sixteen f16 by their bits.
    fn load_f16(bits: &[u16; LANES]) -> Self;
    /// To f16, nearest even, saturated to ±[`F16_MAX`]; NaN stays NaN.
    fn store_f16(self, out: &mut [u16; LANES]);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// `self * factor + addend`, rounded once.
    fn mul_add(self, factor: Self, addend: Self) -> Self;
    /// `self > other ? self : other`: `other` where either is NaN.
    fn max(self, other: Self) -> Self;
    /// `self < bound ? yes : no`: `no` where either is NaN.
    fn select_less(self, bound: Self, yes: Self, no: Self) -> Self;
    /// Two to the integer that `oarlock_sampler::math::exp` keeps in the low bits of `self`.
    fn exponent_bits(self) -> Self;
    /// bfloat16 pairs: the low halves and the high halves as floats.
    fn bf16_pairs(pairs: &[u32; LANES]) -> (Self, Self);
    /// Word `i` of row `j` becomes word `j` of row `i`.
    fn transpose(rows: [&[u32; LANES]; LANES], out: &mut [[u32; LANES]; LANES]);
}

/// `oarlock_sampler::math::exp` on every lane, the same operations in the same order.
#[inline(always)]
pub(crate) fn exp<L: Lanes>(x: L) -> L {
    let max = L::splat(EXP_MAX);
    // NaN is not less, and stays.
    let clamped = max.select_less(x, max, x);
    let round = L::splat(EXP_ROUND);
    let rounded = clamped.mul_add(L::splat(EXP_LOG2_E), round);
    let n = rounded.sub(round);
    let r = n.mul_add(L::splat(-EXP_LN2_HIGH), clamped);
    let r = n.mul_add(L::splat(-EXP_LN2_LOW), r);
    let [p0, p1, p2, p3, p4] = EXP_POLYNOMIAL.map(L::splat);
    let q = p4.mul_add(r, p3).mul_add(r, p2).mul_add(r, p1).mul_add(r, p0);
    let p = r.mul(r).mul_add(q, r).add(L::splat(1.0));
    let scale = rounded.exponent_bits();
    x.select_less(L::splat(EXP_MIN), L::splat(0.0), p.mul(scale))
}

/// `tanh(x) = 1 - 2 / (exp(2 x) + 1)`: within 1e-7 absolutely, which is what scores need.
#[inline(always)]
pub(crate) fn tanh<L: Lanes>(x: L) -> L {
    let one = L::splat(1.0);
    let two = L::splat(2.0);
    one.sub(two.div(exp(x.mul(two)).add(one)))
}

/// The fixed tree: lanes 8, 4, 2 and 1 apart are joined.
#[inline(always)]
pub(crate) fn sum_lanes<L: Lanes>(lanes: L) -> f32 {
    let mut values = [0.0; LANES];
    lanes.store(&mut values);
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            values[i] += values[i + width];
        }
        width /= 2;
    }
    values[0]
}

/// Up to sixteen values, the rest filled.
#[inline(always)]
pub(crate) fn load_partial<L: Lanes>(values: &[f32], fill: f32) -> L {
    let mut whole = [fill; LANES];
    whole[..values.len()].copy_from_slice(values);
    L::load(&whole)
}

/// Stores the first lanes.
#[inline(always)]
pub(crate) fn store_partial<L: Lanes>(lanes: L, out: &mut [f32]) {
    let mut whole = [0.0; LANES];
    lanes.store(&mut whole);
    out.copy_from_slice(&whole[..out.len()]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InstructionSet;
    use crate::isa::{Isa, multiversion};

    #[inline(always)]
    fn everything<L: Lanes>(a: &[f32; LANES], b: &[f32; LANES], out: &mut Vec<u32>) {
        let (x, y) = (L::load(a), L::load(b));
        let mut halves = [0; LANES];
        x.store_f16(&mut halves);
        let pairs = a.map(f32::to_bits);
        let (even, odd) = L::bf16_pairs(&pairs);
        for value in [
            x.add(y),
            x.sub(y),
            x.mul(y),
            x.div(y),
            x.mul_add(y, x),
            x.max(y),
            x.select_less(y, x, y),
            exp(x),
            tanh(x),
            L::load_f16(&halves),
            even,
            odd,
        ] {
            let mut lanes = [0.0; LANES];
            value.store(&mut lanes);
            // The sign and payload of a NaN are nobody's business.
            out.extend(lanes.map(|v| if v.is_nan() { u32::MAX } else { v.to_bits() }));
        }
        let total = sum_lanes(x);
        out.push(if total.is_nan() { u32::MAX } else { total.to_bits() });
    }

    multiversion! {
        fn run = everything(a: &[f32; LANES], b: &[f32; LANES], out: &mut Vec<u32>);
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let special = [
            0.0,
            -0.0,
            1.0,
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::MAX,
            f32::MIN_POSITIVE,
            1e-40,
            65_503.0,
            65_520.0,
            -70_000.0,
            6e-8,
            2e-8,
            -87.4,
            88.5,
        ];
        let mut random = oarlock_backend::quant::SplitMix(3);
        for round in 0..500 {
            let mut draw = |i: usize| match round % 3 {
                0 => random.uniform() * 100.0,
                1 => f32::from_bits(random.next() as u32),
                _ => special[(i + random.next() as usize) % special.len()],
            };
            let a: [f32; LANES] = std::array::from_fn(&mut draw);
            let b: [f32; LANES] = std::array::from_fn(&mut draw);
            let run_on = |set| {
                let mut out = Vec::new();
                run(Isa::new(set).unwrap(), &a, &b, &mut out);
                out
            };
            let want = run_on(InstructionSet::Portable);
            for set in InstructionSet::available() {
                assert_eq!(run_on(set), want, "{set}: {a:?} {b:?}");
            }
        }
    }

    #[inline(always)]
    fn transposed<L: Lanes>(rows: &[[u32; LANES]; LANES], out: &mut [[u32; LANES]; LANES]) {
        L::transpose(rows.each_ref(), out);
    }

    multiversion! {
        fn run_transposed = transposed(rows: &[[u32; LANES]; LANES], out: &mut [[u32; LANES]; LANES]);
    }

    #[test]
    fn every_instruction_set_transposes() {
        let rows: [[u32; LANES]; LANES] =
            std::array::from_fn(|row| std::array::from_fn(|word| (row * 100 + word) as u32));
        for set in InstructionSet::available() {
            let mut out = [[0; LANES]; LANES];
            run_transposed(Isa::new(set).unwrap(), &rows, &mut out);
            for (word, got) in out.iter().enumerate() {
                assert_eq!(*got, std::array::from_fn(|row| rows[row][word]), "{set}");
            }
        }
    }

    #[test]
    fn exp_is_the_samplers() {
        let mut random = oarlock_backend::quant::SplitMix(4);
        for _ in 0..2000 {
            let a: [f32; LANES] = std::array::from_fn(|_| random.uniform() * 95.0);
            let mut out = [0.0; LANES];
            exp(Portable::load(&a)).store(&mut out);
            assert_eq!(out.map(f32::to_bits), a.map(|x| oarlock_sampler::math::exp(x).to_bits()));
        }
    }
}
