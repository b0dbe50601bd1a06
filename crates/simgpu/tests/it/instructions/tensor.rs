//! `mma`, `ldmatrix`, `stmatrix`, `movmatrix`.

use std::fmt::Write as _;

use super::REGISTERS;
use crate::harness::{Arg, Device, HEADER, words};

/// One warp: loads its fragments as words, multiplies, stores the result's fragment.
fn multiply(name: &str, a: &[[u32; 32]], b: &[[u32; 32]], c: &[[u32; 32]]) -> Vec<[u32; 32]> {
    let mut body = String::new();
    let mut register = 0;
    let mut lists: Vec<String> = vec![];
    for fragment in [c.len(), a.len(), b.len(), c.len()] {
        let names: Vec<String> = (0..fragment).map(|i| format!("%q{}", register + i)).collect();
        if !lists.is_empty() {
            for (i, name) in names.iter().enumerate() {
                let _ = writeln!(body, "ld.global.u32 {name}, [%rd2+{}];", 128 * (register + i));
            }
        }
        register += fragment;
        lists.push(format!("{{{}}}", names.join(", ")));
    }
    let _ = writeln!(body, "{name} {}, {}, {}, {};", lists[0], lists[1], lists[2], lists[3]);
    for i in 0..c.len() {
        let _ = writeln!(body, "st.global.u32 [%rd2+{}], %q{i};", 128 * i);
    }
    let text = format!("{HEADER}.visible .entry k(.param .u64 p) {{ {REGISTERS} .reg .b32 %q<32>;
        ld.param.u64 %rd1, [p]; mov.u32 %r1, %tid.x; mad.wide.u32 %rd2, %r1, 4, %rd1;\n{body} ret; }}");
    let device = Device::new(&text);
    let empty = vec![[0; 32]; c.len()];
    let all: Vec<u32> = [&empty[..], a, b, c].concat().concat();
    let buffer = device.upload(&all);
    device.launch("k", 1, 32, 0, &[Arg::U64(buffer)]);
    let output = device.download::<u32>(buffer, 32 * c.len());
    output.chunks(32).map(|row| row.try_into().unwrap()).collect()
}

/// Packs the numbers of a matrix into a fragment: `place(register, lane, part)` says which one.
fn fragment(
    registers: usize,
    parts: usize,
    number: impl Fn(usize, usize, usize) -> u32,
) -> Vec<[u32; 32]> {
    let bits = 32 / parts;
    (0..registers)
        .map(|register| {
            std::array::from_fn(|lane| {
                (0..parts)
                    .fold(0, |word, part| word | number(register, lane, part) << (bits * part))
            })
        })
        .collect()
}

fn small(seed: u64, len: usize) -> Vec<i32> {
    words(seed, len).into_iter().map(|word| (word % 9) as i32 - 4).collect()
}

/// Checks a type whose numbers are encoded by `encode`, for inner sizes `k`.
fn check(name: &str, k: usize, per: usize, is_float: bool, encode: impl Fn(i32) -> u32) {
    let (a, b, c) = (small(1, 16 * k), small(2, 8 * k), small(3, 128));
    // The layouts as the PTX manual draws them.
    let column =
        |register: usize, lane: usize, part: usize| lane % 4 * per + part + 4 * per * register;
    let a_words = fragment(k / (2 * per), per, |register, lane, part| {
        let row = lane / 4 + 8 * (register % 2);
        encode(a[row * k + column(register / 2, lane, part)])
    });
    let b_words = fragment(k / (4 * per), per, |register, lane, part| {
        encode(b[column(register, lane, part) * 8 + lane / 4])
    });
    let place = |register: usize, lane: usize| {
        (lane / 4 + 8 * (register / 2)) * 8 + lane % 4 * 2 + register % 2
    };
    let number = |value: i32| if is_float { (value as f32).to_bits() } else { value as u32 };
    let c_words = fragment(4, 1, |register, lane, _| number(c[place(register, lane)]));
    let expected = fragment(4, 1, |register, lane, _| {
        let (row, column) = (place(register, lane) / 8, place(register, lane) % 8);
        let sum: i32 = (0..k).map(|i| a[row * k + i] * b[i * 8 + column]).sum();
        number(sum + c[row * 8 + column])
    });
    assert_eq!(multiply(name, &a_words, &b_words, &c_words), expected, "{name}");
}

