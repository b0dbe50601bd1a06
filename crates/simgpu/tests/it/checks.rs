//! Each check has a kernel that trips it, and one beside it that does not.

use oarlock_simgpu::{FaultKind, Memory, MemoryError, Module, Space};

use crate::harness::{Arg, Device};
use crate::instructions::memory::one_pointer;

/// Runs a body on 64 threads with 1 KiB of zeros, of which `%rd2` is the thread's word.
fn outcomes(body: &str, change: impl Fn(&mut Device)) -> Vec<Option<(FaultKind, u32, String)>> {
    let text = one_pointer(
        ".shared .align 16 .b8 s[1024];",
        &format!(
            "mad.wide.u32 %rd2, %r1, 4, %rd1; mov.u32 %r2, s; shl.b32 %r3, %r1, 2; add.s32 %r2, %r2, %r3;\n{body}"
        ),
    );
    let mut device = Device::new(&text);
    change(&mut device);
    (0..4)
        .map(|seed| {
            device.options.seed = seed;
            let buffer = device.alloc(1024);
            device.memory.fill(buffer, 1024, &[0]).unwrap();
            let result = device.try_launch("k", 2, 64, 0, &[Arg::U64(buffer)]);
            result.err().map(|fault| (fault.what, fault.line, fault.instruction))
        })
        .collect()
}

/// Every seed finds it.
fn faults(body: &str, is_it: impl Fn(&FaultKind) -> bool) {
    for outcome in outcomes(body, |_| {}) {
        let (what, line, instruction) = outcome.unwrap_or_else(|| panic!("no fault: {body}"));
        assert!(is_it(&what), "{what:?}: {body}");
        assert!(line > 0 && instruction.ends_with(';'), "{line} {instruction}");
    }
}

fn passes(body: &str) {
    for outcome in outcomes(body, |_| {}) {
        assert_eq!(outcome, None, "{body}");
    }
}

#[test]
fn out_of_bounds() {
    let is_global =
        |what: &FaultKind| matches!(what, FaultKind::OutOfBounds { space: Space::Global, .. });
    faults("ld.global.u32 %r4, [%rd2+1024];", is_global);
    faults("ld.global.u32 %r4, [%rd2+-4];", is_global);
    faults("st.global.u32 [%rd2+900], %r1;", is_global);
    faults("mov.u64 %rd3, 0; ld.u32 %r4, [%rd3];", is_global);
    faults("atom.global.add.u32 %r4, [%rd2+1024], 1;", is_global);
    passes("ld.global.u32 %r4, [%rd2+768]; st.global.u32 [%rd2+768], %r4;");
    let is_shared =
        |what: &FaultKind| matches!(what, FaultKind::OutOfBounds { space: Space::Shared, .. });
    faults("st.shared.u32 [%r2+1000], %r1;", is_shared);
    faults(
        "cvt.u64.u32 %rd3, %r2; cvta.shared.u64 %rd3, %rd3; st.shared.u32 [%rd3], %r1;",
        is_shared,
    );
    passes("cvt.u64.u32 %rd3, %r2; cvta.shared.u64 %rd3, %rd3; st.u32 [%rd3], %r1;");
    passes("st.shared.u32 [%r2+768], %r1;");
    let is_local =
        |what: &FaultKind| matches!(what, FaultKind::OutOfBounds { space: Space::Local, .. });
    faults(".local .b32 l[2]; mov.u64 %rd3, l; st.local.u32 [%rd3+8], %r1;", is_local);
    passes(".local .b32 l[2]; mov.u64 %rd3, l; st.local.u32 [%rd3+4], %r1;");
    let is_param =
        |what: &FaultKind| matches!(what, FaultKind::OutOfBounds { space: Space::Param, .. });
    faults("ld.param.u32 %r4, [p+8];", is_param);
    passes("ld.param.u32 %r4, [p+4];");
}

#[test]
fn any_address_is_a_fault_and_no_panic() {
    let bodies = [
        "ld.global.u32 %r4, [%rd3];",
        "ld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%rd3];",
        "st.global.u32 [%rd3], %r1;",
        "ld.u32 %r4, [%rd3];",
        "st.shared.u32 [%rd3], %r1;",
        "ld.shared.v2.u32 {%r4, %r5}, [%rd3];",
        "ld.local.u32 %r4, [%rd3];",
        "ld.param.u32 %r4, [%rd3];",
        "atom.global.add.u32 %r4, [%rd3], 1;",
        "atom.shared.add.u32 %r4, [%rd3], 1;",
        "cp.async.ca.shared.global [%r2], [%rd3], 4;",
        "cp.async.ca.shared.global [%rd3], [%rd1], 4;",
        "ld.shared.u8 %r4, [%rd3];",
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r4, %r5, %r6, %r7}, [%rd3];",
    ];
    for body in bodies {
        for address in [
            "-4",
            "-16",
            "0xffffffff",
            "0xf00000000000",
            "0xf0ffffffffff",
            "0xf20000000100",
            "0x1000000000000",
            "-1",
        ] {
            // From one place, and from one after the other, which is another path.
            for per_lane in [0, 4, 16] {
                let body = format!(
                    "mov.u64 %rd3, {address}; mad.wide.u32 %rd3, %r1, {per_lane}, %rd3; {body}"
                );
                for counts in [false, true] {
                    let outcomes = outcomes(&body, |device| device.options.count_memory = counts);
                    assert!(outcomes.iter().all(Option::is_some), "{body}");
                }
            }
        }
    }
}

