//! Comparisons of `setp` and `set`.

use crate::exec::program::Test;
use crate::numbers::{bf16_to_f32, f16_to_f32};

use super::float::flush;

/// A comparison of floats: ordered ones are false, unordered ones true when one is NaN.
macro_rules! float {
    ($name:expr, $T:ty, |$x:ident| $load:expr) => {
        match $name {
            "eq" => |r, a, b| {
                r.test::<$T>(a, b, |a, b| {
                    let ($x, b) = (a, b);
                    let a = $load;
                    let $x = b;
                    a == $load
                })
            },
            "ne" => |r, a, b| {
                r.test::<$T>(a, b, |a, b| {
                    let $x = a;
                    let a = $load;
                    let $x = b;
                    let b = $load;
                    a < b || a > b
                })
            },
            "lt" => |r, a, b| {
                r.test::<$T>(a, b, |a, b| {
                    let $x = a;
                    let a = $load;
                    let $x = b;
                    a < $load
                })
            },
            "le" => |r, a, b| {
                r.test::<$T>(a, b, |a, b| {
                    let $x = a;
                    let a = $load;
                    let $x = b;
                    a <= $load
                })
            },
            "gt" => |r, a, b| {
                r.test::<$T>(a, b, |a, b| {
                    let $x = a;
                    let a = $load;
                    let $x = b;
                    a > $load
                })
            },
            "ge" => |r, a, b| {
                r.test::<$T>(a, b, |a, b| {
                    let $x = a;
                    let a = $load;
                    let $x = b;
                    a >= $load
                })
            },
            "equ" => |r, a, b| {
                r.test::<$T>(a, b, |a, b| {
                    let $x = a;
                    let a = $load;
                    let $x = b;
                    let b = $load;
                    !(a < b || a > b)
                })
            },
            "neu" => |r, a, b| {
                r.test::<$T>(a, b, |a, b| {
                    let $x = a;
                    let a = $load;
                    let $x = b;
                    a != $load
                })
            },
            "ltu" => |r, a, b| {
                r.test::<$T>(a, b, |a, b| {
                    let $x = a;
                    let a = $load;
                    let $x = b;
                    !(a >= $load)
                })
            },
            "leu" => |r, a, b| {
                r.test::<$T>(a, b, |a, b| {
                    let $x = a;
                    let a = $load;
                    let $x = b;
                    !(a > $load)
                })
            },
            "gtu" => |r, a, b| {
                r.test::<$T>(a, b, |a, b| {
                    let $x = a;
                    let a = $load;
                    let $x = b;
                    !(a <= $load)
                })
            },
            "geu" => |r, a, b| {
                r.test::<$T>(a, b, |a, b| {
                    let $x = a;
                    let a = $load;
                    let $x = b;
                    !(a < $load)
                })
            },
            "num" => |r, a, b| {
                r.test::<$T>(a, b, |a, b| {
                    let $x = a;
                    let a = $load;
                    let $x = b;
                    let b = $load;
                    !a.is_nan() && !b.is_nan()
                })
            },
            "nan" => |r, a, b| {
                r.test::<$T>(a, b, |a, b| {
                    let $x = a;
                    let a = $load;
                    let $x = b;
                    let b = $load;
                    a.is_nan() || b.is_nan()
                })
            },
            _ => return None,
        }
    };
}

macro_rules! integer {
    ($name:expr, $T:ty, |$x:ident| $load:expr) => {
        match $name {
            "eq" => |r, a, b| {
                r.test::<$T>(a, b, |a, b| {
                    let $x = a;
                    let a = $load;
                    let $x = b;
                    a == $load
                })
            },
            "ne" => |r, a, b| {
                r.test::<$T>(a, b, |a, b| {
                    let $x = a;
                    let a = $load;
                    let $x = b;
                    a != $load
                })
            },
            "lt" | "lo" => |r, a, b| {
                r.test::<$T>(a, b, |a, b| {
                    let $x = a;
                    let a = $load;
                    let $x = b;
                    a < $load
                })
            },
            "le" | "ls" => |r, a, b| {
                r.test::<$T>(a, b, |a, b| {
                    let $x = a;
                    let a = $load;
                    let $x = b;
                    a <= $load
                })
            },
            "gt" | "hi" => |r, a, b| {
                r.test::<$T>(a, b, |a, b| {
                    let $x = a;
                    let a = $load;
                    let $x = b;
                    a > $load
                })
            },
            "ge" | "hs" => |r, a, b| {
                r.test::<$T>(a, b, |a, b| {
                    let $x = a;
                    let a = $load;
                    let $x = b;
                    a >= $load
                })
            },
            _ => return None,
        }
    };
}

/// The test of a comparison's name for a type.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
#[expect(clippy::nonminimal_bool, reason = "unordered comparisons are negated ordered ones")]
pub(super) fn test(name: &str, kind: &str, flushes: bool) -> Option<Test> {
    Some(match kind {
        "b32" | "u32" => integer!(name, u32, |x| x),
        "s32" => integer!(name, i32, |x| x),
        "b64" | "u64" => integer!(name, u64, |x| x),
        "s64" => integer!(name, i64, |x| x),
        "b16" | "u16" => integer!(name, u32, |x| x as u16),
        "s16" => integer!(name, u32, |x| x as i16),
        "f32" if flushes => float!(name, f32, |x| flush(x)),
        "f32" => float!(name, f32, |x| x),
        "f64" => float!(name, f64, |x| x),
        "f16" => float!(name, u32, |x| f16_to_f32(x)),
        "bf16" => float!(name, u32, |x| bf16_to_f32(x)),
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
