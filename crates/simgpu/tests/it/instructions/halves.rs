//! f16 and bf16: arithmetic on one and two, and every rounding.

use super::same;

/// An f16 as a number, by the format's definition.
fn f16(bits: u32) -> f64 {
    let (sign, exponent, fraction) = (bits >> 15 & 1, bits >> 10 & 31, f64::from(bits & 1023));
    let magnitude = match exponent {
        0 => fraction * 2_f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1024.0 + fraction) * 2_f64.powi(exponent as i32 - 25),
    };
    if sign == 1 { -magnitude } else { magnitude }
}

/// The f16 nearest to a number, found by search.
fn to_f16(value: f64) -> u32 {
    if value.is_nan() {
        return 0x7fff;
    }
    let sign = u32::from(value.is_sign_negative()) << 15;
    let magnitude = value.abs();
    if magnitude >= 65_520.0 {
        return sign | 0x7c00;
    }
    let (mut low, mut high) = (0, 0x7c00);
    while high - low > 1 {
        let middle = u32::midpoint(low, high);
        if f16(middle) <= magnitude { low = middle } else { high = middle }
    }
    let above = if low == 0x7bff { 65_536.0 } else { f16(low + 1) };
    let (down, up) = (magnitude - f16(low), above - magnitude);
    sign | if down < up || (down == up && low % 2 == 0) { low } else { low + 1 }
}

fn bf16(bits: u32) -> f64 {
    f64::from(f32::from_bits(bits << 16))
}

fn to_bf16(value: f32) -> u32 {
    if value.is_nan() {
        return 0x7fff;
    }
    let bits = value.to_bits();
    bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16
}

/// NaN has one encoding in results.
fn pair(f: impl Fn(u32) -> u32) -> u32 {
    f(0) | f(16) << 16
}

#[test]
fn f16_pairs() {
    same("add.f16x2 %r0, %r1, %r2;", |a, b, _| pair(|s| to_f16(f16(a >> s) + f16(b >> s))));
    same("mul.rn.f16x2 %r0, %r1, %r2;", |a, b, _| pair(|s| to_f16(f16(a >> s) * f16(b >> s))));
    // A product of 22 bits and a sum of at most 53: exact for operands of like size.
    same(
        "and.b32 %r1, %r1, 0x3fff3fff; and.b32 %r2, %r2, 0x3fff3fff; and.b32 %r3, %r3, 0xbfffbfff; fma.rn.f16x2 %r0, %r1, %r2, %r3;",
        |a, b, c| {
            pair(|s| to_f16(f16(a >> s & 0x3fff) * f16(b >> s & 0x3fff) + f16(c >> s & 0xbfff)))
        },
    );
    same("neg.f16x2 %r0, %r1;", |a, _, _| a ^ 0x8000_8000);
    same(
        "mov.b32 {%rs1, %rs2}, %r1; mov.b32 {%rs3, %rs4}, %r2; sub.f16 %rs5, %rs1, %rs3; max.f16 %rs6, %rs2, %rs2; mov.b32 %r0, {%rs5, %rs1};",
        |a, b, _| to_f16(f16(a) - f16(b)) | a << 16,
    );
    same(
        "mov.b32 {%rs1, _}, %r1; cvt.f32.f16 %f1, %rs1; mov.b32 %r0, %f1; and.b32 %r2, %r1, 0x7c00; setp.eq.u32 %p1, %r2, 0x7c00; @%p1 mov.u32 %r0, 0;",
        |a, _, _| {
            if a & 0x7c00 == 0x7c00 { 0 } else { (f16(a) as f32).to_bits() }
        },
    );
}

#[test]
fn comparisons() {
    same(
        "setp.lt.f16x2 %p1|%p2, %r1, %r2; selp.b32 %r3, 1, 0, %p1; selp.b32 %r4, 2, 0, %p2; or.b32 %r0, %r3, %r4;",
        |a, b, _| u32::from(f16(a) < f16(b)) | u32::from(f16(a >> 16) < f16(b >> 16)) << 1,
    );
    same("set.geu.bf16x2.bf16x2 %r0, %r1, %r2;", |a, b, _| {
        pair(|s| if bf16(a >> s & 0xffff) < bf16(b >> s & 0xffff) { 0 } else { 0x3f80 })
    });
    same("set.eq.u32.f16x2 %r0, %r1, %r1;", |a, _, _| {
        pair(|s| if f16(a >> s).is_nan() { 0 } else { 0xffff })
    });
    same(
        "mov.b32 {%rs1, _}, %r1; mov.b32 {%rs2, _}, %r2; set.gt.f16.f16 %rs3, %rs1, %rs2; cvt.u32.u16 %r0, %rs3;",
        |a, b, _| {
            if f16(a) > f16(b) { 0x3c00 } else { 0 }
        },
    );
}

