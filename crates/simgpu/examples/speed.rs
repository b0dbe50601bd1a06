//! Measures the interpreter: `cargo run --release -p oarlock-simgpu --example speed [NAME]`.
#![expect(clippy::print_stdout, reason = "a program that reports")]

use std::fmt::Write as _;
use std::time::Instant;

use oarlock_simgpu::{LaunchConfig, Memory, Module, Options, launch};

/// A kernel with a loop of 1,000 rounds around a body.
fn kernel(body: &str) -> String {
    format!(
        ".version 8.8\n.target sm_90\n.address_size 64\n
        .visible .entry k(.param .u64 p) {{
        .reg .pred %p<4>; .reg .b32 %r<64>; .reg .f32 %f<64>; .reg .b64 %rd<16>;
        .shared .align 16 .b8 s[16384];
        ld.param.u64 %rd1, [p];
        mov.u32 %r1, %tid.x; mov.u32 %r3, %ctaid.x; mad.lo.s32 %r4, %r3, 128, %r1;
        mul.wide.u32 %rd2, %r4, 4; add.s64 %rd1, %rd1, %rd2;
        mov.u32 %r5, s; shl.b32 %r6, %r1, 4; add.s32 %r5, %r5, %r6;
        mov.u32 %r10, 0; mov.u32 %r11, 0; mov.u32 %r12, 0; mov.u32 %r13, 0;
        mov.f32 %f1, 0f3F800000; mov.f32 %f2, 0f3F000000;
        mov.f32 %f10, 0f00000000; mov.f32 %f11, %f10; mov.f32 %f12, %f10; mov.f32 %f13, %f10;
        st.shared.v4.u32 [%r5], {{%r10, %r11, %r12, %r13}};
        bar.sync 0;
        mov.u32 %r2, 0;
        L: {body}
        add.s32 %r2, %r2, 1; setp.lt.s32 %p1, %r2, 1000; @%p1 bra L;
        st.global.f32 [%rd1], %f10;
        ret; }}"
    )
}

fn measure(name: &str, body: &str, options: &Options) {
    let memory = Memory::new(1 << 24);
    let module = Module::parse(&kernel(body)).expect("the kernel parses");
    let loaded = module.load(&memory).expect("the module loads");
    let buffer = memory.allocate(1 << 20).expect("memory");
    memory.fill(buffer, 1 << 20, &[0]).expect("filled");
    let config = LaunchConfig {
        grid: [32, 1, 1],
        block: [128, 1, 1],
        dynamic_shared_bytes: 0,
        params: &buffer.to_le_bytes(),
    };
    let start = Instant::now();
    let counters = launch(&loaded, "k", &config, &memory, options).expect("no fault");
    let seconds = start.elapsed().as_secs_f64();
    let warps = counters.warp_instructions as f64;
    println!(
        "{name:14} {:6.1} ns per warp instruction, {:7.0} M thread instructions/s",
        seconds * 1e9 / warps,
        counters.thread_instructions as f64 / seconds / 1e6
    );
}

/// Time of a launch of a few blocks that do next to nothing.
fn launch_cost() {
    let memory = Memory::new(1 << 24);
    let module = Module::parse(&kernel("exit;")).expect("the kernel parses");
    let loaded = module.load(&memory).expect("the module loads");
    let params = memory.allocate(1 << 20).expect("memory").to_le_bytes();
    for threads in [1, 2] {
        let options = Options { threads, ..Options::default() };
        let config = LaunchConfig {
            grid: [8, 1, 1],
            block: [128, 1, 1],
            dynamic_shared_bytes: 0,
            params: &params,
        };
        let start = Instant::now();
        for _ in 0..1000 {
            launch(&loaded, "k", &config, &memory, &options).expect("no fault");
        }
        let micros = start.elapsed().as_secs_f64() * 1e3;
        println!("a launch of 8 short blocks on {threads} threads: {micros:.0} us");
    }
}

fn main() {
    launch_cost();
    let mut fma = String::new();
    let mut int = String::new();
    for i in 0..16 {
        let register = 10 + i % 4;
        let _ = write!(fma, "fma.rn.f32 %f{register}, %f1, %f2, %f{register};");
        let _ = write!(int, "mad.lo.s32 %r{register}, %r1, %r2, %r{register};");
    }
    let mma = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f10,%f11,%f12,%f13}, {%r10,%r11,%r12,%r13}, {%r10,%r11}, {%f10,%f11,%f12,%f13};".repeat(4);
    let bodies = [
        ("fma", fma),
        ("integer", int),
        ("global load", "ld.global.f32 %f20, [%rd1];".repeat(8)),
        ("global store", "st.global.f32 [%rd1], %f1;".repeat(8)),
        ("shared load", "ld.shared.u32 %r20, [%r5];".repeat(8)),
        ("shared load x4", "ld.shared.v4.u32 {%r20, %r21, %r22, %r23}, [%r5];".repeat(8)),
        ("shared store", "st.shared.u32 [%r5], %r20;".repeat(8)),
        (
            "ldmatrix",
            "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r20, %r21, %r22, %r23}, [%r5];".repeat(8),
        ),
        ("mma", mma),
        ("shuffle", "shfl.sync.bfly.b32 %r20, %r1, 1, 31, -1;".repeat(8)),
        ("cvt bf16x2", "cvt.rn.bf16x2.f32 %r20, %f1, %f2;".repeat(8)),
        ("ex2", "ex2.approx.ftz.f32 %f20, %f2;".repeat(8)),
    ];
    let all = Options { threads: 1, ..Options::default() };
    let none =
        Options { check_races: false, late_stores: false, hostile_schedule: false, ..all.clone() };
    for (title, options) in [("all checks", all), ("no races, late stores, hostile schedule", none)]
    {
        println!("{title}:");
        let only = std::env::args().nth(1);
        for (name, body) in
            bodies.iter().filter(|body| only.as_ref().is_none_or(|only| body.0 == only))
        {
            measure(name, body, &options);
        }
    }
}
