//! Arithmetic in f32 and f64.

use super::pick::{Pick, pick};
use crate::exec::registers::Lane;
use crate::numbers::{F32, Rounding, add_odd, div_odd, sqrt_odd};

/// One operation with and without flushing of denormals and saturation.
macro_rules! variants {
    ($flush:expr, $sat:expr, |$($a:ident),+| $body:expr) => {
        match ($flush, $sat) {
            (false, false) => pick!(|$($a: f32),+| -> f32 { $body }),
            (true, false) => pick!(|$($a: f32),+| -> f32 { { $(let $a = flush($a);)+ flush($body) } }),
            (false, true) => pick!(|$($a: f32),+| -> f32 { saturate($body) }),
            (true, true) => pick!(|$($a: f32),+| -> f32 { { $(let $a = flush($a);)+ saturate(flush($body)) } }),
        }
    };
}

/// The operation of a name without its type, rounding, `.ftz` and `.sat`.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub(super) fn single(op: &str, rounding: Rounding, ftz: bool, sat: bool) -> Option<Pick> {
    if rounding != Rounding::Nearest {
        return directed(op, rounding, ftz);
    }
    Some(match op {
        "add" => variants!(ftz, sat, |a, b| a + b),
        "sub" => variants!(ftz, sat, |a, b| a - b),
        "mul" => variants!(ftz, sat, |a, b| a * b),
        "fma" | "mad" => variants!(ftz, sat, |a, b, c| a.mul_add(b, c)),
        "fma.relu" => variants!(ftz, sat, |a, b, c| a.mul_add(b, c).max(0.0)),
        "div" | "div.approx" | "div.full" => variants!(ftz, sat, |a, b| a / b),
        "rcp" | "rcp.approx" => variants!(ftz, sat, |a| 1.0 / a),
        "sqrt" | "sqrt.approx" => variants!(ftz, sat, |a| a.sqrt()),
        "rsqrt.approx" => variants!(ftz, sat, |a| (1.0 / f64::from(a).sqrt()) as f32),
        "min" => variants!(ftz, sat, |a, b| min(a, b)),
        "max" => variants!(ftz, sat, |a, b| max(a, b)),
        "min.NaN" => {
            variants!(ftz, sat, |a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { min(a, b) })
        }
        "max.NaN" => {
            variants!(ftz, sat, |a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { max(a, b) })
        }
        "abs" => variants!(ftz, sat, |a| a.abs()),
        "neg" => variants!(ftz, sat, |a| -a),
        "copysign" => variants!(ftz, sat, |a, b| b.copysign(a)),
        "ex2.approx" => variants!(ftz, sat, |a| exp2(a)),
        "lg2.approx" => variants!(ftz, sat, |a| f64::from(a).log2() as f32),
        "sin.approx" => variants!(ftz, sat, |a| f64::from(a).sin() as f32),
        "cos.approx" => variants!(ftz, sat, |a| f64::from(a).cos() as f32),
        "tanh.approx" => variants!(ftz, sat, |a| f64::from(a).tanh() as f32),
        _ => return None,
    })
}

/// Rounding toward zero, down or up: a double rounded to odd, then rounded once more.
fn directed(op: &str, rounding: Rounding, ftz: bool) -> Option<Pick> {
    macro_rules! rounded {
        ($mode:path, $body:expr, $($a:ident),+) => {
            if ftz {
                pick!(|$($a: f32),+| -> f32 { { $(let $a = f64::from(flush($a));)+ flush(round($body, $mode)) } })
            } else {
                pick!(|$($a: f32),+| -> f32 { { $(let $a = f64::from($a);)+ round($body, $mode) } })
            }
        };
    }
    macro_rules! modes {
        ($body:expr, $($a:ident),+) => {
            match rounding {
                Rounding::Zero => rounded!(Rounding::Zero, $body, $($a),+),
                Rounding::Down => rounded!(Rounding::Down, $body, $($a),+),
                Rounding::Up => rounded!(Rounding::Up, $body, $($a),+),
                _ => return None,
            }
        };
    }
    Some(match op {
        "add" => modes!(add_odd(a, b), a, b),
        "sub" => modes!(add_odd(a, -b), a, b),
        "mul" => modes!(a * b, a, b),
        "fma" | "mad" => modes!(add_odd(a * b, c), a, b, c),
        "div" => modes!(div_odd(a, b), a, b),
        "rcp" => modes!(div_odd(1.0, a), a),
        "sqrt" => modes!(sqrt_odd(a), a),
        _ => return None,
    })
}