#[test]
fn bf16_pairs() {
    same("add.rn.bf16x2 %r0, %r1, %r2;", |a, b, _| {
        pair(|s| to_bf16(f32::from_bits(a >> s << 16) + f32::from_bits(b >> s << 16)))
    });
    same(
        "and.b32 %r1, %r1, 0x3fff3fff; and.b32 %r2, %r2, 0x3fff3fff; mul.rn.bf16x2 %r0, %r1, %r2;",
        |a, b, _| pair(|s| to_bf16((bf16(a >> s & 0x3fff) * bf16(b >> s & 0x3fff)) as f32)),
    );
    same("min.bf16x2 %r0, %r1, %r1;", |a, _, _| {
        pair(|s| if f32::from_bits(a >> s << 16).is_nan() { 0x7fff } else { a >> s & 0xffff })
    });
}

#[test]
fn fused_halves_round_once() {
    // 1 + 2^-11 is a tie; what the product adds beyond f32 decides it.
    let body = "mov.u32 %r4, 0x3c003c00; mov.u32 %r5, 0x10001000; fma.rn.f16x2 %r0, %r5, %r5, %r4;";
    same(body, |_, _, _| {
        let exact = f16(0x1000) * f16(0x1000) + 1.0;
        to_f16(exact) * 0x1_0001
    });
    // 2^-11 (0x1000) + 2^-24 · 2^-24 above 1: rounds up.
    let body = "mov.u32 %r4, 0x3c013c01; mov.u32 %r5, 0x00010001; fma.rn.f16x2 %r0, %r5, %r5, %r4;";
    same(body, |_, _, _| 0x3c01_3c01);
}

#[test]
fn conversions() {
    let finite = |bits: u32| f32::from_bits(bits).is_finite();
    same("mov.b32 %f1, %r1; mov.b32 %f2, %r2; cvt.rn.bf16x2.f32 %r0, %f1, %f2;", |a, b, _| {
        to_bf16(f32::from_bits(b)) | to_bf16(f32::from_bits(a)) << 16
    });
    same("mov.b32 %f1, %r1; mov.b32 %f2, %r2; cvt.rn.f16x2.f32 %r0, %f1, %f2;", |a, b, _| {
        to_f16(f64::from(f32::from_bits(b))) | to_f16(f64::from(f32::from_bits(a))) << 16
    });
    same("mov.b32 %f1, %r1; cvt.rz.bf16.f32 %rs1, %f1; cvt.u32.u16 %r0, %rs1;", move |a, _, _| {
        if finite(a) {
            a >> 16
        } else if f32::from_bits(a).is_nan() {
            0x7fff
        } else {
            a >> 16
        }
    });
    same("mov.b32 %f1, %r1; cvt.rn.relu.bf16.f32 %rs1, %f1; cvt.u32.u16 %r0, %rs1;", |a, _, _| {
        let value = f32::from_bits(a);
        to_bf16(if value < 0.0 { 0.0 } else { value })
    });
    same(
        "mov.b32 %f1, %r1; cvt.rna.tf32.f32 %r0, %f1; testp.number.f32 %p1, %f1; @!%p1 mov.u32 %r0, 7;",
        |a, _, _| {
            let value = f32::from_bits(a);
            if value.is_nan() {
                7
            } else if value.is_infinite() {
                a
            } else {
                a.wrapping_add(0x1000) & 0xffff_e000
            }
        },
    );
    same("cvt.rn.f16.s32 %rs1, %r1; cvt.u32.u16 %r0, %rs1;", |a, _, _| to_f16(f64::from(a as i32)));
    same("mov.b32 {%rs1, _}, %r1; cvt.rzi.s32.f16 %r0, %rs1;", |a, _, _| f16(a) as i32 as u32);
    same(
        "mov.b32 %f1, %r1; mov.b32 %f2, %r2; cvt.rn.satfinite.e4m3x2.f32 %rs1, %f1, %f2; cvt.rn.f16x2.e4m3x2 %r0, %rs1;",
        |a, b, _| to_f16(e4m3(f32::from_bits(b))) | to_f16(e4m3(f32::from_bits(a))) << 16,
    );
}

/// The e4m3 number nearest to a value, the largest one at most.
fn e4m3(value: f32) -> f64 {
    if value.is_nan() {
        return f64::NAN;
    }
    let magnitude = f64::from(value.abs()).min(448.0);
    let exponent = magnitude.log2().floor().max(-6.0) as i32;
    let step = 2_f64.powi(exponent - 3);
    let rounded = (magnitude / step).round_ties_even() * step;
    if value.is_sign_negative() { -rounded } else { rounded }
}
