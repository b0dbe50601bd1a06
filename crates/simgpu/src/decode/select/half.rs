//! Arithmetic in f16 and bf16, one or two to a register.
//!
//! Sums, products and quotients through f32 are exact after the second rounding (24 ≥ 2·11 + 2 bits);
//! fused multiply-adds round to odd in between.

use super::float::{exp2, flush, max, min, saturate};
use super::pick::{Pick, pick};
use crate::exec::registers::Lane;
use crate::numbers::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16, fma_odd};

/// One operation for the four ways of holding halves.
macro_rules! kinds {
    ($kind:expr, |$($a:ident),+| $body:expr) => {
        match $kind {
            "f16" => pick!(|$($a: u32),+| -> u32 { { $(let $a = f16_to_f32($a);)+ f32_to_f16($body) } }),
            "bf16" => pick!(|$($a: u32),+| -> u32 { { $(let $a = bf16_to_f32($a);)+ f32_to_bf16($body) } }),
            "f16x2" => pick!(|$($a: u32),+| -> u32 { {
                let low = { $(let $a = f16_to_f32($a);)+ f32_to_f16($body) };
                let high = { $(let $a = f16_to_f32($a >> 16);)+ f32_to_f16($body) };
                low | high << 16
            } }),
            "bf16x2" => pick!(|$($a: u32),+| -> u32 { {
                let low = { $(let $a = bf16_to_f32($a);)+ f32_to_bf16($body) };
                let high = { $(let $a = bf16_to_f32($a >> 16);)+ f32_to_bf16($body) };
                low | high << 16
            } }),
            _ => return None,
        }
    };
}

/// The operation of a name without its type and rounding.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub(super) fn half(op: &str, kind: &str) -> Option<Pick> {
    Some(match op {
        "add" => kinds!(kind, |a, b| a + b),
        "sub" => kinds!(kind, |a, b| a - b),
        "mul" => kinds!(kind, |a, b| a * b),
        "add.sat" => kinds!(kind, |a, b| saturate(a + b)),
        "mul.sat" => kinds!(kind, |a, b| saturate(a * b)),
        "fma" => kinds!(kind, |a, b, c| fma_odd(a, b, c)),
        "fma.relu" => kinds!(kind, |a, b, c| fma_odd(a, b, c).max(0.0)),
        "fma.sat" => kinds!(kind, |a, b, c| saturate(fma_odd(a, b, c))),
        "min" => kinds!(kind, |a, b| min(a, b)),
        "max" => kinds!(kind, |a, b| max(a, b)),
        "min.NaN" => {
            kinds!(kind, |a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { min(a, b) })
        }
        "max.NaN" => {
            kinds!(kind, |a, b| if a.is_nan() || b.is_nan() { f32::NAN } else { max(a, b) })
        }
        "ex2.approx" => kinds!(kind, |a| exp2(a)),
        "tanh.approx" => kinds!(kind, |a| f64::from(a).tanh() as f32),
        "neg" | "abs" => return sign(op, kind),
        _ => return None,
    })
}

/// Signs are bits: NaN keeps its payload.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn sign(op: &str, kind: &str) -> Option<Pick> {
    Some(match (op, kind) {
        ("neg", "f16" | "bf16") => pick!(|a: u32| -> u32 { a ^ 0x8000 }),
        ("neg", "f16x2" | "bf16x2") => pick!(|a: u32| -> u32 { a ^ 0x8000_8000 }),
        ("abs", "f16" | "bf16") => pick!(|a: u32| -> u32 { a & 0x7fff }),
        ("abs", "f16x2" | "bf16x2") => pick!(|a: u32| -> u32 { a & 0x7fff_7fff }),
        _ => return None,
    })
}

/// `cvt` between types, where a closed form is quick; `name` is the destination and the source type.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub(super) fn quick_convert(name: &str) -> Option<Pick> {
    Some(match name {
        "f32.f16" => pick!(|a: u32| -> f32 { f16_to_f32(a) }),
        "f32.bf16" => pick!(|a: u32| -> f32 { bf16_to_f32(a) }),
        "rn.f16.f32" => pick!(|a: f32| -> u32 { f32_to_f16(a) }),
        "rn.bf16.f32" => pick!(|a: f32| -> u32 { f32_to_bf16(a) }),
        "rn.f16x2.f32" => pick!(|a: f32, b: f32| -> u32 { f32_to_f16(b) | f32_to_f16(a) << 16 }),
        "rn.bf16x2.f32" => pick!(|a: f32, b: f32| -> u32 { f32_to_bf16(b) | f32_to_bf16(a) << 16 }),
        "rn.f32.s32" => pick!(|a: i32| -> f32 { a as f32 }),
        "rn.f32.u32" => pick!(|a: u32| -> f32 { a as f32 }),
        "rzi.s32.f32" => pick!(|a: f32| -> i32 { a as i32 }),
        "rzi.u32.f32" => pick!(|a: f32| -> u32 { a as u32 }),
        "rni.s32.f32" => pick!(|a: f32| -> i32 { a.round_ties_even() as i32 }),
        "rni.f32.f32" => pick!(|a: f32| -> f32 { a.round_ties_even() }),
        "rmi.f32.f32" => pick!(|a: f32| -> f32 { a.floor() }),
        "rpi.f32.f32" => pick!(|a: f32| -> f32 { a.ceil() }),
        "rzi.f32.f32" => pick!(|a: f32| -> f32 { a.trunc() }),
        "f64.f32" => pick!(|a: f32| -> f64 { f64::from(a) }),
        "rn.f32.f64" => pick!(|a: f64| -> f32 { a as f32 }),
        "ftz.f32.f32" => pick!(|a: f32| -> f32 { flush(a) }),
        "sat.f32.f32" => pick!(|a: f32| -> f32 { saturate(a) }),
        "u64.u32" => pick!(|a: u32| -> u64 { u64::from(a) }),
        "s64.s32" => pick!(|a: i32| -> i64 { i64::from(a) }),
        "u32.u64" | "s32.s64" | "u32.s64" | "s32.u64" => pick!(|a: u64| -> u32 { a as u32 }),
        "u32.u16" => pick!(|a: u32| -> u32 { a & 0xffff }),
        "s32.s16" => pick!(|a: u32| -> i32 { i32::from(a as i16) }),
        "s32.s8" => pick!(|a: u32| -> i32 { i32::from(a as i8) }),
        "u32.u8" => pick!(|a: u32| -> u32 { a & 0xff }),
        "u16.u32" | "s16.s32" | "u16.s32" => pick!(|a: u32| -> u32 { a & 0xffff }),
        _ => return None,
    })
}
