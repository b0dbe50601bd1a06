//! Prints the table of the kernels' registers, shared memory, spills and occupancy, from what ptxas
//! said when they were built. `cargo xtask kernels` puts it into `kernels/README.md`.

#![expect(clippy::print_stdout, reason = "this is what it is for")]

use std::fs;
use std::path::Path;

use oarlock_backend_cuda::kernels::launch::{self, Launch, LinearFormat, WorkType};
use oarlock_backend_cuda::kernels::{HAS_KERNELS, MODULES};

/// Limits of one multiprocessor.
struct Device {
    arch: u32,
    shared_bytes: u32,
    /// Taken by the driver, of each block.
    reserved_bytes: u32,
}

const DEVICES: [Device; 2] = [
    Device { arch: 80, shared_bytes: 164 << 10, reserved_bytes: 1 << 10 },
    Device { arch: 90, shared_bytes: 228 << 10, reserved_bytes: 1 << 10 },
];
const REGISTERS: u32 = 65_536;
const WARPS: u32 = 64;
const BLOCKS: u32 = 32;

/// What ptxas says of one entry.
#[derive(Clone, Copy, Default)]
struct Resources {
    registers: u32,
    shared_bytes: u32,
    spill_bytes: u32,
    stack_bytes: u32,
}

fn main() {
    if !HAS_KERNELS {
        println!("no kernels: run `cargo xtask cuda-toolkit` first");
        return;
    }
    println!(
        "| entry | threads | registers | static, dynamic shared bytes | spills, stack | blocks, warps per multiprocessor |"
    );
    println!("|---|---|---|---|---|---|");
    let launches = launches();
    for module in MODULES {
        for entry in module.entries {
            let launch = launches.iter().find(|launch| launch.entry == *entry);
            let Some(launch) = launch else {
                println!("| `{entry}` | no launch | | | | |");
                continue;
            };
            let found = DEVICES.map(|device| resources(module.name, device.arch, entry));
            let both = |text: [String; 2]| {
                if text[0] == text[1] { text[0].clone() } else { text.join(" / ") }
            };
            let [a, b] = found;
            let occupancy = [0, 1].map(|i| occupancy(&DEVICES[i], found[i], launch));
            println!(
                "| `{entry}` | {} | {} | {}, {} | {} | {} |",
                launch.threads,
                both([a.registers.to_string(), b.registers.to_string()]),
                both([a.shared_bytes.to_string(), b.shared_bytes.to_string()]),
                launch.shared_bytes,
                both([a, b].map(|r| format!("{}, {}", r.spill_bytes, r.stack_bytes))),
                both(occupancy.map(|(blocks, warps)| format!("{blocks}, {warps}"))),
            );
        }
    }
}

/// One launch of every entry, at common sizes.
fn launches() -> Vec<Launch> {
    let mut all = vec![
        launch::rms_norm(1, 4096),
        launch::soft_cap(1, 4096),
        launch::add_bias(1, 4096),
        launch::route(1),
        launch::expert_plan(1, 128),
        launch::experts(LinearFormat::F32, 32, 1, 4096),
        launch::expert_combine(1, 4096, 8),
        launch::copy_blocks(1, 1),
        launch::logit_stats(1, 1 << 17),
        launch::sample(1),
        launch::linear(LinearFormat::F32, 1, 4096, 1),
    ];
    for work in [WorkType::Bf16, WorkType::F32] {
        all.extend([
            launch::embed(work, 1),
            launch::add_rms_norm(work, 1, 4096),
            launch::head_rms_norm(work, 1, 32, 8),
            launch::gather(work, 1),
            launch::rotary_kv_write(work, 1),
            launch::gated_activation(work, 1, 4096),
            launch::attention_join(work, 1, 8),
        ]);
        all.extend([64, 128, 256].map(|width| launch::attention_narrow(work, 1, 8, width)));
    }
    all.extend([64, 128, 256].map(|width| launch::attention_wide(1, 8, width)));
    for format in [LinearFormat::Bf16, LinearFormat::Q8_0, LinearFormat::Q4K] {
        all.extend([8, 32, 128].map(|rows| launch::linear(format, rows, 4096, 1)));
        all.extend([8, 32, 64].map(|rows| launch::experts(format, rows, 1, 4096)));
    }
    all
}

/// Reads ptxas's report, which names an entry and then describes it.
fn resources(module: &str, arch: u32, entry: &str) -> Resources {
    let path = Path::new(env!("OUT_DIR")).join(format!("{module}.sm_{arch}.ptxas.txt"));
    let report = fs::read_to_string(path).unwrap_or_default();
    let mut found = Resources::default();
    let mut is_here = false;
    for line in report.lines() {
        if let Some((_, name)) = line.split_once("Function properties for ") {
            is_here = name.trim() == entry;
        } else if is_here {
            let number = |unit: &str| number_before(line, unit);
            found.registers += number(" registers").unwrap_or(0);
            found.shared_bytes += number(" bytes smem").unwrap_or(0);
            found.stack_bytes += number(" bytes stack frame").unwrap_or(0);
            found.spill_bytes += number(" bytes spill stores").unwrap_or(0);
        }
    }
    found
}

fn number_before(line: &str, unit: &str) -> Option<u32> {
    let (before, _) = line.split_once(unit)?;
    before.rsplit([' ', ',']).next()?.parse().ok()
}

/// Blocks and warps that are on one multiprocessor at once.
fn occupancy(device: &Device, resources: Resources, launch: &Launch) -> (u32, u32) {
    let warps = launch.threads.div_ceil(32);
    // Registers are given to a warp in units of 256.
    let per_warp = (resources.registers * 32).next_multiple_of(256).max(256);
    let shared = resources.shared_bytes + launch.shared_bytes + device.reserved_bytes;
    let blocks = (WARPS / warps)
        .min(BLOCKS)
        .min(REGISTERS / per_warp / warps)
        .min(device.shared_bytes / shared);
    (blocks, blocks * warps)
}
