//! `exp` and `ln` as fixed sequences of IEEE operations: the same bits everywhere, on any vector width.

/// Below this, `exp` gives 0: the least float whose exponential is a normal number, so that
/// denormals (slow on some units, flushed on others) never arise.
pub const EXP_MIN: f32 = -87.336_54;
/// Above this, `exp` gives `exp(88)`: finite, and far from overflow.
pub const EXP_MAX: f32 = 88.0;
/// 1 / ln 2.
pub const EXP_LOG2_E: f32 = std::f32::consts::LOG2_E;
/// 1.5 · 2²³: adding it rounds to an integer (nearest, ties to even) in the low bits of the sum.
pub const EXP_ROUND: f32 = 12_582_912.0;
/// High part of ln 2: 9 bits, so that its products with |n| ≤ 127 are exact (Cody and Waite, 1980).
pub const EXP_LN2_HIGH: f32 = 0.693_359_4;
/// ln 2 less its high part.
pub const EXP_LN2_LOW: f32 = -2.121_944_4e-4;
/// Coefficients of q in `exp(r) ≈ 1 + r + r²·q(r)`, lowest power first: interpolation at the
/// Chebyshev nodes of |r| ≤ ln(2)/2, relative error below 2⁻²⁶.
pub const EXP_POLYNOMIAL: [f32; 5] =
    [0.5, 0.166_665_76, 0.041_666_556, 0.008_363_203, 0.001_392_621_3];

/// The exponential, within 1.1 ulp; 0 below [`EXP_MIN`], `exp(EXP_MAX)` above [`EXP_MAX`], NaN of NaN.
///
/// Every other implementation performs exactly these operations, each rounded to nearest:
///
/// ```text
/// c = x > EXP_MAX ? EXP_MAX : x           (NaN stays)
/// t = fma(c, EXP_LOG2_E, EXP_ROUND)
/// n = t - EXP_ROUND                        (an integer as a float)
/// r = fma(n, -EXP_LN2_HIGH, c)
/// r = fma(n, -EXP_LN2_LOW, r)
/// q = P4; q = fma(q, r, P3); q = fma(q, r, P2); q = fma(q, r, P1); q = fma(q, r, P0)
/// p = fma(r * r, q, r) + 1
/// s = float with the bits (bits(t) - bits(EXP_ROUND) + 127) << 23     (2ⁿ)
/// y = x < EXP_MIN ? 0 : p * s             (NaN stays)
/// ```
#[inline]
pub fn exp(x: f32) -> f32 {
    let clamped = if x > EXP_MAX { EXP_MAX } else { x };
    let rounded = clamped.mul_add(EXP_LOG2_E, EXP_ROUND);
    let n = rounded - EXP_ROUND;
    let r = n.mul_add(-EXP_LN2_HIGH, clamped);
    let r = n.mul_add(-EXP_LN2_LOW, r);
    let [p0, p1, p2, p3, p4] = EXP_POLYNOMIAL;
    let q = p4.mul_add(r, p3).mul_add(r, p2).mul_add(r, p1).mul_add(r, p0);
    let p = (r * r).mul_add(q, r) + 1.0;
    let exponent = rounded.to_bits().wrapping_sub(EXP_ROUND.to_bits()).wrapping_add(127);
    let scale = f32::from_bits(exponent << 23);
    if x < EXP_MIN { 0.0 } else { p * scale }
}

/// High part of ln 2 in f64: 32 bits, exact in products with the exponents of f64.
const LN2_HIGH: f64 = 0.693_147_180_369_123_8;
/// ln 2 less its high part.
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;

