//! f32 and f64 arithmetic, and conversions.

use super::{same, same_floats, same_wide};

/// A body on floats, with registers moved to and from `%f`.
fn floats(op: &str, expected: impl Fn(f32, f32, f32) -> f32) {
    let body =
        format!("mov.b32 %f1, %r1; mov.b32 %f2, %r2; mov.b32 %f3, %r3; {op} mov.b32 %r0, %f0;");
    same_floats(&body, expected);
}

fn flush(value: f32) -> f32 {
    if value.is_subnormal() { 0.0_f32.copysign(value) } else { value }
}

/// A number wins against NaN, and −0 is below +0.
fn least(a: f32, b: f32) -> f32 {
    if a == 0.0 && b == 0.0 && a.is_sign_negative() {
        a
    } else if a.is_nan() || b <= a {
        b
    } else {
        a
    }
}

#[test]
fn single() {
    floats("add.f32 %f0, %f1, %f2;", |a, b, _| a + b);
    floats("add.ftz.f32 %f0, %f1, %f2;", |a, b, _| flush(flush(a) + flush(b)));
    floats("sub.rn.f32 %f0, %f1, %f2;", |a, b, _| a - b);
    floats("mul.f32 %f0, %f1, %f2;", |a, b, _| a * b);
    floats(
        "mul.sat.f32 %f0, %f1, %f2;",
        |a, b, _| if a * b > 0.0 { (a * b).min(1.0) } else { 0.0 },
    );
    floats("fma.rn.f32 %f0, %f1, %f2, %f3;", f32::mul_add);
    floats("div.rn.f32 %f0, %f1, %f2;", |a, b, _| a / b);
    floats("rcp.rn.f32 %f0, %f1;", |a, _, _| 1.0 / a);
    floats("sqrt.rn.f32 %f0, %f1;", |a, _, _| a.sqrt());
    floats("min.f32 %f0, %f1, %f2;", |a, b, _| least(a, b));
    floats("max.f32 %f0, %f1, %f2;", |a, b, _| -least(-a, -b));
    floats("max.NaN.f32 %f0, %f1, %f2;", |a, b, _| {
        if a.is_nan() || b.is_nan() { f32::NAN } else { -least(-a, -b) }
    });
    floats("abs.f32 %f0, %f1;", |a, _, _| a.abs());
    floats("neg.f32 %f0, %f1;", |a, _, _| -a);
    floats("copysign.f32 %f0, %f1, %f2;", |a, b, _| b.copysign(a));
    floats("mov.f32 %f0, 0f40490FDB; add.f32 %f0, %f0, %f1;", |a, _, _| {
        f32::from_bits(0x4049_0fdb) + a
    });
}

/// Rounding toward zero, by hand: a wide result, cut.
fn toward_zero(exact: f64) -> f32 {
    let near = exact as f32;
    if near.is_infinite() && exact.is_finite() {
        return f32::MAX.copysign(near);
    }
    if f64::from(near).abs() > exact.abs() { f32::from_bits(near.to_bits() - 1) } else { near }
}

#[test]
fn directed_rounding() {
    floats("mul.rz.f32 %f0, %f1, %f2;", |a, b, _| toward_zero(f64::from(a) * f64::from(b)));
    floats("and.b32 %r1, %r1, 0x7fffffff; mov.b32 %f1, %r1; sqrt.rz.f32 %f0, %f1;", |a, _, _| {
        // Exact enough: no root of a single is closer to a single than 2^-52.
        toward_zero(f64::from(a.abs()).sqrt())
    });
    floats("add.rm.f32 %f4, %f1, %f2; add.rp.f32 %f5, %f1, %f2; add.rn.f32 %f6, %f1, %f2;
        setp.leu.f32 %p1, %f4, %f6; setp.leu.and.f32 %p1, %f6, %f5, %p1; selp.f32 %f0, 0f3F800000, 0f00000000, %p1;",
        |_, _, _| 1.0);
}

#[test]
fn approximations() {
    let close = |op: &str, range: f32, f: &dyn Fn(f64) -> f64| {
        let body = format!("mov.b32 %f1, %r1; {op} %f0, %f1; mov.b32 %r0, %f0;");
        let arguments: Vec<u32> =
            (0..128).map(|i| (range * (i as f32 + 0.5) / 128.0).to_bits()).collect();
        let result = super::run(&body, [&arguments, &arguments, &arguments]);
        for (x, y) in arguments.into_iter().zip(result) {
            let (expected, y) = (f(f64::from(f32::from_bits(x))), f64::from(f32::from_bits(y)));
            assert!((y - expected).abs() <= 2e-6 * expected.abs().max(0.5), "{op}: {y} {expected}");
        }
    };
    close("ex2.approx.ftz.f32", -20.0, &f64::exp2);
    close("lg2.approx.f32", 100.0, &f64::log2);
    close("sin.approx.f32", 6.0, &f64::sin);
    close("cos.approx.f32", 6.0, &f64::cos);
    close("tanh.approx.f32", 4.0, &f64::tanh);
    close("rsqrt.approx.f32", 4.0, &|x| 1.0 / x.sqrt());
    close("rcp.approx.ftz.f32", 4.0, &|x| 1.0 / x);
}

