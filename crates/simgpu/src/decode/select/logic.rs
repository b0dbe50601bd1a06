//! Logic, shifts, bit fields, and moves.

use super::pick::{Pick, pick};
use crate::exec::registers::{Code, Lane};

/// The operation of a name without its type for a type. `lop3` and `prmt` modes come with the name.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
pub(super) fn logic(op: &str, kind: &str) -> Option<Pick> {
    const P: Code = Code::Pred;
    Some(match (op, kind) {
        ("and", "b16" | "b32") => pick!(|a: u32, b: u32| -> u32 { a & b }),
        ("and", "b64") => pick!(|a: u64, b: u64| -> u64 { a & b }),
        ("and", "pred") => Pick::new(
            |r, o, m| r.put_pred(o[0], r.preds[o[1] as usize] & r.preds[o[2] as usize], m),
            &[P, P, P],
        ),
        ("or", "b16" | "b32") => pick!(|a: u32, b: u32| -> u32 { a | b }),
        ("or", "b64") => pick!(|a: u64, b: u64| -> u64 { a | b }),
        ("or", "pred") => Pick::new(
            |r, o, m| r.put_pred(o[0], r.preds[o[1] as usize] | r.preds[o[2] as usize], m),
            &[P, P, P],
        ),
        ("xor", "b16" | "b32") => pick!(|a: u32, b: u32| -> u32 { a ^ b }),
        ("xor", "b64") => pick!(|a: u64, b: u64| -> u64 { a ^ b }),
        ("xor", "pred") => Pick::new(
            |r, o, m| r.put_pred(o[0], r.preds[o[1] as usize] ^ r.preds[o[2] as usize], m),
            &[P, P, P],
        ),
        ("not", "b16" | "b32") => pick!(|a: u32| -> u32 { !a }),
        ("not", "b64") => pick!(|a: u64| -> u64 { !a }),
        ("not", "pred") => {
            Pick::new(|r, o, m| r.put_pred(o[0], !r.preds[o[1] as usize], m), &[P, P])
        }
        ("cnot", "b32") => pick!(|a: u32| -> u32 { u32::from(a == 0) }),
        ("mov", "pred") => {
            Pick::new(|r, o, m| r.put_pred(o[0], r.preds[o[1] as usize], m), &[P, P])
        }
        ("mov", "b16" | "u16" | "s16" | "f16" | "bf16" | "b32" | "u32" | "s32" | "f32") => {
            pick!(|a: u32| -> u32 { a })
        }
        ("mov", "b64" | "u64" | "s64" | "f64") => pick!(|a: u64| -> u64 { a }),
        ("selp", "b16" | "u16" | "s16" | "b32" | "u32" | "s32" | "f32") => Pick::new(
            |r, o, m| {
                let pred = r.preds[o[3] as usize];
                let mut out = *r.get::<u32>(o[2]);
                let a = r.get::<u32>(o[1]);
                for lane in 0..32 {
                    out[lane] = if pred >> lane & 1 != 0 { a[lane] } else { out[lane] };
                }
                r.put(o[0], &out, m);
            },
            &[Code::Word, Code::Word, Code::Word, P],
        ),
        ("selp", "b64" | "u64" | "s64" | "f64") => Pick::new(
            |r, o, m| {
                let pred = r.preds[o[3] as usize];
                let mut out = *r.get::<u64>(o[2]);
                let a = r.get::<u64>(o[1]);
                for lane in 0..32 {
                    out[lane] = if pred >> lane & 1 != 0 { a[lane] } else { out[lane] };
                }
                r.put(o[0], &out, m);
            },
            &[Code::Double, Code::Double, Code::Double, P],
        ),
        _ => return shifts(op, kind).or_else(|| fields(op, kind)),
    })
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn shifts(op: &str, kind: &str) -> Option<Pick> {
    Some(match (op, kind) {
        ("shl", "b16") => pick!(|a: u32, b: u32| -> u32 { if b > 15 { 0 } else { a << b } }),
        ("shl", "b32") => pick!(|a: u32, b: u32| -> u32 { if b > 31 { 0 } else { a << (b & 31) } }),
        ("shl", "b64") => pick!(|a: u64, b: u32| -> u64 { if b > 63 { 0 } else { a << (b & 63) } }),
        ("shr", "b16" | "u16") => {
            pick!(|a: u32, b: u32| -> u32 { if b > 15 { 0 } else { (a & 0xffff) >> b } })
        }
        ("shr", "s16") => pick!(|a: u32, b: u32| -> i32 { i32::from(a as i16) >> b.min(15) }),
        ("shr", "b32" | "u32") => {
            pick!(|a: u32, b: u32| -> u32 { if b > 31 { 0 } else { a >> (b & 31) } })
        }
        ("shr", "s32") => pick!(|a: i32, b: u32| -> i32 { a >> b.min(31) }),
        ("shr", "b64" | "u64") => {
            pick!(|a: u64, b: u32| -> u64 { if b > 63 { 0 } else { a >> (b & 63) } })
        }
        ("shr", "s64") => pick!(|a: i64, b: u32| -> i64 { a >> b.min(63) }),
        ("shf.l.wrap", "b32") => {
            pick!(|a: u32, b: u32, c: u32| -> u32 { (join(a, b) << (c & 31) >> 32) as u32 })
        }
        ("shf.l.clamp", "b32") => {
            pick!(|a: u32, b: u32, c: u32| -> u32 { (join(a, b) << c.min(32) >> 32) as u32 })
        }
        ("shf.r.wrap", "b32") => {
            pick!(|a: u32, b: u32, c: u32| -> u32 { (join(a, b) >> (c & 31)) as u32 })
        }
        ("shf.r.clamp", "b32") => {
            pick!(|a: u32, b: u32, c: u32| -> u32 { (join(a, b) >> c.min(32)) as u32 })
        }
        ("prmt", "b32") => pick!(|a: u32, b: u32, c: u32| -> u32 { permute(a, b, c) }),
        ("prmt.f4e", "b32") => {
            pick!(|a: u32, b: u32, c: u32| -> u32 { (join(a, b) >> (8 * (c & 3))) as u32 })
        }
        ("prmt.b4e", "b32") => pick!(|a: u32, b: u32, c: u32| -> u32 { backward(a, b, c & 3) }),
        ("prmt.rc8", "b32") => {
            pick!(|a: u32, _b: u32, c: u32| -> u32 { (a >> (8 * (c & 3)) & 0xff) * 0x0101_0101 })
        }
        ("prmt.rc16", "b32") => {
            pick!(|a: u32, _b: u32, c: u32| -> u32 { (a >> (16 * (c & 1)) & 0xffff) * 0x1_0001 })
        }
        ("prmt.ecl", "b32") => pick!(|a: u32, _b: u32, c: u32| -> u32 { edge(a, c & 3, true) }),
        ("prmt.ecr", "b32") => pick!(|a: u32, _b: u32, c: u32| -> u32 { edge(a, c & 3, false) }),
        _ => return None,
    })
}

#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
fn fields(op: &str, kind: &str) -> Option<Pick> {
    Some(match (op, kind) {
        ("popc", "b32") => pick!(|a: u32| -> u32 { a.count_ones() }),
        ("popc", "b64") => pick!(|a: u64| -> u32 { a.count_ones() }),
        ("clz", "b32") => pick!(|a: u32| -> u32 { a.leading_zeros() }),
        ("clz", "b64") => pick!(|a: u64| -> u32 { a.leading_zeros() }),
        ("brev", "b32") => pick!(|a: u32| -> u32 { a.reverse_bits() }),
        ("brev", "b64") => pick!(|a: u64| -> u64 { a.reverse_bits() }),
        ("bfind", "u32") => pick!(|a: u32| -> u32 { 31_u32.wrapping_sub(a.leading_zeros()) }),
        ("bfind", "s32") => {
            pick!(|a: i32| -> u32 { 31_u32.wrapping_sub((a ^ (a >> 31)).leading_zeros()) })
        }
        ("bfind", "u64") => pick!(|a: u64| -> u32 { 63_u32.wrapping_sub(a.leading_zeros()) }),
        ("bfind", "s64") => {
            pick!(|a: i64| -> u32 { 63_u32.wrapping_sub((a ^ (a >> 63)).leading_zeros()) })
        }
        ("bfind.shiftamt", "u32") => {
            pick!(|a: u32| -> u32 { if a == 0 { u32::MAX } else { a.leading_zeros() } })
        }
        ("bfe", "u32") => {
            pick!(|a: u32, b: u32, c: u32| -> u32 { extract(u64::from(a), b, c, 32) as u32 })
        }
        ("bfe", "s32") => {
            pick!(|a: i32, b: u32, c: u32| -> i32 { extract_signed(i64::from(a), b, c, 32) as i32 })
        }
        ("bfe", "u64") => pick!(|a: u64, b: u32, c: u32| -> u64 { extract(a, b, c, 64) }),
        ("bfe", "s64") => pick!(|a: i64, b: u32, c: u32| -> i64 { extract_signed(a, b, c, 64) }),
        ("bfi", "b32") => pick!(|a: u32, b: u32, c: u32, d: u32| -> u32 {
            insert(u64::from(a), u64::from(b), c, d) as u32
        }),
        ("bfi", "b64") => pick!(|a: u64, b: u64, c: u32, d: u32| -> u64 { insert(a, b, c, d) }),
        ("bmsk.clamp", "b32") => {
            pick!(|a: u32, b: u32| -> u32 { bits(b.min(32)).checked_shl(a).unwrap_or(0) as u32 })
        }
        ("bmsk.wrap", "b32") => {
            pick!(|a: u32, b: u32| -> u32 { (bits(b & 31) << (a & 31)) as u32 })
        }
        ("szext.wrap" | "szext.clamp", "u32") => {
            pick!(|a: u32, b: u32| -> u32 { if b > 31 { a } else { a & bits(b) as u32 } })
        }
        ("szext.wrap" | "szext.clamp", "s32") => pick!(|a: i32, b: u32| -> i32 {
            if b > 31 {
                a
            } else if b == 0 {
                0
            } else {
                a << (32 - b) >> (32 - b)
            }
        }),
        ("fns", "b32") => pick!(|a: u32, b: u32, c: i32| -> u32 { find_nth(a, b, c) }),
        ("lop3", "b32") => Pick::new(
            |r, o, m| {
                // The table comes as a slot, which is read as the number it is.
                let table = o[4];
                r.map3(o, m, |a: u32, b: u32, c: u32| -> u32 { look_up(a, b, c, table) });
            },
            &[Code::Word, Code::Word, Code::Word, Code::Word],
        ),
        _ => return None,
    })
}

#[inline(always)]
fn join(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

#[inline(always)]
fn bits(count: u32) -> u64 {
    if count > 63 { u64::MAX } else { (1 << count) - 1 }
}

/// `lop3`: the bit of the table that the three operands' bits choose.
#[inline(always)]
fn look_up(a: u32, b: u32, c: u32, table: u32) -> u32 {
    let mut result = 0;
    for index in 0..8 {
        if table >> index & 1 != 0 {
            let a = if index & 4 != 0 { a } else { !a };
            let b = if index & 2 != 0 { b } else { !b };
            let c = if index & 1 != 0 { c } else { !c };
            result |= a & b & c;
        }
    }
    result
}

#[inline(always)]
fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let source = join(a, b);
    let mut result = 0;
    for index in 0..4 {
        let nibble = selector >> (4 * index) & 15;
        let byte = (source >> (8 * (nibble & 7)) & 0xff) as u32;
        let sign = if byte & 0x80 != 0 { 0xff } else { 0 };
        result |= if nibble & 8 != 0 { sign } else { byte } << (8 * index);
    }
    result
}

fn backward(a: u32, b: u32, c: u32) -> u32 {
    let byte = |index: u32| (join(a, b) >> (8 * (index & 7)) & 0xff) as u32;
    (0..4).fold(0, |word, i| word | byte(c.wrapping_sub(i)) << (8 * i))
}

fn edge(a: u32, c: u32, is_left: bool) -> u32 {
    let byte = |index: u32| a >> (8 * index) & 0xff;
    (0..4).fold(0, |word, i| word | byte(if is_left { i.max(c) } else { i.min(c) }) << (8 * i))
}

#[inline(always)]
fn extract(a: u64, start: u32, len: u32, width: u32) -> u64 {
    let (start, len) = (start & 0xff, len & 0xff);
    if start >= width { 0 } else { a >> start & bits(len) }
}

#[inline(always)]
fn extract_signed(a: i64, start: u32, len: u32, width: u32) -> i64 {
    let (start, len) = (start & 0xff, len & 0xff);
    if len == 0 {
        return 0;
    }
    // Past the top, every bit is the sign.
    let start = start.min(width - 1);
    let len = len.min(width - start);
    (a >> start) << (64 - len) >> (64 - len)
}

#[inline(always)]
fn insert(a: u64, b: u64, start: u32, len: u32) -> u64 {
    let (start, len) = (start & 0xff, len & 0xff);
    let mask = if start > 63 { 0 } else { bits(len) << start };
    let shifted = if start > 63 { 0 } else { a << start };
    (b & !mask) | (shifted & mask)
}

fn find_nth(mask: u32, base: u32, offset: i32) -> u32 {
    let base = base & 31;
    let mut left = offset.unsigned_abs();
    if offset == 0 {
        return if mask >> base & 1 == 1 { base } else { u32::MAX };
    }
    let mut position = base as i32;
    while (0..32).contains(&position) {
        if mask >> position & 1 == 1 {
            left -= 1;
            if left == 0 {
                return position as u32;
            }
        }
        position += offset.signum();
    }
    u32::MAX
}
