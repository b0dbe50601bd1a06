//! Integer arithmetic.

use super::pick::{Pick, pick};
use crate::exec::registers::{Code, Lane, Registers, Slots};

/// The operation of a name without its type (`mul.lo`) for a type.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub(super) fn arithmetic(op: &str, kind: &str) -> Option<Pick> {
    Some(match (op, kind) {
        ("add", "u16" | "s16" | "u32" | "s32") => {
            pick!(|a: u32, b: u32| -> u32 { a.wrapping_add(b) })
        }
        ("add", "u64" | "s64") => pick!(|a: u64, b: u64| -> u64 { a.wrapping_add(b) }),
        ("add.sat", "s32") => pick!(|a: i32, b: i32| -> i32 { a.saturating_add(b) }),
        ("add", "u16x2" | "s16x2") => {
            pick!(|a: u32, b: u32| -> u32 { halves(a, b, u16::wrapping_add) })
        }
        ("sub", "u16" | "s16" | "u32" | "s32") => {
            pick!(|a: u32, b: u32| -> u32 { a.wrapping_sub(b) })
        }
        ("sub", "u64" | "s64") => pick!(|a: u64, b: u64| -> u64 { a.wrapping_sub(b) }),
        ("sub.sat", "s32") => pick!(|a: i32, b: i32| -> i32 { a.saturating_sub(b) }),
        ("mul.lo", "u16" | "s16" | "u32" | "s32") => {
            pick!(|a: u32, b: u32| -> u32 { a.wrapping_mul(b) })
        }
        ("mul.lo", "u64" | "s64") => pick!(|a: u64, b: u64| -> u64 { a.wrapping_mul(b) }),
        ("mul.hi", "u16") => pick!(|a: u32, b: u32| -> u32 { ((a & 0xffff) * (b & 0xffff)) >> 16 }),
        ("mul.hi", "s16") => {
            pick!(|a: u32, b: u32| -> i32 { (i32::from(a as i16) * i32::from(b as i16)) >> 16 })
        }
        ("mul.hi", "u32") => pick!(|a: u32, b: u32| -> u32 { (wide(a, b) >> 32) as u32 }),
        ("mul.hi", "s32") => pick!(|a: i32, b: i32| -> i32 { (signed_wide(a, b) >> 32) as i32 }),
        ("mul.hi", "u64") => {
            pick!(|a: u64, b: u64| -> u64 { ((u128::from(a) * u128::from(b)) >> 64) as u64 })
        }
        ("mul.hi", "s64") => {
            pick!(|a: i64, b: i64| -> i64 { ((i128::from(a) * i128::from(b)) >> 64) as i64 })
        }
        ("mul.wide", "u16") => pick!(|a: u32, b: u32| -> u32 { (a & 0xffff) * (b & 0xffff) }),
        ("mul.wide", "s16") => {
            pick!(|a: u32, b: u32| -> i32 { i32::from(a as i16) * i32::from(b as i16) })
        }
        ("mul.wide", "u32") => pick!(|a: u32, b: u32| -> u64 { wide(a, b) }),
        ("mul.wide", "s32") => pick!(|a: i32, b: i32| -> i64 { signed_wide(a, b) }),
        ("mad.lo", "u16" | "s16" | "u32" | "s32") => {
            pick!(|a: u32, b: u32, c: u32| -> u32 { a.wrapping_mul(b).wrapping_add(c) })
        }
        ("mad.lo", "u64" | "s64") => {
            pick!(|a: u64, b: u64, c: u64| -> u64 { a.wrapping_mul(b).wrapping_add(c) })
        }
        ("mad.hi", "u32") => {
            pick!(|a: u32, b: u32, c: u32| -> u32 { ((wide(a, b) >> 32) as u32).wrapping_add(c) })
        }
        ("mad.hi", "s32") => {
            pick!(|a: i32, b: i32, c: i32| -> i32 {
                ((signed_wide(a, b) >> 32) as i32).wrapping_add(c)
            })
        }
        ("mad.wide", "u16") => {
            pick!(|a: u32, b: u32, c: u32| -> u32 { ((a & 0xffff) * (b & 0xffff)).wrapping_add(c) })
        }
        ("mad.wide", "u32") => {
            pick!(|a: u32, b: u32, c: u64| -> u64 { wide(a, b).wrapping_add(c) })
        }
        ("mad.wide", "s32") => {
            pick!(|a: i32, b: i32, c: i64| -> i64 { signed_wide(a, b).wrapping_add(c) })
        }
        _ => {
            return extremes(op, kind)
                .or_else(|| division(op, kind))
                .or_else(|| carried(op, kind))
                .or_else(|| narrow(op, kind));
        }
    })
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn extremes(op: &str, kind: &str) -> Option<Pick> {
    Some(match (op, kind) {
        ("min", "u16") => pick!(|a: u32, b: u32| -> u32 { (a & 0xffff).min(b & 0xffff) }),
        ("min", "s16") => pick!(|a: u32, b: u32| -> i32 { i32::from((a as i16).min(b as i16)) }),
        ("min", "u32") => pick!(|a: u32, b: u32| -> u32 { a.min(b) }),
        ("min", "s32") => pick!(|a: i32, b: i32| -> i32 { a.min(b) }),
        ("min", "u64") => pick!(|a: u64, b: u64| -> u64 { a.min(b) }),
        ("min", "s64") => pick!(|a: i64, b: i64| -> i64 { a.min(b) }),
        ("min", "u16x2") => pick!(|a: u32, b: u32| -> u32 { halves(a, b, Ord::min) }),
        ("min", "s16x2") => {
            pick!(|a: u32, b: u32| -> u32 { halves(a, b, |a, b| (a as i16).min(b as i16) as u16) })
        }
        ("min.relu", "s32") => pick!(|a: i32, b: i32| -> i32 { a.min(b).max(0) }),
        ("max", "u16") => pick!(|a: u32, b: u32| -> u32 { (a & 0xffff).max(b & 0xffff) }),
        ("max", "s16") => pick!(|a: u32, b: u32| -> i32 { i32::from((a as i16).max(b as i16)) }),
        ("max", "u32") => pick!(|a: u32, b: u32| -> u32 { a.max(b) }),
        ("max", "s32") => pick!(|a: i32, b: i32| -> i32 { a.max(b) }),
        ("max", "u64") => pick!(|a: u64, b: u64| -> u64 { a.max(b) }),
        ("max", "s64") => pick!(|a: i64, b: i64| -> i64 { a.max(b) }),
        ("max", "u16x2") => pick!(|a: u32, b: u32| -> u32 { halves(a, b, Ord::max) }),
        ("max", "s16x2") => {
            pick!(|a: u32, b: u32| -> u32 { halves(a, b, |a, b| (a as i16).max(b as i16) as u16) })
        }
        ("max.relu", "s32") => pick!(|a: i32, b: i32| -> i32 { a.max(b).max(0) }),
        ("abs", "s16") => pick!(|a: u32| -> i32 { i32::from((a as i16).wrapping_abs()) }),
        ("abs", "s32") => pick!(|a: i32| -> i32 { a.wrapping_abs() }),
        ("abs", "s64") => pick!(|a: i64| -> i64 { a.wrapping_abs() }),
        ("neg", "s16" | "s32") => pick!(|a: i32| -> i32 { a.wrapping_neg() }),
        ("neg", "s64") => pick!(|a: i64| -> i64 { a.wrapping_neg() }),
        ("sad", "u32") => pick!(|a: u32, b: u32, c: u32| -> u32 { c.wrapping_add(a.abs_diff(b)) }),
        ("sad", "s32") => pick!(|a: i32, b: i32, c: u32| -> u32 { c.wrapping_add(a.abs_diff(b)) }),
        ("slct", "s32" | "u32" | "b32") => {
            pick!(|a: u32, b: u32, c: i32| -> u32 { if c >= 0 { a } else { b } })
        }
        ("dp4a.u32", "u32") => {
            pick!(|a: u32, b: u32, c: u32| -> u32 { dot4(a, b, c, false, false) })
        }
        ("dp4a.u32", "s32") => {
            pick!(|a: u32, b: u32, c: u32| -> u32 { dot4(a, b, c, false, true) })
        }
        ("dp4a.s32", "u32") => {
            pick!(|a: u32, b: u32, c: u32| -> u32 { dot4(a, b, c, true, false) })
        }
        ("dp4a.s32", "s32") => pick!(|a: u32, b: u32, c: u32| -> u32 { dot4(a, b, c, true, true) }),
        ("dp2a.lo.s32", "s32") => pick!(|a: u32, b: u32, c: u32| -> u32 { dot2(a, b, c, true) }),
        ("dp2a.hi.s32", "s32") => {
            pick!(|a: u32, b: u32, c: u32| -> u32 { dot2(a, b >> 16, c, true) })
        }
        ("dp2a.lo.u32", "u32") => pick!(|a: u32, b: u32, c: u32| -> u32 { dot2(a, b, c, false) }),
        ("dp2a.hi.u32", "u32") => {
            pick!(|a: u32, b: u32, c: u32| -> u32 { dot2(a, b >> 16, c, false) })
        }
        _ => return None,
    })
}

