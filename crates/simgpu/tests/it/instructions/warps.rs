//! Shuffles, votes, matches, reductions and barriers.

use super::memory::one_pointer;
use crate::harness::{Arg, Device, words};

/// What a body leaves in `%r0` of each of 32 lanes, whose `%r2` are given.
fn run(body: &str, input: &[u32]) -> Vec<u32> {
    let text = one_pointer(
        "",
        &format!(
            "mad.wide.u32 %rd2, %r1, 4, %rd1; ld.global.u32 %r2, [%rd2];\n{body}\nst.global.u32 [%rd2], %r0;"
        ),
    );
    let device = Device::new(&text);
    let buffer = device.upload(input);
    device.launch("k", 1, 32, 0, &[Arg::U64(buffer)]);
    device.download(buffer, 32)
}

#[test]
fn shuffles() {
    let input = words(1, 32);
    let case = |body: &str, expected: &dyn Fn(usize) -> u32| {
        let expected: Vec<u32> = (0..32).map(expected).collect();
        assert_eq!(run(body, &input), expected, "{body}");
    };
    case("shfl.sync.bfly.b32 %r0, %r2, 5, 31, -1;", &|i| input[i ^ 5]);
    case("shfl.sync.idx.b32 %r0, %r2, 7, 31, 0xffffffff;", &|_| input[7]);
    case("shfl.sync.idx.b32 %r0, %r2, 1, 0x181f, 0xffffffff;", &|i| input[i / 8 * 8 + 1]);
    case("shfl.sync.down.b32 %r0|%p1, %r2, 3, 31, -1; @!%p1 mov.u32 %r0, 0;", &|i| {
        if i + 3 < 32 { input[i + 3] } else { 0 }
    });
    case("shfl.sync.up.b32 %r0|%p1, %r2, 4, 0, -1; @!%p1 mov.u32 %r0, 9;", &|i| {
        if i < 4 { 9 } else { input[i - 4] }
    });
    // Half of the warp, under a guard.
    case(
        "mov.u32 %r0, 1; setp.lt.u32 %p1, %r1, 16; @%p1 shfl.sync.bfly.b32 %r0, %r2, 1, 31, 0xffff;",
        &|i| {
            if i < 16 { input[i ^ 1] } else { 1 }
        },
    );
}

#[test]
fn votes_matches_and_reductions() {
    let input: Vec<u32> = words(2, 32).into_iter().map(|word| word % 5).collect();
    let mask = |value: u32| (0..32).filter(|&i| input[i] == value).fold(0, |mask, i| mask | 1 << i);
    let case = |body: &str, expected: &dyn Fn(usize) -> u32| {
        let expected: Vec<u32> = (0..32).map(expected).collect();
        assert_eq!(run(body, &input), expected, "{body}");
    };
    case("setp.eq.u32 %p1, %r2, 3; vote.sync.ballot.b32 %r0, %p1, -1;", &|_| mask(3));
    case(
        "setp.eq.u32 %p1, %r2, 3; vote.sync.any.pred %p2, %p1, -1; selp.b32 %r0, 1, 0, %p2;",
        &|_| u32::from(mask(3) != 0),
    );
    case(
        "setp.lt.u32 %p1, %r2, 5; vote.sync.all.pred %p2, !%p1, -1; selp.b32 %r0, 1, 0, %p2;",
        &|_| 0,
    );
    case("match.any.sync.b32 %r0, %r2, -1;", &|i| mask(input[i]));
    case("match.all.sync.b32 %r0|%p1, %r2, -1;", &|_| 0);
    case("redux.sync.add.s32 %r0, %r2, -1;", &|_| input.iter().sum());
    case("redux.sync.max.u32 %r0, %r2, -1;", &|_| *input.iter().max().unwrap());
    case("elect.sync %r3|%p1, -1; selp.b32 %r0, 7, %r3, %p1;", &|i| if i == 0 { 7 } else { 0 });
    // Each group of equal values votes by itself.
    case(
        "match.any.sync.b32 %r3, %r2, -1; setp.ne.u32 %p1, %r1, 0; vote.sync.ballot.b32 %r0, %p1, %r3;",
        &|i| mask(input[i]) & !1,
    );
    case(
        "setp.lt.u32 %p1, %r1, 9; mov.u32 %r0, 0; @%p1 activemask.b32 %r0; bar.warp.sync -1;",
        &|i| u32::from(i < 9) * 0x1ff,
    );
}

#[test]
fn divergent_lanes_meet_at_sync() {
    // Lanes reach the same shuffle at their own pace.
    let body = "mov.u32 %r3, 0; mov.u32 %r4, 0;
        L: setp.ge.u32 %p1, %r3, %r1; @%p1 bra E; add.u32 %r3, %r3, 1; add.u32 %r4, %r4, %r3; bra L;
        E: shfl.sync.bfly.b32 %r0, %r4, 31, 31, -1;";
    let expected: Vec<u32> = (0..32).map(|i| (31 - i) * (32 - i) / 2).collect();
    assert_eq!(run(body, &[0; 32]), expected);
}

/// Half of each warp waits at a shuffle while the other half passes a barrier that stands right before.
#[test]
fn lanes_that_wait_are_met() {
    let text = one_pointer("", "mad.wide.u32 %rd2, %r1, 4, %rd1; mov.u32 %r2, %laneid; setp.ge.u32 %p1, %r2, 16; @%p1 bra L;
        barrier.cta.sync 1, 32;
        L: shfl.sync.bfly.b32 %r3, %r1, 16, 31, -1; @%p1 bar.warp.sync 0xffff0000; bar.warp.sync -1; st.global.u32 [%rd2], %r3;");
    let mut device = Device::new(&text);
    for seed in 0..20 {
        device.options.seed = seed;
        let buffer = device.alloc(256);
        device.launch("k", 1, 64, 0, &[Arg::U64(buffer)]);
        let expected: Vec<u32> = (0..64).map(|i| i ^ 16).collect();
        assert_eq!(device.download::<u32>(buffer, 64), expected);
    }
}

#[test]
fn barriers_with_results_and_parts() {
    let text = one_pointer(".shared .align 4 .b8 s[512];", "
        mad.wide.u32 %rd2, %r1, 4, %rd1; mov.u32 %r2, s; shl.b32 %r3, %r1, 2; add.s32 %r2, %r2, %r3;
        setp.lt.u32 %p1, %r1, 40; bar.red.popc.u32 %r4, 0, %p1; bar.red.and.pred %p2, 0, %p1; barrier.cta.red.or.pred %p3, 0, %p1;
        selp.b32 %r5, 1000, 0, %p2; selp.b32 %r6, 100, 0, %p3; add.s32 %r4, %r4, %r5; add.s32 %r4, %r4, %r6;
        setp.ge.u32 %p4, %r1, 64; @%p4 bra CONSUMER;
        st.shared.u32 [%r2], %r1; bar.arrive 1, 128; bra E;
        CONSUMER: bar.sync 1, 128; ld.shared.u32 %r7, [%r2+-256]; add.s32 %r4, %r4, %r7;
        E: st.global.u32 [%rd2], %r4;");
    let mut device = Device::new(&text);
    for seed in 0..5 {
        device.options.seed = seed;
        let buffer = device.alloc(512);
        device.launch("k", 1, 128, 0, &[Arg::U64(buffer)]);
        let expected: Vec<u32> = (0..128).map(|i: u32| 140 + i.saturating_sub(64)).collect();
        assert_eq!(device.download::<u32>(buffer, 128), expected);
    }
}
