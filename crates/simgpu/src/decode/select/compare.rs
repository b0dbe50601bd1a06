//! Comparisons of `setp` and `set`.

use std::convert::identity;

use crate::exec::program::Test;
use crate::numbers::{bf16_to_f32, f16_to_f32};

use super::float::flush;

/// A comparison of floats: ordered ones are false, unordered ones true when one is NaN. `$load` makes
/// numbers of what the lanes hold.
macro_rules! float {
    ($name:expr, $T:ty, $load:path) => {{
        macro_rules! on {
            ($a:ident, $b:ident, $holds:expr) => {
                |r, a, b| {
                    r.test::<$T>(a, b, |a, b| {
                        let ($a, $b) = ($load(a), $load(b));
                        $holds
                    })
                }
            };
        }
        match $name {
            "eq" => on!(a, b, a == b),
            "ne" => on!(a, b, a < b || a > b),
            "lt" => on!(a, b, a < b),
            "le" => on!(a, b, a <= b),
            "gt" => on!(a, b, a > b),
            "ge" => on!(a, b, a >= b),
            "equ" => on!(a, b, !(a < b || a > b)),
            "neu" => on!(a, b, a != b),
            "ltu" => on!(a, b, !(a >= b)),
            "leu" => on!(a, b, !(a > b)),
            "gtu" => on!(a, b, !(a <= b)),
            "geu" => on!(a, b, !(a < b)),
            "num" => on!(a, b, !a.is_nan() && !b.is_nan()),
            "nan" => on!(a, b, a.is_nan() || b.is_nan()),
            _ => return None,
        }
    }};
}

macro_rules! integer {
    ($name:expr, $T:ty, $load:path) => {
        match $name {
            "eq" => |r, a, b| r.test::<$T>(a, b, |a, b| $load(a) == $load(b)),
            "ne" => |r, a, b| r.test::<$T>(a, b, |a, b| $load(a) != $load(b)),
            "lt" | "lo" => |r, a, b| r.test::<$T>(a, b, |a, b| $load(a) < $load(b)),
            "le" | "ls" => |r, a, b| r.test::<$T>(a, b, |a, b| $load(a) <= $load(b)),
            "gt" | "hi" => |r, a, b| r.test::<$T>(a, b, |a, b| $load(a) > $load(b)),
            "ge" | "hs" => |r, a, b| r.test::<$T>(a, b, |a, b| $load(a) >= $load(b)),
            _ => return None,
        }
    };
}

#[inline(always)]
fn low(word: u32) -> u16 {
    word as u16
}

#[inline(always)]
fn signed_low(word: u32) -> i16 {
    word as i16
}

#[inline(always)]
fn high_f16(word: u32) -> f32 {
    f16_to_f32(word >> 16)
}

#[inline(always)]
fn high_bf16(word: u32) -> f32 {
    bf16_to_f32(word >> 16)
}

/// The test of a comparison's name for a type.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
#[expect(
    clippy::double_comparisons,
    clippy::neg_cmp_op_on_partial_ord,
    reason = "unordered comparisons are negated ordered ones"
)]
pub(super) fn test(name: &str, kind: &str, flushes: bool) -> Option<Test> {
    Some(match kind {
        "b32" | "u32" => integer!(name, u32, identity),
        "s32" => integer!(name, i32, identity),
        "b64" | "u64" => integer!(name, u64, identity),
        "s64" => integer!(name, i64, identity),
        "b16" | "u16" => integer!(name, u32, low),
        "s16" => integer!(name, u32, signed_low),
        "f32" if flushes => float!(name, f32, flush),
        "f32" => float!(name, f32, identity),
        "f64" => float!(name, f64, identity),
        "f16" => float!(name, u32, f16_to_f32),
        "f16.high" => float!(name, u32, high_f16),
        "bf16.high" => float!(name, u32, high_bf16),
        "bf16" => float!(name, u32, bf16_to_f32),
        _ => return None,
    })
}

/// The test of `testp`: it looks at one operand.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub(super) fn property(name: &str, kind: &str) -> Option<Test> {
    Some(match (name, kind) {
        ("finite", "f32") => |r, a, b| r.test::<f32>(a, b, |a, _| a.is_finite()),
        ("infinite", "f32") => |r, a, b| r.test::<f32>(a, b, |a, _| a.is_infinite()),
        ("number", "f32") => |r, a, b| r.test::<f32>(a, b, |a, _| !a.is_nan()),
        ("notanumber", "f32") => |r, a, b| r.test::<f32>(a, b, |a, _| a.is_nan()),
        ("normal", "f32") => |r, a, b| r.test::<f32>(a, b, |a, _| a.is_normal()),
        ("subnormal", "f32") => |r, a, b| r.test::<f32>(a, b, |a, _| a.is_subnormal()),
        ("finite", "f64") => |r, a, b| r.test::<f64>(a, b, |a, _| a.is_finite()),
        ("infinite", "f64") => |r, a, b| r.test::<f64>(a, b, |a, _| a.is_infinite()),
        ("number", "f64") => |r, a, b| r.test::<f64>(a, b, |a, _| !a.is_nan()),
        ("notanumber", "f64") => |r, a, b| r.test::<f64>(a, b, |a, _| a.is_nan()),
        _ => return None,
    })
}