/// The operation in f64.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub(super) fn double(op: &str, rounding: Rounding) -> Option<Pick> {
    if rounding != Rounding::Nearest {
        return None;
    }
    Some(match op {
        "add" => pick!(|a: f64, b: f64| -> f64 { a + b }),
        "sub" => pick!(|a: f64, b: f64| -> f64 { a - b }),
        "mul" => pick!(|a: f64, b: f64| -> f64 { a * b }),
        "fma" | "mad" => pick!(|a: f64, b: f64, c: f64| -> f64 { a.mul_add(b, c) }),
        "div" => pick!(|a: f64, b: f64| -> f64 { a / b }),
        "rcp" | "rcp.approx" => pick!(|a: f64| -> f64 { 1.0 / a }),
        "sqrt" => pick!(|a: f64| -> f64 { a.sqrt() }),
        "rsqrt.approx" => pick!(|a: f64| -> f64 { 1.0 / a.sqrt() }),
        "min" => pick!(|a: f64, b: f64| -> f64 { if a.is_nan() || b < a { b } else { a } }),
        "max" => pick!(|a: f64, b: f64| -> f64 { if a.is_nan() || b > a { b } else { a } }),
        "abs" => pick!(|a: f64| -> f64 { a.abs() }),
        "neg" => pick!(|a: f64| -> f64 { -a }),
        "copysign" => pick!(|a: f64, b: f64| -> f64 { b.copysign(a) }),
        _ => return None,
    })
}

#[inline(always)]
pub(super) fn flush(value: f32) -> f32 {
    let bits = value.to_bits();
    f32::from_bits(if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits })
}

/// To [0, 1]; NaN becomes 0.
#[inline(always)]
pub(super) fn saturate(value: f32) -> f32 {
    if value > 0.0 { if value < 1.0 { value } else { 1.0 } } else { 0.0 }
}

/// A NaN loses against a number, and −0 is below +0.
#[inline(always)]
pub(super) fn min(a: f32, b: f32) -> f32 {
    let smaller = if b < a || a.is_nan() { b } else { a };
    if a == b { f32::from_bits(a.to_bits() | b.to_bits()) } else { smaller }
}

/// A NaN loses against a number, and −0 is below +0.
#[inline(always)]
pub(super) fn max(a: f32, b: f32) -> f32 {
    let larger = if b > a || a.is_nan() { b } else { a };
    if a == b { f32::from_bits(a.to_bits() & b.to_bits()) } else { larger }
}

fn round(value: f64, rounding: Rounding) -> f32 {
    f32::from_bits(F32.encode_f64(value, rounding, false) as u32)
}

/// Two to a power: the fraction in [−½, ½] by a polynomial (relative error below 2⁻²³), the rest as an
/// exponent in two steps, so that denormal results are reached.
#[inline(always)]
pub(super) fn exp2(value: f32) -> f32 {
    let clamped = value.clamp(-160.0, 130.0);
    // Adding 1.5 × 2²³ leaves the whole part in the lowest bits.
    let shifted = clamped + 12_582_912.0;
    let whole = shifted - 12_582_912.0;
    let f = clamped - whole;
    let mut p = 1.535_337e-4_f32;
    for coefficient in
        [1.339_887e-3, 9.618_437e-3, 5.550_332_5e-2, 2.402_264_7e-1, 6.931_472e-1, 1.0]
    {
        p = p.mul_add(f, coefficient);
    }
    let exponent = shifted.to_bits().wrapping_sub(0x4b40_0000) as i32;
    let half = exponent >> 1;
    let scale = |power: i32| f32::from_bits((power.wrapping_add(127) << 23) as u32);
    let scaled = p * scale(half) * scale(exponent.wrapping_sub(half));
    if value.is_nan() { value } else { scaled }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp2_is_close() {
        for i in -20_000..20_000 {
            let x = i as f32 * 0.0061;
            let exact = f64::from(x).exp2();
            assert!((f64::from(exp2(x)) / exact - 1.0).abs() < 2.5e-7, "{x}");
        }
        assert_eq!(exp2(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp2(f32::INFINITY), f32::INFINITY);
        assert!(exp2(f32::NAN).is_nan());
        assert_eq!(exp2(0.0), 1.0);
        assert_eq!(exp2(-140.0), 2.0_f32.powi(-140));
    }

    #[test]
    fn extremes_know_nan_and_zeros() {
        assert_eq!(min(f32::NAN, 1.0), 1.0);
        assert_eq!(max(1.0, f32::NAN), 1.0);
        assert!(min(0.0, -0.0).is_sign_negative() && max(-0.0, 0.0).is_sign_positive());
    }
}
