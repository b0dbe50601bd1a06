//! Integer arithmetic, logic, shifts, comparisons, control flow.

use super::{same, same_wide};

fn wide(a: u32, b: u32) -> u64 {
    u64::from(a) * u64::from(b)
}

#[test]
fn arithmetic() {
    same("add.s32 %r0, %r1, %r2;", |a, b, _| a.wrapping_add(b));
    same("add.sat.s32 %r0, %r1, %r2;", |a, b, _| (a as i32).saturating_add(b as i32) as u32);
    same("sub.u32 %r0, %r1, %r2;", |a, b, _| a.wrapping_sub(b));
    same("mul.lo.s32 %r0, %r1, %r2;", |a, b, _| a.wrapping_mul(b));
    same("mul.hi.u32 %r0, %r1, %r2;", |a, b, _| (wide(a, b) >> 32) as u32);
    same("mul.hi.s32 %r0, %r1, %r2;", |a, b, _| {
        ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32
    });
    same("mad.lo.s32 %r0, %r1, %r2, %r3;", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    same("mad.hi.u32 %r0, %r1, %r2, %r3;", |a, b, c| ((wide(a, b) >> 32) as u32).wrapping_add(c));
    same("div.u32 %r0, %r1, %r2;", |a, b, _| a.checked_div(b).unwrap_or(u32::MAX));
    same("rem.s32 %r0, %r1, 7;", |a, _, _| (a as i32 % 7) as u32);
    same("div.s32 %r0, %r1, -3;", |a, _, _| (a as i32).wrapping_div(-3) as u32);
    same("abs.s32 %r0, %r1;", |a, _, _| (a as i32).wrapping_abs() as u32);
    same("neg.s32 %r0, %r1;", |a, _, _| a.wrapping_neg());
    same("min.s32 %r0, %r1, %r2;", |a, b, _| (a as i32).min(b as i32) as u32);
    same("max.u32 %r0, %r1, %r2;", |a, b, _| a.max(b));
    same("sad.s32 %r0, %r1, %r2, %r3;", |a, b, c| c.wrapping_add((a as i32).abs_diff(b as i32)));
    same("mul24.lo.u32 %r0, %r1, %r2;", |a, b, _| (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff));
    same("dp4a.s32.u32 %r0, %r1, %r2, %r3;", |a, b, c| {
        let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
        let sum: i32 = (0..4).map(|i| i32::from(a[i] as i8) * i32::from(b[i])).sum();
        c.wrapping_add(sum as u32)
    });
    same_wide("add.s64 %rd0, %rd1, %rd2;", |a, b, _| a.wrapping_add(b));
    same_wide("mul.lo.s64 %rd0, %rd1, %rd2;", |a, b, _| a.wrapping_mul(b));
    same_wide("mul.hi.s64 %rd0, %rd1, %rd2;", |a, b, _| {
        ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64
    });
    same_wide(
        "cvt.u32.u64 %r1, %rd1; cvt.u32.u64 %r2, %rd2; mad.wide.u32 %rd0, %r1, %r2, %rd3;",
        |a, b, c| wide(a as u32, b as u32).wrapping_add(c),
    );
    same_wide("min.s64 %rd0, %rd1, %rd2;", |a, b, _| (a as i64).min(b as i64) as u64);
    same_wide("rem.u64 %rd0, %rd1, 1000;", |a, _, _| a % 1000);
}

#[test]
fn sixteen_bits() {
    let unpack = "mov.b32 {%rs1, %rs2}, %r1; mov.b32 {%rs3, %rs4}, %r2;";
    let case = |op: &str, expected: &dyn Fn(u16, u16) -> u16| {
        let body = format!("{unpack} {op} %rs5, %rs1, %rs4; cvt.u32.u16 %r0, %rs5;");
        same(&body, |a, b, _| u32::from(expected(a as u16, (b >> 16) as u16)));
    };
    case("add.s16", &|a, b| a.wrapping_add(b));
    case("mul.lo.u16", &|a, b| a.wrapping_mul(b));
    case("mul.hi.s16", &|a, b| ((i32::from(a as i16) * i32::from(b as i16)) >> 16) as u16);
    case("min.s16", &|a, b| (a as i16).min(b as i16) as u16);
    case("max.u16", &|a, b| a.max(b));
    case("xor.b16", &|a, b| a ^ b);
    same("mov.b32 {%rs1, _}, %r1; shl.b16 %rs2, %rs1, 3; mov.b32 %r0, {%rs1, %rs2};", |a, _, _| {
        (a & 0xffff) | (a << 19)
    });
    same("cvt.u16.u32 %rs1, %r1; shr.s16 %rs1, %rs1, 4; cvt.s32.s16 %r0, %rs1;", |a, _, _| {
        i32::from(a as i16 >> 4) as u32
    });
}

#[test]
fn carries() {
    let sum = "mov.b64 {%r1, %r2}, %rd1; mov.b64 {%r3, %r4}, %rd2;
        add.cc.u32 %r5, %r1, %r3; addc.u32 %r6, %r2, %r4; mov.b64 %rd0, {%r5, %r6};";
    same_wide(sum, |a, b, _| a.wrapping_add(b));
    let difference = "mov.b64 {%r1, %r2}, %rd1; mov.b64 {%r3, %r4}, %rd2;
        sub.cc.u32 %r5, %r1, %r3; subc.u32 %r6, %r2, %r4; mov.b64 %rd0, {%r5, %r6};";
    same_wide(difference, |a, b, _| a.wrapping_sub(b));
    let product = "mov.b64 {%r1, %r2}, %rd1; mov.b64 {%r3, %r4}, %rd2;
        mul.lo.u32 %r5, %r1, %r3; mul.hi.u32 %r6, %r1, %r3;
        mad.lo.u32 %r6, %r1, %r4, %r6; mad.lo.u32 %r6, %r2, %r3, %r6; mov.b64 %rd0, {%r5, %r6};";
    same_wide(product, |a, b, _| a.wrapping_mul(b));
    let fused = "mov.b64 {%r1, %r2}, %rd1; mov.b64 {%r3, %r4}, %rd2; mov.b64 {%r7, %r8}, %rd3;
        mad.lo.cc.u32 %r5, %r1, %r3, %r7; madc.hi.u32 %r6, %r1, %r3, %r8; mov.b64 %rd0, {%r5, %r6};";
    same_wide(fused, |a, b, c| wide(a as u32, b as u32).wrapping_add(c));
    same_wide("add.cc.u64 %rd4, %rd1, %rd2; addc.u64 %rd0, 0, 0;", |a, b, _| {
        u64::from(a.checked_add(b).is_none())
    });
}

#[test]
fn bits() {
    same("and.b32 %r0, %r1, %r2;", |a, b, _| a & b);
    same("not.b32 %r0, %r1;", |a, _, _| !a);
    same("shl.b32 %r0, %r1, %r2;", |a, b, _| if b > 31 { 0 } else { a << b });
    same("shr.u32 %r0, %r1, %r2;", |a, b, _| if b > 31 { 0 } else { a >> b });
    same("shr.s32 %r0, %r1, %r2;", |a, b, _| (a as i32 >> b.min(31)) as u32);
    same("shf.l.wrap.b32 %r0, %r1, %r2, %r3;", |a, b, c| {
        let pair = u64::from(a) | u64::from(b) << 32;
        (pair << (c % 32) >> 32) as u32
    });
    same("shf.r.clamp.b32 %r0, %r1, %r2, %r3;", |a, b, c| {
        let pair = u64::from(a) | u64::from(b) << 32;
        (pair >> c.min(32)) as u32
    });
    same("popc.b32 %r0, %r1;", |a, _, _| a.count_ones());
    same("clz.b32 %r0, %r1;", |a, _, _| a.leading_zeros());
    same("brev.b32 %r0, %r1;", |a, _, _| a.reverse_bits());
    same("bfind.u32 %r0, %r1;", |a, _, _| a.checked_ilog2().unwrap_or(u32::MAX));
    same("bfe.u32 %r0, %r1, 4, 9;", |a, _, _| a >> 4 & 0x1ff);
    same("bfe.s32 %r0, %r1, 28, 9;", |a, _, _| (a as i32 >> 28) as u32);
    same("bfi.b32 %r0, %r1, %r2, 8, 12;", |a, b, _| (b & !0x000f_ff00) | (a << 8 & 0x000f_ff00));
    same("prmt.b32 %r0, %r1, %r2, 0x5410;", |a, b, _| (a & 0xffff) | b << 16);
    same("prmt.b32 %r0, %r1, %r2, 0x7bb3;", |a, b, _| {
        let sign = if a >> 31 == 1 { 0xff } else { 0 };
        a >> 24 | sign << 8 | sign << 16 | b >> 24 << 24
    });
    same("lop3.b32 %r0, %r1, %r2, %r3, 0xca;", |a, b, c| (a & b) | (!a & c));
    same("lop3.b32 %r0, %r1, %r2, %r3, 0x96;", |a, b, c| a ^ b ^ c);
    same("bmsk.clamp.b32 %r0, 4, 8;", |_, _, _| 0xff0);
    same("szext.wrap.s32 %r0, %r1, 12;", |a, _, _| ((a << 20) as i32 >> 20) as u32);
    same("fns.b32 %r0, %r1, 0, 2;", |a, _, _| {
        (0..32).filter(|bit| a >> bit & 1 == 1).nth(1).unwrap_or(u32::MAX)
    });
    same_wide("shl.b64 %rd0, %rd1, 13;", |a, _, _| a << 13);
    same_wide("shr.s64 %rd0, %rd1, 13;", |a, _, _| (a as i64 >> 13) as u64);
    same_wide("bfe.u64 %rd0, %rd1, 20, 30;", |a, _, _| a >> 20 & 0x3fff_ffff);
    same_wide("brev.b64 %rd0, %rd1;", |a, _, _| a.reverse_bits());
}

#[test]
fn predicates() {
    let case = |test: &str, expected: &dyn Fn(u32, u32) -> bool| {
        same(&format!("{test} %p1, %r1, %r2; selp.b32 %r0, 1, 0, %p1;"), |a, b, _| {
            u32::from(expected(a, b))
        });
    };
    case("setp.lt.s32", &|a, b| (a as i32) < (b as i32));
    case("setp.lo.u32", &|a, b| a < b);
    case("setp.ge.u32", &|a, b| a >= b);
    case("setp.eq.b32", &|a, b| a == b);
    same(
        "setp.gt.u32 %p2, %r3, 9; setp.lt.and.s32 %p1|%p3, %r1, %r2, !%p2; @%p1 mov.u32 %r0, 1; @!%p1 selp.u32 %r0, 2, 3, %p3;",
        |a, b, c| {
            let (less, small) = ((a as i32) < b as i32, c <= 9);
            if less && small {
                1
            } else if !less && small {
                2
            } else {
                3
            }
        },
    );
    same(
        "setp.ne.s32 %p1, %r1, 0; setp.ne.s32 %p2, %r2, 0; xor.pred %p3, %p1, %p2; not.pred %p3, %p3; selp.b32 %r0, %r1, %r2, %p3;",
        |a, b, _| {
            if (a != 0) == (b != 0) { a } else { b }
        },
    );
    same(
        "set.lt.u32.s32 %r0, %r1, %r2;",
        |a, b, _| if (a as i32) < b as i32 { u32::MAX } else { 0 },
    );
    same("slct.b32.s32 %r0, %r1, %r2, %r3;", |a, b, c| if c as i32 >= 0 { a } else { b });
    same_wide("setp.lt.s64 %p1, %rd1, %rd2; selp.b64 %rd0, %rd1, %rd2, %p1;", |a, b, _| {
        (a as i64).min(b as i64) as u64
    });
}

#[test]
fn control_flow() {
    // Collatz steps: every lane goes round its own number of times.
    let collatz = "and.b32 %r4, %r1, 1023; mov.u32 %r0, 0;
        L: setp.le.u32 %p1, %r4, 1; @%p1 bra DONE;
        and.b32 %r5, %r4, 1; setp.eq.u32 %p2, %r5, 0; @%p2 bra EVEN;
        mad.lo.u32 %r4, %r4, 3, 1; bra.uni NEXT;
        EVEN: shr.u32 %r4, %r4, 1;
        NEXT: add.u32 %r0, %r0, 1; bra L;
        DONE:";
    same(collatz, |a, _, _| {
        let (mut n, mut steps) = (a & 1023, 0);
        while n > 1 {
            n = if n % 2 == 0 { n / 2 } else { 3 * n + 1 };
            steps += 1;
        }
        steps
    });
    let table = "and.b32 %r4, %r1, 3; TABLE: .branchtargets A, B, C, A; brx.idx %r4, TABLE;
        A: mov.u32 %r0, 10; bra E; B: mov.u32 %r0, 20; bra E; C: mov.u32 %r0, 30; E:";
    same(table, |a, _, _| [10, 20, 30, 10][a as usize & 3]);
    // Names in an inner scope hide outer ones.
    same(
        "mov.u32 %r0, 1; { .reg .b32 %r0; .reg .pred p; mov.u32 %r0, 5; setp.eq.u32 p, %r0, 5; @p bra X; X: }",
        |_, _, _| 1,
    );
}
