//! Loads, stores, atomics, copies, parameters and calls.

use super::{REGISTERS, same};
use crate::harness::{Arg, Device, HEADER, words};

/// A kernel with one pointer.
pub(crate) fn one_pointer(globals: &str, body: &str) -> String {
    format!(
        "{HEADER}{globals}\n.visible .entry k(.param .u64 p) {{\n{REGISTERS}
        ld.param.u64 %rd1, [p]; mov.u32 %r1, %tid.x;\n{body}\nret; }}"
    )
}

#[test]
fn widths_and_vectors() {
    let device = Device::new(&one_pointer("", "
        mad.wide.u32 %rd2, %r1, 16, %rd1;
        ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%rd2];
        ld.global.s8 %r6, [%rd2+1]; ld.global.u16 %rs1, [%rd2+2]; ld.global.nc.L1::no_allocate.v2.u64 {%rd3, %rd4}, [%rd2];
        st.global.v4.u32 [%rd2+512], {%r5, %r4, %r3, %r2};
        st.global.u32 [%rd2+1024], %r6; st.global.u16 [%rd2+1028], %rs1; st.global.u8 [%rd2+1030], %r2; st.global.b8 [%rd2+1031], 9;
        st.global.u64 [%rd2+1032], %rd4;"));
    let input = words(5, 128);
    let buffer = device.alloc(2048);
    device.memory.fill(buffer, 2048, &[0]).unwrap();
    device.memory.write(buffer, &crate::harness::bytes_of(&input)).unwrap();
    device.launch("k", 1, 32, 0, &[Arg::U64(buffer)]);
    let output = device.download::<u32>(buffer, 512);
    for i in 0..32 {
        let row = &input[4 * i..4 * i + 4];
        assert_eq!(output[128 + 4 * i..132 + 4 * i], [row[3], row[2], row[1], row[0]]);
        let expected = [
            i32::from((row[0] >> 8) as i8) as u32,
            row[0] >> 16 | (row[0] & 0xff) << 16 | 9 << 24,
            row[2],
            row[3],
        ];
        assert_eq!(output[256 + 4 * i..260 + 4 * i], expected);
    }
}

#[test]
fn spaces_and_generic_addresses() {
    let globals = ".global .align 4 .u32 table[4] = {10, 20, 30, 40};\n.const .align 4 .b8 bytes[4] = {1, 2, 3, 4};
        .global .u64 pointer = generic(table)+4;\n.extern .shared .align 16 .b8 dynamic[];";
    let device = Device::new(&one_pointer(globals, "
        .local .align 8 .b8 depot[16]; .shared .align 4 .b8 fixed[128];
        mad.wide.u32 %rd2, %r1, 4, %rd1;
        mov.u64 %rd3, depot; cvta.local.u64 %rd3, %rd3; st.u32 [%rd3+4], %r1; ld.local.u32 %r2, [depot+4];
        mov.u64 %rd4, fixed; cvta.shared.u64 %rd5, %rd4; mad.wide.u32 %rd5, %r1, 4, %rd5; st.u32 [%rd5], %r2;
        mov.u32 %r3, fixed; shl.b32 %r4, %r1, 2; add.s32 %r3, %r3, %r4; ld.shared.u32 %r5, [%r3];
        mov.u32 %r6, dynamic; add.s32 %r6, %r6, %r4; st.shared.u32 [%r6], %r5; ld.shared.u32 %r5, [%r6];
        and.b32 %r7, %r1, 3; mul.wide.u32 %rd6, %r7, 4; mov.u64 %rd7, table; add.s64 %rd7, %rd7, %rd6; ld.global.u32 %r8, [%rd7];
        cvt.u64.u32 %rd8, %r7; mov.u64 %rd9, bytes; add.s64 %rd9, %rd9, %rd8; ld.const.u8 %r9, [%rd9];
        ld.global.u64 %rd10, [pointer]; ld.u32 %r10, [%rd10];
        isspacep.shared %p1, %rd5; isspacep.global %p2, %rd7; and.pred %p1, %p1, %p2; isspacep.local %p2, %rd3; and.pred %p1, %p1, %p2;
        add.s32 %r11, %r5, %r8; add.s32 %r11, %r11, %r9; add.s32 %r11, %r11, %r10; selp.b32 %r11, %r11, 0, %p1;
        st.global.u32 [%rd2], %r11;"));
    let buffer = device.alloc(128);
    device.launch("k", 1, 32, 128, &[Arg::U64(buffer)]);
    let expected: Vec<u32> = (0..32).map(|i| i + 10 * (i % 4 + 1) + i % 4 + 1 + 20).collect();
    assert_eq!(device.download::<u32>(buffer, 32), expected);
    let entry = device.loaded.module().entry("k").unwrap();
    assert_eq!((entry.static_shared_bytes(), entry.local_bytes()), (128, 16));
    assert_eq!(device.loaded.variable("table").unwrap().1, 16);
}

#[test]
fn atomics() {
    let device = Device::new(&one_pointer(".shared .align 8 .b8 s[8];", "
        setp.eq.u32 %p1, %r1, 0; @%p1 st.shared.u32 [s], 0; bar.sync 0;
        atom.shared.add.u32 %r2, [s], 1; bar.sync 0; ld.shared.u32 %r3, [s];
        red.global.add.u32 [%rd1], %r1; atom.global.max.s32 %r4, [%rd1+4], %r1; atom.global.inc.u32 %r5, [%rd1+8], 9;
        cvt.rn.f32.u32 %f1, %r1; atom.global.add.f32 %f2, [%rd1+12], %f1;
        atom.global.cas.b32 %r6, [%rd1+16], 0, %r1; atom.global.or.b32 %r7, [%rd1+20], %r1;
        atom.add.u64 %rd2, [%rd1+24], 5000000000; atom.global.exch.b32 %r8, [%rd1+32], %r3;
        atom.global.add.noftz.f16x2 %r9, [%rd1+36], 0x3c003c00;
        atom.global.v2.f32.add {%f3, %f4}, [%rd1+40], {%f1, %f1};"));
    let mut input = [0_u32; 12];
    input[4] = 0;
    let buffer = device.upload(&input);
    device.launch("k", 1, 64, 0, &[Arg::U64(buffer)]);
    let output = device.download::<u32>(buffer, 12);
    assert_eq!(output[..3], [2016, 63, 4]);
    assert_eq!(f32::from_bits(output[3]), 2016.0);
    assert!(output[4] < 64 && output[5] == 63);
    assert_eq!(u64::from(output[6]) | u64::from(output[7]) << 32, 320_000_000_000);
    assert_eq!((output[8], output[9]), (64, 0x5400_5400));
    assert_eq!([output[10], output[11]].map(f32::from_bits), [2016.0, 2016.0]);
}

#[test]
fn asynchronous_copies() {
    let device = Device::new(&one_pointer(".shared .align 16 .b8 s[1024];", "
        mov.u32 %r2, s; shl.b32 %r3, %r1, 4; add.s32 %r2, %r2, %r3; mad.wide.u32 %rd2, %r1, 16, %rd1;
        cp.async.cg.shared.global [%r2], [%rd2], 16; cp.async.commit_group;
        shl.b32 %r4, %r1, 3; and.b32 %r4, %r4, 8; cp.async.ca.shared.global.L2::128B [%r2+512], [%rd2], 8, %r4;
        setp.gt.u32 %p1, %r1, 15; cp.async.ca.shared.global [%r2+520], [%rd2+4], 4, %p1; st.shared.u32 [%r2+524], 3;
        cp.async.commit_group; cp.async.wait_group 1; ld.shared.v4.u32 {%r5, %r6, %r7, %r8}, [%r2];
        cp.async.wait_all; ld.shared.v4.u32 {%r9, %r10, %r11, %r12}, [%r2+512];
        st.global.v4.u32 [%rd2+512], {%r5, %r6, %r7, %r8}; st.global.v4.u32 [%rd2+1024], {%r9, %r10, %r11, %r12};"));
    let input = words(9, 128);
    let buffer = device.alloc(2048);
    device.memory.write(buffer, &crate::harness::bytes_of(&input)).unwrap();
    device.launch("k", 1, 32, 0, &[Arg::U64(buffer)]);
    assert_eq!(device.download::<u32>(buffer + 512, 128), input);
    let zeroed = device.download::<u32>(buffer + 1024, 128);
    for i in 0..32 {
        let row = &input[4 * i..];
        let pair = if i % 2 == 1 { [row[0], row[1]] } else { [0, 0] };
        let word = if i > 15 { 0 } else { row[1] };
        assert_eq!(zeroed[4 * i..4 * i + 4], [pair[0], pair[1], word, 3], "{i}");
    }
}

#[test]
fn parameters_and_calls() {
    let text = format!("{HEADER}
        .func (.param .b32 result) square(.param .b32 x) {{ .reg .b32 %r<4>; .reg .pred %p<2>;
            ld.param.u32 %r1, [x]; setp.eq.u32 %p1, %r1, 3; mul.lo.u32 %r2, %r1, %r1; @%p1 mov.u32 %r2, 0; @%p1 bra E;
            add.u32 %r2, %r2, 1; E: st.param.b32 [result], %r2; ret; }}
        .visible .entry k(.param .u64 p, .param .align 8 .b8 pair[12], .param .f32 scale) .maxntid 64, 1, 1 {{ {REGISTERS}
            ld.param.u64 %rd1, [p]; ld.param.v2.u32 {{%r2, %r3}}, [pair]; ld.param.u32 %r4, [pair+8]; ld.param.f32 %f1, [scale];
            mov.u32 %r1, %tid.x; mov.b64 %rd5, pair; cvta.param.u64 %rd6, %rd5; ld.u32 %r5, [%rd6+4];
            {{ .param .b32 argument; .param .b32 value; st.param.b32 [argument], %r1; call.uni (value), square, (argument); ld.param.b32 %r6, [value]; }}
            add.u32 %r6, %r6, %r2; add.u32 %r6, %r6, %r4; add.u32 %r6, %r6, %r5; cvt.rzi.u32.f32 %r7, %f1; add.u32 %r6, %r6, %r7;
            mad.wide.u32 %rd2, %r1, 4, %rd1; st.global.u32 [%rd2], %r6; ret; }}");
    let device = Device::new(&text);
    let buffer = device.alloc(128);
    let pair = [100_u32, 1000, 10_000].iter().flat_map(|word| word.to_le_bytes()).collect();
    device.launch(
        "k",
        1,
        32,
        0,
        &[Arg::U64(buffer), Arg::Bytes(pair), Arg::U32(7.5_f32.to_bits())],
    );
    let expected: Vec<u32> = (0..32).map(|i| if i == 3 { 0 } else { i * i + 1 } + 11_107).collect();
    assert_eq!(device.download::<u32>(buffer, 32), expected);
    let entry = device.loaded.module().entry("k").unwrap();
    let offsets: Vec<(usize, usize)> = entry.params().iter().map(|p| (p.offset, p.size)).collect();
    assert_eq!(offsets, [(0, 8), (8, 12), (20, 4)]);
    assert_eq!(entry.max_threads(), Some([64, 1, 1]));
}

#[test]
fn special_registers() {
    same("mov.u32 %r4, %laneid; mov.u32 %r5, %warpid; mov.u32 %r6, %lanemask_lt; mov.u32 %r7, %ntid.x; mov.u32 %r8, %nctaid.x; popc.b32 %r6, %r6;
        sub.u32 %r4, %r4, %r6; mad.lo.u32 %r0, %r7, 100, %r8; add.u32 %r0, %r0, %r4; setp.lt.u32 %p1, %r5, 2; selp.b32 %r0, %r0, 0, %p1;
        mov.u64 %rd1, %clock64; mov.u32 %r9, %clock;", |_, _, _| 6402);
}