/// Multiplication of 24 bits.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn narrow(op: &str, kind: &str) -> Option<Pick> {
    Some(match (op, kind) {
        ("mul24.lo", "u32") => {
            pick!(|a: u32, b: u32| -> u32 { (a << 8 >> 8).wrapping_mul(b << 8 >> 8) })
        }
        ("mul24.lo", "s32") => {
            pick!(|a: i32, b: i32| -> i32 { (a << 8 >> 8).wrapping_mul(b << 8 >> 8) })
        }
        ("mad24.lo", "u32") => pick!(|a: u32, b: u32, c: u32| -> u32 {
            (a << 8 >> 8).wrapping_mul(b << 8 >> 8).wrapping_add(c)
        }),
        ("mad24.lo", "s32") => pick!(|a: i32, b: i32, c: i32| -> i32 {
            (a << 8 >> 8).wrapping_mul(b << 8 >> 8).wrapping_add(c)
        }),
        _ => return None,
    })
}

/// Division by zero has an unspecified result, not a fault.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn division(op: &str, kind: &str) -> Option<Pick> {
    Some(match (op, kind) {
        ("div", "u16") => pick!(|a: u32, b: u32| -> u32 {
            (a & 0xffff).checked_div(b & 0xffff).unwrap_or(0xffff)
        }),
        ("div", "s16") => pick!(|a: u32, b: u32| -> i32 {
            i32::from(if b as i16 == 0 { -1 } else { (a as i16).wrapping_div(b as i16) })
        }),
        ("div", "u32") => pick!(|a: u32, b: u32| -> u32 { a.checked_div(b).unwrap_or(u32::MAX) }),
        ("div", "s32") => {
            pick!(|a: i32, b: i32| -> i32 { if b == 0 { -1 } else { a.wrapping_div(b) } })
        }
        ("div", "u64") => pick!(|a: u64, b: u64| -> u64 { a.checked_div(b).unwrap_or(u64::MAX) }),
        ("div", "s64") => {
            pick!(|a: i64, b: i64| -> i64 { if b == 0 { -1 } else { a.wrapping_div(b) } })
        }
        ("rem", "u16") => {
            pick!(|a: u32, b: u32| -> u32 { (a & 0xffff).checked_rem(b & 0xffff).unwrap_or(a) })
        }
        ("rem", "s16") => pick!(|a: u32, b: u32| -> i32 {
            i32::from(if b as i16 == 0 { a as i16 } else { (a as i16).wrapping_rem(b as i16) })
        }),
        ("rem", "u32") => pick!(|a: u32, b: u32| -> u32 { a.checked_rem(b).unwrap_or(a) }),
        ("rem", "s32") => {
            pick!(|a: i32, b: i32| -> i32 { if b == 0 { a } else { a.wrapping_rem(b) } })
        }
        ("rem", "u64") => pick!(|a: u64, b: u64| -> u64 { a.checked_rem(b).unwrap_or(a) }),
        ("rem", "s64") => {
            pick!(|a: i64, b: i64| -> i64 { if b == 0 { a } else { a.wrapping_rem(b) } })
        }
        _ => return None,
    })
}