#[test]
fn freed_memory_and_other_devices() {
    let device = Device::new(&one_pointer("", "ld.global.u32 %r4, [%rd1];"));
    let buffer = device.upload(&[1_u32]);
    device.launch("k", 1, 1, 0, &[Arg::U64(buffer)]);
    device.memory.free(buffer).unwrap();
    let fault = device.try_launch("k", 1, 1, 0, &[Arg::U64(buffer)]).unwrap_err();
    assert!(matches!(fault.what, FaultKind::OutOfBounds { .. }), "{fault}");
    let other = Memory::new(1 << 20).allocate(16).unwrap();
    assert!(device.try_launch("k", 1, 1, 0, &[Arg::U64(other)]).is_err());
    let host = std::ptr::from_ref(&other) as u64;
    assert!(device.try_launch("k", 1, 1, 0, &[Arg::U64(host)]).is_err());
}

#[test]
fn misaligned() {
    let is_it = |what: &FaultKind| matches!(what, FaultKind::Misaligned { .. });
    faults("ld.global.u32 %r4, [%rd2+2];", is_it);
    faults("ld.global.v2.u32 {%r4, %r5}, [%rd2];", is_it);
    faults("st.shared.v4.u32 [%r2], {%r1, %r1, %r1, %r1};", is_it);
    faults("cp.async.ca.shared.global [%r2], [%rd2+2], 4;", is_it);
    passes("ld.global.u16 %rs1, [%rd2+2]; ld.global.v2.u32 {%r4, %r5}, [%rd1+8];");
}

#[test]
fn uninitialized() {
    let is_it = |what: &FaultKind| matches!(what, FaultKind::Uninitialized { .. });
    faults("ld.shared.u32 %r4, [%r2];", is_it);
    faults("st.shared.u16 [%r2], %rs1; ld.shared.u32 %r4, [%r2];", is_it);
    passes("st.shared.u32 [%r2], %r1; ld.shared.u16 %rs1, [%r2+2];");
    faults(
        ".local .b32 l[2]; mov.u64 %rd3, l; st.local.u32 [%rd3], %r1; ld.local.u32 %r4, [%rd3+4];",
        is_it,
    );
    let device = Device::new(&one_pointer("", "ld.global.u32 %r4, [%rd1];"));
    let buffer = device.alloc(4);
    let args = [Arg::U64(buffer)];
    let fault = device.try_launch("k", 1, 1, 0, &args).unwrap_err();
    assert!(is_it(&fault.what), "{fault}");
    // A copy carries along what is initialized, and what is not.
    let (full, half) = (device.upload(&[1_u32]), device.alloc(4));
    device.memory.copy(half, full, 2).unwrap();
    device.memory.copy(buffer, half, 4).unwrap();
    assert_eq!(device.memory.first_uninitialized(buffer, 4), Ok(Some(buffer + 2)));
    assert!(device.try_launch("k", 1, 1, 0, &args).is_err());
    device.memory.copy(buffer, full, 4).unwrap();
    device.launch("k", 1, 1, 0, &args);
}