/// A small whole number as f16.
fn f16(value: i32) -> u32 {
    let bits = (value as f32).to_bits();
    if value == 0 { 0 } else { (bits >> 16 & 0x8000) | ((bits >> 13 & 0x3ffff) - (112 << 10)) }
}

#[test]
fn every_type() {
    let bf16 = |value: i32| (value as f32).to_bits() >> 16;
    let tf32 = |value: i32| (value as f32).to_bits();
    let byte = |value: i32| value as u32 & 0xff;
    check("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", 16, 2, true, f16);
    check("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32", 8, 2, true, f16);
    check("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", 16, 2, true, bf16);
    check("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32", 8, 2, true, bf16);
    check("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", 8, 1, true, tf32);
    check("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32", 4, 1, true, tf32);
    check("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32", 32, 4, false, byte);
    check("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32", 16, 4, false, byte);
    check("mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32", 32, 4, false, byte);
}

#[test]
fn half_accumulators() {
    let one = vec![[0x3c00_3c00; 32]; 4];
    let result =
        multiply("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16", &one, &one[..2], &one[..2]);
    // 1 + 16 products of 1.
    assert_eq!(result, [[f16(17) * 0x1_0001; 32]; 2]);
}

#[test]
fn matrices_in_shared_memory() {
    let text = format!("{HEADER}.visible .entry k(.param .u64 p) {{ {REGISTERS} .shared .align 16 .b8 s[1024];
        ld.param.u64 %rd1, [p]; mov.u32 %r1, %tid.x; mad.wide.u32 %rd2, %r1, 4, %rd1; mad.wide.u32 %rd3, %r1, 16, %rd1;
        mov.u32 %r2, s; shl.b32 %r3, %r1, 4; add.s32 %r2, %r2, %r3;
        ld.global.v4.u32 {{%r4, %r5, %r6, %r7}}, [%rd3]; st.shared.v4.u32 [%r2], {{%r4, %r5, %r6, %r7}}; bar.warp.sync -1;
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r8, %r9, %r10, %r11}}, [%r2];
        ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {{%r12}}, [%r2]; movmatrix.sync.aligned.m8n8.trans.b16 %r13, %r8;
        stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%r2+512], {{%r8, %r9, %r10, %r11}}; bar.warp.sync -1;
        ldmatrix.sync.aligned.m8n8.x2.shared.b16 {{%r14, %r15}}, [%r2+512];
        st.global.u32 [%rd2], %r8; st.global.u32 [%rd2+128], %r11; st.global.u32 [%rd2+256], %r12; st.global.u32 [%rd2+384], %r13;
        st.global.u32 [%rd2+512], %r14; ret; }}");
    let device = Device::new(&text);
    let halves: Vec<u16> = (0..256).collect();
    let buffer = device.alloc(1024);
    device.memory.write(buffer, &crate::harness::bytes_of(&halves)).unwrap();
    device.launch("k", 1, 32, 0, &[Arg::U64(buffer)]);
    let output = device.download::<u32>(buffer, 160);
    for lane in 0..32_u32 {
        let (g, t) = (lane / 4, lane % 4);
        let plain = (8 * g + 2 * t) | (8 * g + 2 * t + 1) << 16;
        let turned = (16 * t + g) | (16 * t + 8 + g) << 16;
        let row = |index: usize| output[32 * index + lane as usize];
        assert_eq!(row(0), plain);
        assert_eq!(row(1), plain + 192 * 0x1_0001);
        assert_eq!([row(2), row(3), row(4)], [turned; 3]);
    }
}