/// Operations that read or write the carry flag, which is predicate 0.
fn carried(op: &str, kind: &str) -> Option<Pick> {
    const W: Code = Code::Word;
    const D: Code = Code::Double;
    if !matches!(kind, "u32" | "s32" | "u64" | "s64") {
        return None;
    }
    let is_wide = kind.ends_with("64");
    let two: &'static [Code] = if is_wide { &[D, D, D] } else { &[W, W, W] };
    let three: &'static [Code] = if is_wide { &[D, D, D, D] } else { &[W, W, W, W] };
    Some(match (op, is_wide) {
        ("add.cc" | "addc" | "addc.cc", false) => Pick::new(
            match op {
                "add.cc" => |r, o, m| add::<false, true>(r, o, m),
                "addc" => |r, o, m| add::<true, false>(r, o, m),
                _ => |r, o, m| add::<true, true>(r, o, m),
            },
            two,
        ),
        ("add.cc" | "addc" | "addc.cc", true) => Pick::new(
            match op {
                "add.cc" => |r, o, m| add_wide::<false, true>(r, o, m),
                "addc" => |r, o, m| add_wide::<true, false>(r, o, m),
                _ => |r, o, m| add_wide::<true, true>(r, o, m),
            },
            two,
        ),
        ("sub.cc", false) => Pick::new(|r, o, m| subtract(r, o, m, false, true), two),
        ("subc", false) => Pick::new(|r, o, m| subtract(r, o, m, true, false), two),
        ("subc.cc", false) => Pick::new(|r, o, m| subtract(r, o, m, true, true), two),
        (
            "mad.lo.cc" | "madc.lo" | "madc.lo.cc" | "mad.hi.cc" | "madc.hi" | "madc.hi.cc",
            false,
        ) if kind == "u32" => Pick::new(
            match op {
                "mad.lo.cc" => |r, o, m| mad::<0, false, true>(r, o, m),
                "madc.lo" => |r, o, m| mad::<0, true, false>(r, o, m),
                "madc.lo.cc" => |r, o, m| mad::<0, true, true>(r, o, m),
                "mad.hi.cc" => |r, o, m| mad::<32, false, true>(r, o, m),
                "madc.hi" => |r, o, m| mad::<32, true, false>(r, o, m),
                _ => |r, o, m| mad::<32, true, true>(r, o, m),
            },
            three,
        ),
        _ => return None,
    })
}