#[test]
fn races_on_shared_memory() {
    let is_it = |what: &FaultKind| matches!(what, FaultKind::SharedRace { .. });
    let rest = "ld.shared.u32 %r4, [%r5]; st.global.u32 [%rd2], %r4;";
    let across = "xor.b32 %r5, %r2, 128;";
    faults(&format!("st.shared.u32 [%r2], %r1; {across} {rest}"), |what| {
        is_it(what) || matches!(what, FaultKind::Uninitialized { .. })
    });
    passes(&format!("st.shared.u32 [%r2], %r1; {across} bar.sync 0; {rest}"));
    // Written before the others have read.
    faults(
        &format!("st.shared.u32 [%r2], %r1; {across} bar.sync 0; {rest} st.shared.u32 [%r2], %r4;"),
        is_it,
    );
    passes(&format!(
        "st.shared.u32 [%r2], %r1; {across} bar.sync 0; {rest} bar.sync 0; st.shared.u32 [%r2], %r4;"
    ));
    // Inside a warp, a warp's barrier is enough, and none is too little.
    let near = "xor.b32 %r5, %r2, 4;";
    faults(&format!("st.shared.u32 [%r2], %r1; {near} {rest}"), |what| {
        is_it(what) || matches!(what, FaultKind::Uninitialized { .. })
    });
    passes(&format!("st.shared.u32 [%r2], %r1; {near} bar.warp.sync -1; {rest}"));
    // A barrier of one warp orders nothing for the other.
    faults(
        &format!(
            "st.shared.u32 [%r2], 1; bar.sync 0; st.shared.u32 [%r2], %r1; {across} bar.warp.sync -1; {rest}"
        ),
        is_it,
    );
    faults("st.shared.u32 [s], %r1;", is_it);
    // Atomics do not race with each other, and halves of a word are not the same byte.
    passes(
        "setp.eq.s32 %p1, %r1, 0; @%p1 st.shared.u32 [s], 0; bar.sync 0; atom.shared.add.u32 %r4, [s], 1;",
    );
    passes(
        "sub.s32 %r5, %r2, %r1; sub.s32 %r5, %r5, %r1; st.shared.u16 [%r5], %rs1; ld.shared.u16 %rs1, [%r5];",
    );
    for outcome in outcomes("st.shared.u32 [s], %r1;", |device| device.options.check_races = false)
    {
        assert_eq!(outcome, None);
    }
}

#[test]
fn divergent_barriers() {
    let is_it = |what: &FaultKind| matches!(what, FaultKind::DivergentBarrier { .. });
    faults("setp.lt.u32 %p1, %r1, 40; @%p1 bar.sync 0;", is_it);
    faults("setp.lt.u32 %p1, %r1, 32; @%p1 bra E; bar.sync 0; E:", is_it);
    faults("setp.eq.u32 %p1, %r1, 5; @%p1 exit; bar.sync 0;", is_it);
    faults("setp.lt.u32 %p1, %r1, 16; @%p1 bra L; bar.sync 0; bra E; L: bar.sync 0; E:", is_it);
    faults(
        "setp.lt.u32 %p1, %r1, 40; @!%p1 bar.warp.sync -1; @%p1 shfl.sync.idx.b32 %r4, %r1, 0, 31, -1;",
        is_it,
    );
    passes("setp.lt.u32 %p1, %r1, 32; @%p1 bra L; bar.sync 0; bra E; L: bar.sync 0; E:");
    passes("setp.lt.u32 %p1, %r1, 32; @%p1 bar.sync 1, 32;");
    passes("setp.eq.u32 %p1, %r1, 5; @%p1 exit; bar.warp.sync -1;");
}

#[test]
fn undefined_member_masks() {
    let is_it = |what: &FaultKind| matches!(what, FaultKind::Undefined { .. });
    faults("shfl.sync.idx.b32 %r4, %r1, 0, 31, 0xffff;", is_it);
    faults("bar.sync 16;", is_it);
}

#[test]
fn copies_that_nobody_waited_for() {
    let copy = "cp.async.ca.shared.global [%r2], [%rd2], 4; cp.async.commit_group;";
    let is_it = |what: &FaultKind| matches!(what, FaultKind::PendingAsyncCopy { .. });
    faults(&format!("{copy} ld.shared.u32 %r4, [%r2];"), is_it);
    faults(&format!("{copy} st.shared.u32 [%r2], 0;"), is_it);
    faults(&format!("{copy} cp.async.wait_group 1; bar.sync 0; ld.shared.u32 %r4, [%r2];"), is_it);
    faults(
        "cp.async.ca.shared.global [%r2], [%rd2], 4; cp.async.wait_group 0; ld.shared.u32 %r4, [%r2];",
        is_it,
    );
    passes(&format!("{copy} cp.async.wait_group 0; ld.shared.u32 %r4, [%r2];"));
    passes(
        "cp.async.ca.shared.global [%r2], [%rd2], 4; cp.async.wait_all; ld.shared.u32 %r4, [%r2];",
    );
    // Another thread's copy needs its wait and a barrier.
    let other = "xor.b32 %r5, %r2, 128; ld.shared.u32 %r4, [%r5];";
    faults(&format!("{copy} cp.async.wait_group 0; {other}"), |what| {
        is_it(what)
            || matches!(what, FaultKind::SharedRace { .. } | FaultKind::Uninitialized { .. })
    });
    faults(&format!("{copy} bar.sync 0; cp.async.wait_group 0; {other}"), |what| {
        is_it(what) || matches!(what, FaultKind::SharedRace { .. })
    });
    passes(&format!("{copy} cp.async.wait_group 0; bar.sync 0; {other}"));
}