/// The natural logarithm of a positive normal number, within 2 ulp; negative infinity of 0, infinity
/// of infinity, NaN of anything else.
///
/// With x = 2ⁿ·m, m in [√½, √2), and s = (m − 1)/(m + 1): ln m = 2·atanh(s), by its series.
pub fn ln(x: f64) -> f64 {
    if x == 0.0 {
        return f64::NEG_INFINITY;
    }
    if x == f64::INFINITY {
        return x;
    }
    if x.is_nan() || x < f64::MIN_POSITIVE {
        return f64::NAN;
    }
    // Subtracting the bits of √½ makes the exponent field count from there.
    let from = std::f64::consts::FRAC_1_SQRT_2.to_bits();
    let n = (x.to_bits() as i64 - from as i64) >> 52;
    let m = f64::from_bits(x.to_bits().wrapping_sub((n << 52) as u64));
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let mut tail = 0.0_f64;
    for k in (1..=11).rev() {
        tail = tail.mul_add(z, 1.0 / f64::from(2 * k + 1));
    }
    let high = 2.0 * s;
    let low = high * (z * tail);
    let n = n as f64;
    // Smallest terms first. `high` itself is rounded, and so loses up to an ulp.
    n.mul_add(LN2_HIGH, high + n.mul_add(LN2_LOW, low))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance to the true value in units of the float's last place.
    fn ulps_f32(got: f32, want: f64) -> f64 {
        let ulp = 2.0_f64.powi((want.abs() as f32).to_bits() as i32 / (1 << 23) - 127 - 23);
        (f64::from(got) - want).abs() / ulp
    }

    #[test]
    fn exp_is_accurate() {
        let mut worst = 0.0_f64;
        let mut check = |x: f32| worst = worst.max(ulps_f32(exp(x), f64::from(x).exp()));
        for i in 0..=1_000_000 {
            check((EXP_MIN + (EXP_MAX - EXP_MIN) * (i as f32 / 1_000_000.0)).min(EXP_MAX));
        }
        // Every float near zero at a stride, both signs.
        for bits in (0..1.0_f32.to_bits()).step_by(4_099) {
            check(f32::from_bits(bits));
            check(-f32::from_bits(bits));
        }
        assert!(worst <= 1.1, "{worst} ulp");
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::MIN), 0.0);
        assert_eq!(exp(EXP_MIN.next_down()), 0.0);
        assert!(exp(EXP_MIN).is_normal());
        assert_eq!(exp(f32::INFINITY), exp(EXP_MAX));
        assert!(exp(f32::MAX).is_finite());
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(-f32::NAN).is_nan());
    }

    #[test]
    fn exp_never_decreases() {
        let mut last = 0.0;
        for i in 0..2_000_000 {
            let y = exp(-20.0 + i as f32 * 1e-5);
            assert!(y >= last);
            last = y;
        }
    }

    #[test]
    fn exp_keeps_its_bits() {
        // Pinned: a change here changes answers.
        let got = [-80.0, -10.5, -1.0, -0.1, 0.3, 1.0, 50.25].map(|x| exp(x).to_bits());
        assert_eq!(
            got,
            [
                96_464_058,
                937_885_203,
                1_052_531_378,
                1_063_756_653,
                1_068_288_044,
                1_076_754_516,
                1_672_770_113
            ]
        );
    }

    #[test]
    fn ln_is_within_two_ulps() {
        let mut worst = 0.0_f64;
        let mut x = 1e-300_f64;
        while x < 1e300 {
            let want = x.ln();
            let ulp = want.abs().next_up() - want.abs();
            worst = worst.max((ln(x) - want).abs() / ulp);
            x *= 1.000_37;
        }
        for i in 0..1_000_000 {
            let x = 0.5 + f64::from(i) * 3e-6;
            let ulp = x.ln().abs().next_up() - x.ln().abs();
            worst = worst.max((ln(x) - x.ln()).abs() / ulp);
        }
        assert!(worst <= 2.0, "{worst} ulp");
        assert_eq!(ln(1.0), 0.0);
        assert_eq!(ln(0.0), f64::NEG_INFINITY);
        assert_eq!(ln(f64::INFINITY), f64::INFINITY);
        assert!(ln(-1.0).is_nan() && ln(f64::NAN).is_nan());
    }
}
