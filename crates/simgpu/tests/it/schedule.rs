//! The hostile schedule, late stores, and counters.

use crate::harness::{Arg, Device};
use crate::instructions::memory::one_pointer;

/// Each block takes a ticket; the tickets say in which order they ran.
#[test]
fn seeds_give_orders_and_repeat_them() {
    let text = one_pointer("", "mov.u32 %r3, %ctaid.x; shl.b32 %r3, %r3, 6; add.s32 %r3, %r3, %r1;
        atom.global.add.u32 %r4, [%rd1], 1; mad.wide.u32 %rd2, %r3, 4, %rd1; st.global.u32 [%rd2+4], %r4;");
    let mut device = Device::new(&text);
    let mut run = |seed| {
        device.options.seed = seed;
        let buffer = device.alloc(4 * 641);
        device.memory.fill(buffer, 4 * 641, &[0]).unwrap();
        device.launch("k", 10, 64, 0, &[Arg::U64(buffer)]);
        device.download::<u32>(buffer, 641)
    };
    let first = run(1);
    assert_eq!(first[0], 640);
    assert_eq!(first, run(1));
    assert_ne!(first, run(2));
    let mut tickets = first[1..].to_vec();
    tickets.sort_unstable();
    assert!(tickets.into_iter().eq(0..640));
}

/// One block writes data and a flag, the other one waits for the flag and reads the data.
fn message(fence: &str) -> Vec<bool> {
    let text = one_pointer(
        "",
        &format!(
            "
        mov.u32 %r3, %ctaid.x; setp.ne.u32 %p1, %r3, 0; @%p1 bra READER;
        st.global.u32 [%rd1], 42; {fence} st.relaxed.gpu.global.u32 [%rd1+128], 1; bra E;
        READER: ld.relaxed.gpu.global.u32 %r4, [%rd1+128]; setp.eq.u32 %p2, %r4, 0; @%p2 bra READER;
        {fence} ld.global.u32 %r5, [%rd1]; st.global.u32 [%rd1+256], %r5; E:"
        ),
    );
    let mut device = Device::new(&text);
    (0..40)
        .map(|seed| {
            device.options.seed = seed;
            device.options.threads = 1 + seed as usize % 2;
            let buffer = device.alloc(512);
            device.memory.fill(buffer, 512, &[0]).unwrap();
            device.launch("k", 2, 1, 0, &[Arg::U64(buffer)]);
            device.download::<u32>(buffer + 256, 1)[0] == 42
        })
        .collect()
}

#[test]
fn stores_without_a_fence_come_late() {
    assert!(message("fence.acq_rel.gpu;").into_iter().all(|seen| seen));
    assert!(message("membar.gl;").into_iter().all(|seen| seen));
    let seen = message("membar.cta;");
    assert!(seen.contains(&false) && seen.contains(&true), "{seen:?}");
}

#[test]
fn a_block_sees_its_own_late_stores() {
    let text = one_pointer("", "mad.wide.u32 %rd2, %r1, 4, %rd1; st.global.u32 [%rd2], %r1; st.global.u8 [%rd2+1], 7;
        ld.global.u32 %r3, [%rd2]; st.global.u32 [%rd2+256], %r3; bar.sync 0; xor.b32 %r4, %r1, 33; mad.wide.u32 %rd3, %r4, 4, %rd1;
        ld.global.u32 %r5, [%rd3]; st.global.u32 [%rd2+512], %r5;");
    let mut device = Device::new(&text);
    for seed in 0..10 {
        device.options.seed = seed;
        // Never written by the host: the block's own stores initialize it.
        let buffer = device.alloc(768);
        device.launch("k", 1, 64, 0, &[Arg::U64(buffer)]);
        let output = device.download::<u32>(buffer, 192);
        for i in 0..64 {
            assert_eq!(output[64 + i], i as u32 + 0x700);
            assert_eq!(output[128 + i], (i as u32 ^ 0x21) + 0x700);
        }
    }
}

#[test]
fn a_late_store_and_an_early_one_make_a_word() {
    let text = one_pointer("", "mad.wide.u32 %rd2, %r1, 4, %rd1; cvt.u16.u32 %rs1, %r1; st.global.u16 [%rd2], %rs1; st.global.u16 [%rd2+2], %rs1;
        ld.global.u32 %r3, [%rd2]; st.global.u32 [%rd2+256], %r3;");
    let mut device = Device::new(&text);
    for seed in 0..20 {
        device.options.seed = seed;
        let buffer = device.alloc(512);
        device.launch("k", 1, 64, 0, &[Arg::U64(buffer)]);
        let expected: Vec<u32> = (0..64).map(|i| i * 0x1_0001).collect();
        assert_eq!(device.download::<u32>(buffer + 256, 64), expected);
    }
}

#[test]
fn any_lane_may_win() {
    let text = one_pointer("", "st.relaxed.gpu.global.u32 [%rd1], %r1;");
    let mut device = Device::new(&text);
    let mut winners: Vec<u32> = (0..20)
        .map(|seed| {
            device.options.seed = seed;
            let buffer = device.alloc(4);
            device.launch("k", 1, 32, 0, &[Arg::U64(buffer)]);
            device.download::<u32>(buffer, 1)[0]
        })
        .collect();
    winners.sort_unstable();
    winners.dedup();
    assert_eq!(winners, [0, 31]);
}

#[test]
fn a_lock_between_lanes_makes_progress() {
    // Every lane takes the same lock in turn: a schedule that always preferred one path would hang.
    let text = one_pointer("", "
        L: atom.global.cas.b32 %r2, [%rd1], 0, 1; setp.ne.u32 %p1, %r2, 0; @%p1 bra L;
        membar.gl; ld.relaxed.gpu.global.u32 %r3, [%rd1+4]; add.u32 %r3, %r3, 1; st.relaxed.gpu.global.u32 [%rd1+4], %r3; membar.gl;
        atom.global.exch.b32 %r4, [%rd1], 0;");
    let mut device = Device::new(&text);
    for seed in 0..4 {
        device.options.seed = seed;
        device.options.threads = 1 + seed as usize % 2;
        let buffer = device.upload(&[0_u32, 0]);
        device.launch("k", 4, 64, 0, &[Arg::U64(buffer)]);
        assert_eq!(device.download::<u32>(buffer, 2), [0, 256]);
    }
}

#[test]
fn a_kernel_without_end_is_stopped() {
    let mut device = Device::new(&one_pointer("", "L: add.u32 %r2, %r1, 1; bra L;"));
    device.options.max_block_instructions = 100_000;
    let fault = device.try_launch("k", 1, 32, 0, &[Arg::U64(0)]).unwrap_err();
    assert!(matches!(fault.what, oarlock_simgpu::FaultKind::TooLong { .. }), "{fault}");
}

#[test]
fn counters() {
    let text = one_pointer(".shared .align 16 .b8 s[4096];", "
        mad.wide.u32 %rd2, %r1, 4, %rd1; mad.wide.u32 %rd3, %r1, 64, %rd1;
        ld.global.u32 %r2, [%rd2];
        ld.global.u32 %r3, [%rd3];
        mov.u32 %r4, s; shl.b32 %r5, %r1, 2; add.s32 %r6, %r4, %r5; shl.b32 %r5, %r1, 7; add.s32 %r7, %r4, %r5;
        st.shared.u32 [%r6], %r2; bar.sync 0;
        st.shared.u32 [%r7], %r3;
        cvt.rn.f32.u32 %f1, %r2; fma.rn.f32 %f2, %f1, %f1, %f1;
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f4, %f5, %f6, %f7}, {%r2, %r2, %r2, %r2}, {%r2, %r2}, {%f1, %f1, %f1, %f1};
        st.global.f32 [%rd2+2048], %f2;");
    let mut device = Device::new(&text);
    device.options.count_memory = true;
    let buffer = device.alloc(4096);
    device.memory.fill(buffer, 4096, &[0]).unwrap();
    let counters = device.launch("k", 1, 32, 0, &[Arg::U64(buffer)]);
    let line = |part: &str| {
        let found = counters.lines.values().find(|line| line.instruction.contains(part));
        found.unwrap_or_else(|| panic!("{part}: {counters:?}"))
    };
    let coalesced = line("ld.global.u32 %r2").global;
    assert_eq!((coalesced.bytes, coalesced.sectors), (128, 4));
    let strided = line("ld.global.u32 %r3").global;
    assert_eq!((strided.bytes, strided.sectors), (128, 32));
    assert_eq!(line("st.shared.u32 [%r6]").banks.max_degree, 1);
    assert_eq!(line("st.shared.u32 [%r7]").banks.max_degree, 32);
    assert_eq!((counters.global_reads.sectors, counters.global_writes.sectors), (36, 4));
    // The first four sectors are read by both loads: 4 + 32, of which 2 are the same.
    assert_eq!((counters.dram_read_bytes, counters.dram_write_bytes), (34 * 32, 128));
    assert_eq!((counters.tensor, counters.tensor_macs, counters.thread_macs), (1, 2048, 32));
    assert!(counters.tensor_share() > 0.98);
    assert_eq!((counters.global, counters.shared), (3, 2));
    assert_eq!(counters.global_writes.efficiency(), 1.0);
}