#[test]
fn traps() {
    let is_it = |what: &FaultKind| matches!(what, FaultKind::Trap { .. });
    faults("setp.eq.u32 %p1, %r1, 9; @%p1 trap;", is_it);
    passes("setp.eq.u32 %p1, %r1, 99; @%p1 trap;");
    let text = one_pointer(
        ".extern .func (.param .b32 r) vprintf(.param .b64 a, .param .b64 b);",
        "{ .param .b64 a; .param .b64 b; .param .b32 r; call.uni (r), vprintf, (a, b); }",
    );
    let device = Device::new(&text);
    let fault = device.try_launch("k", 1, 1, 0, &[Arg::U64(0)]).unwrap_err();
    assert!(fault.to_string().contains("vprintf"), "{fault}");
}

#[test]
fn a_report_names_the_thread() {
    let text = one_pointer("", "setp.eq.u32 %p1, %r1, 7; @%p1 ld.global.u32 %r4, [%rd1+4];");
    let device = Device::new(&text);
    let buffer = device.upload(&[0_u32]);
    let fault = device.try_launch("k", 1, 32, 0, &[Arg::U64(buffer)]).unwrap_err();
    assert_eq!((fault.block, fault.thread), ([0; 3], [7, 0, 0]));
    let line = text.lines().position(|line| line.contains("ld.global.u32")).unwrap() + 1;
    assert_eq!(fault.line as usize, line);
    let expected = format!(
        "k: out of bounds: 4 bytes at {:#x} of global memory in block (0, 0, 0), thread (7, 0, 0), PTX line {line}: @%p1 ld.global.u32 %r4, [%rd1+4];",
        buffer + 4
    );
    assert_eq!(fault.to_string(), expected);
}

#[test]
fn bad_launches_and_bad_text() {
    let device = Device::new(&one_pointer("", ""));
    let bad = |grid, block, shared| {
        let fault = device.try_launch("k", grid, block, shared, &[Arg::U64(0)]).unwrap_err();
        assert!(matches!(fault.what, FaultKind::BadLaunch { .. }), "{fault}");
    };
    bad(0, 32, 0);
    bad(1, 1025, 0);
    bad(1, 32, 1 << 20);
    let unknown = Module::parse(&one_pointer("", "\nfrob.u32 %r1, %r2;")).unwrap_err();
    assert!(
        unknown.message.contains("frob.u32") && unknown.text == "frob.u32 %r1, %r2;",
        "{unknown}"
    );
    let text = one_pointer("", "\nadd.s32 %r1, %rd2, 1;");
    let line = text.lines().position(|line| line.contains("add.s32")).unwrap() + 1;
    assert_eq!(Module::parse(&text).unwrap_err().line as usize, line);
    for text in [
        "",
        ".version",
        ".entry",
        ".visible .entry k(",
        "nonsense",
        ".visible .entry k() { bra X; }",
        "/*",
    ] {
        // Whatever is wrong: an error or an empty module, never a panic.
        let _ = Module::parse(text);
    }
}

#[test]
fn large_devices_cost_nothing() {
    let devices: Vec<Memory> = (0..8).map(|_| Memory::new(80 << 30)).collect();
    for memory in &devices {
        let address = memory.allocate(70 << 30).unwrap();
        memory.write(address + (69 << 30), &[1]).unwrap();
        assert_eq!(memory.free_bytes(), 10 << 30);
    }
}

#[test]
fn memory_is_accounted() {
    let memory = Memory::new(1 << 20);
    let first = memory.allocate(1000).unwrap();
    let second = memory.allocate(1 << 19).unwrap();
    assert_eq!(first % 256, 0);
    assert_eq!(memory.free_bytes(), (1 << 20) - 1024 - (1 << 19));
    assert_eq!(memory.allocation(first + 999), Some((first, 1000)));
    assert_eq!(memory.allocation(first + 1000), None);
    assert!(matches!(memory.allocate(1 << 19), Err(MemoryError::OutOfMemory { .. })));
    assert!(matches!(memory.write(first + 999, &[0, 0]), Err(MemoryError::OutOfBounds { .. })));
    assert!(memory.free(first + 1).is_err());
    memory.free(first).unwrap();
    assert!(memory.free(first).is_err());
    memory.fill(second, 10, &[1, 2, 3, 4]).unwrap();
    let mut bytes = [0; 10];
    memory.read(second, &mut bytes).unwrap();
    assert_eq!(bytes, [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]);
    memory.free(second).unwrap();
    assert_eq!(memory.free_bytes(), memory.capacity());
}