#[test]
fn double() {
    let case = |op: &str, expected: &dyn Fn(f64, f64, f64) -> f64| {
        let body = format!(
            "mov.b64 %fd1, %rd1; mov.b64 %fd2, %rd2; mov.b64 %fd3, %rd3; {op} mov.b64 %rd0, %fd0;"
        );
        same_wide(&body, |a, b, c| {
            let bits = expected(f64::from_bits(a), f64::from_bits(b), f64::from_bits(c)).to_bits();
            if f64::from_bits(bits).is_nan() { 0x7ff8 << 48 } else { bits }
        });
    };
    let quiet = " testp.notanumber.f64 %p1, %fd0; @%p1 mov.f64 %fd0, 0d7FF8000000000000;";
    case(&format!("add.f64 %fd0, %fd1, %fd2;{quiet}"), &|a, b, _| a + b);
    case(&format!("fma.rn.f64 %fd0, %fd1, %fd2, %fd3;{quiet}"), &f64::mul_add);
    case(&format!("div.rn.f64 %fd0, %fd1, %fd2;{quiet}"), &|a, b, _| a / b);
    case(&format!("sqrt.rn.f64 %fd0, %fd1;{quiet}"), &|a, _, _| a.sqrt());
}

#[test]
fn comparisons_know_nan() {
    let case = |name: &str, expected: &dyn Fn(f32, f32) -> bool| {
        let op =
            format!("setp.{name}.f32 %p1, %f1, %f2; selp.f32 %f0, 0f3F800000, 0f00000000, %p1;");
        floats(&op, |a, b, _| if expected(a, b) { 1.0 } else { 0.0 });
    };
    case("lt", &|a, b| a < b);
    case("neu", &|a, b| a != b);
    case("ne", &|a, b| !a.is_nan() && !b.is_nan() && a != b);
    case("geu", &|a, b| a >= b || a.is_nan() || b.is_nan());
    case("num", &|a, b| !a.is_nan() && !b.is_nan());
    case("nan", &|a, b| a.is_nan() || b.is_nan());
}

#[test]
fn conversions() {
    let int = |op: &str, expected: &dyn Fn(f32) -> u32| {
        same(&format!("mov.b32 %f1, %r1; {op} %r0, %f1;"), |a, _, _| expected(f32::from_bits(a)));
    };
    int("cvt.rzi.s32.f32", &|a| a as i32 as u32);
    int("cvt.rzi.u32.f32", &|a| a as u32);
    int("cvt.rni.s32.f32", &|a| a.round_ties_even() as i32 as u32);
    int("cvt.rmi.s32.f32", &|a| a.floor() as i32 as u32);
    int("cvt.rpi.u32.f32", &|a| a.ceil() as u32);
    floats("cvt.rpi.f32.f32 %f0, %f1;", |a, _, _| a.ceil());
    floats("cvt.rzi.f32.f32 %f0, %f1;", |a, _, _| a.trunc());
    floats("cvt.rn.f32.s32 %f0, %r1;", |a, _, _| a.to_bits() as i32 as f32);
    floats("cvt.rz.f32.u32 %f0, %r1;", |a, _, _| toward_zero(f64::from(a.to_bits())));
    floats("cvt.sat.f32.f32 %f0, %f1;", |a, _, _| if a > 0.0 { a.min(1.0) } else { 0.0 });
    same("cvt.sat.s8.s32 %r0, %r1;", |a, _, _| (a as i32).clamp(-128, 127) as u32);
    same("cvt.sat.u8.s32 %r0, %r1;", |a, _, _| (a as i32).clamp(0, 255) as u32);
    same("cvt.s32.s8 %r0, %r1;", |a, _, _| i32::from(a as i8) as u32);
    same("cvt.u32.u16 %r0, %r1;", |a, _, _| a & 0xffff);
    same("cvt.s8.s32 %r0, %r1;", |a, _, _| i32::from(a as i8) as u32);
    same_wide("cvt.u32.u64 %r1, %rd1; cvt.s64.s32 %rd0, %r1;", |a, _, _| {
        i64::from(a as i32) as u64
    });
    same_wide("cvt.s64.s8 %rd0, %rd1;", |a, _, _| i64::from(a as i8) as u64);
    same_wide("cvt.rn.f64.s64 %fd1, %rd1; mov.b64 %rd0, %fd1;", |a, _, _| {
        (a as i64 as f64).to_bits()
    });
    same_wide("cvt.rn.f64.u64 %fd1, %rd1; cvt.rzi.u64.f64 %rd0, %fd1;", |a, _, _| a as f64 as u64);
    same_wide("cvt.rn.f32.u64 %f1, %rd1; mov.b32 %r1, %f1; cvt.u64.u32 %rd0, %r1;", |a, _, _| {
        u64::from((a as f32).to_bits())
    });
}