fn add<const IN: bool, const OUT: bool>(r: &mut Registers, o: &Slots, mask: u32) {
    let carry = if IN { r.preds[0] } else { 0 };
    let (a, b) = (*r.get::<u32>(o[1]), *r.get::<u32>(o[2]));
    let sums: [u64; 32] =
        std::array::from_fn(|i| u64::from(a[i]) + u64::from(b[i]) + u64::from(carry >> i & 1));
    store_carried::<OUT>(r, o, mask, &sums);
}

fn mad<const SHIFT: u32, const IN: bool, const OUT: bool>(r: &mut Registers, o: &Slots, mask: u32) {
    let carry = if IN { r.preds[0] } else { 0 };
    let (a, b, c) = (*r.get::<u32>(o[1]), *r.get::<u32>(o[2]), *r.get::<u32>(o[3]));
    let sums: [u64; 32] = std::array::from_fn(|i| {
        let product = (wide(a[i], b[i]) >> SHIFT) & 0xffff_ffff;
        product + u64::from(c[i]) + u64::from(carry >> i & 1)
    });
    store_carried::<OUT>(r, o, mask, &sums);
}

fn store_carried<const OUT: bool>(r: &mut Registers, o: &Slots, mask: u32, sums: &[u64; 32]) {
    r.put(o[0], &sums.map(|sum| sum as u32), mask);
    if OUT {
        let bits = (0..32).fold(0, |bits, i| bits | ((sums[i] >> 32) as u32 & 1) << i);
        r.put_pred(0, bits, mask);
    }
}

fn add_wide<const IN: bool, const OUT: bool>(r: &mut Registers, o: &Slots, mask: u32) {
    let carry = if IN { r.preds[0] } else { 0 };
    let (a, b) = (*r.get::<u64>(o[1]), *r.get::<u64>(o[2]));
    let sums: [u128; 32] =
        std::array::from_fn(|i| u128::from(a[i]) + u128::from(b[i]) + u128::from(carry >> i & 1));
    r.put(o[0], &sums.map(|sum| sum as u64), mask);
    if OUT {
        let bits = (0..32).fold(0, |bits, i| bits | ((sums[i] >> 64) as u32 & 1) << i);
        r.put_pred(0, bits, mask);
    }
}

fn subtract(r: &mut Registers, o: &Slots, mask: u32, takes: bool, gives: bool) {
    let borrow = if takes { r.preds[0] } else { 0 };
    let (a, b) = (*r.get::<u32>(o[1]), *r.get::<u32>(o[2]));
    let differences: [u64; 32] = std::array::from_fn(|i| {
        u64::from(a[i]).wrapping_sub(u64::from(b[i])).wrapping_sub(u64::from(borrow >> i & 1))
    });
    if gives {
        store_carried::<true>(r, o, mask, &differences);
    } else {
        store_carried::<false>(r, o, mask, &differences);
    }
}

#[inline(always)]
fn wide(a: u32, b: u32) -> u64 {
    u64::from(a) * u64::from(b)
}

#[inline(always)]
fn signed_wide(a: i32, b: i32) -> i64 {
    i64::from(a) * i64::from(b)
}

#[inline(always)]
fn halves(a: u32, b: u32, f: impl Fn(u16, u16) -> u16) -> u32 {
    u32::from(f(a as u16, b as u16)) | u32::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16
}

#[inline(always)]
fn byte(word: u32, index: u32, is_signed: bool) -> i32 {
    let byte = (word >> (8 * index)) as u8;
    if is_signed { i32::from(byte as i8) } else { i32::from(byte) }
}

#[inline(always)]
fn dot4(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool) -> u32 {
    let sum: i32 = (0..4).map(|i| byte(a, i, a_signed) * byte(b, i, b_signed)).sum();
    c.wrapping_add(sum as u32)
}

#[inline(always)]
fn dot2(a: u32, b: u32, c: u32, is_signed: bool) -> u32 {
    let half = |i: u32| {
        let half = (a >> (16 * i)) as u16;
        if is_signed { i32::from(half as i16) } else { i32::from(half) }
    };
    let sum: i32 = (0..2).map(|i| half(i).wrapping_mul(byte(b, i, is_signed))).sum();
    c.wrapping_add(sum as u32)
}
