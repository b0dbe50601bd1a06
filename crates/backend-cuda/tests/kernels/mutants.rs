//! Kernels with one thing wrong each: every one must be caught, by a check of the simulated device or
//! by a wrong result. None survives.

use oarlock_backend::WeightKind;
use oarlock_backend_cuda::kernels::launch::WorkType;
use oarlock_simgpu::Module;

use crate::attention::{BASE, Case, Chunk, SPLIT, WHOLE, step};
use crate::device::{Device, has_kernels, ptx_of};
use crate::experts::{Experts, Way, run as run_experts};
use crate::linear::{Layer, random_values, run};
use crate::routing::{Sums, plan, random_choices, route};

/// Schedules that a mutant has to survive.
const SEEDS: u64 = 3;

/// One change to a PTX text.
struct Mutant {
    what: String,
    ptx: String,
}

/// `text` with its `line`-th line replaced.
fn with_line(text: &str, line: usize, replaced: &str) -> String {
    let lines = text.lines().enumerate();
    lines.flat_map(|(i, old)| [if i == line { replaced } else { old }, "\n"]).collect()
}

/// Every barrier and every wait deleted in turn; some operands of products swapped, some addresses and
/// shifts off.
fn mutants(ptx: &str) -> Vec<Mutant> {
    let mut found = Vec::new();
    let mut add = |line: usize, old: &str, new: &str| {
        let what = format!("line {}: `{}` became `{new}`", line + 1, old.trim());
        found.push(Mutant { what, ptx: with_line(ptx, line, new) });
    };
    // Of what there is much, a few.
    let (mut products, mut matrices, mut copies) = (0, 0, 0);
    for (line, text) in ptx.lines().enumerate() {
        let is_barrier = text.contains("bar.sync") || text.contains("bar.warp.sync");
        if is_barrier || text.contains("cp.async.wait_group") {
            add(line, text, "");
        } else if text.contains("mma.sync") {
            products += 1;
            if products % 13 == 1 {
                add(line, text, &swap_operands(text));
            }
        } else if text.contains("ldmatrix") || text.contains("ld.shared.v4.u32") {
            matrices += 1;
            if matrices % 11 == 1
                && let Some((before, after)) = text.rsplit_once(']')
            {
                add(line, text, &format!("{}]{after}", shifted(before)));
            }
        } else if text.contains("cp.async.cg") {
            copies += 1;
            if copies % 5 == 1
                && let Some((before, after)) = text.split_once("], [")
            {
                add(line, text, &format!("{}], [{after}", shifted(before)));
            }
        }
    }
    found
}

/// Of entries without products: every barrier deleted, every exchange between lanes with the lane itself,
/// every sum a difference, every float product without its sum, every store 4 bytes on, counts of bits without counting.
fn mutants_of_lanes(ptx: &str) -> Vec<Mutant> {
    let mut found = Vec::new();
    for (line, text) in ptx.lines().enumerate() {
        let mut add = |new: &str| {
            let what = format!("line {}: `{}` became `{}`", line + 1, text.trim(), new.trim());
            found.push(Mutant { what, ptx: with_line(ptx, line, new) });
        };
        if text.contains("bar.sync") || text.contains("bar.warp.sync") {
            add("");
        } else if text.contains("shfl.sync") {
            // The third operand from the end says who the partner is: now the lane itself.
            let mut operands: Vec<&str> = text.split(", ").collect();
            let partner = operands.len() - 3;
            operands[partner] = "0";
            add(&operands.join(", "));
        } else if text.contains("add.rn.f32") {
            add(&text.replace("add.rn", "sub.rn"));
        } else if text.contains("fma.rn.f32")
            && let Some((before, _)) = text.rsplit_once(", ")
        {
            add(&format!("{};", before.replace("fma.rn", "mul.rn")));
        } else if text.contains("popc.b32") || text.contains("clz.b32") {
            add(&text.replace("popc.b32", "mov.u32").replace("clz.b32", "mov.u32"));
        } else if text.contains("st.global")
            && let Some((before, after)) = text.split_once(']')
        {
            add(&format!("{}]{after}", moved(before, 4)));
        }
    }
    found
}

/// An address, 16 bytes on.
fn shifted(address: &str) -> String {
    moved(address, 16)
}

/// An address, some bytes on.
fn moved(address: &str, bytes: u32) -> String {
    let with_offset = address.rsplit_once('+');
    match with_offset.and_then(|(base, offset)| Some((base, offset.parse::<u32>().ok()?))) {
        Some((base, offset)) => format!("{base}+{}", offset + bytes),
        None => format!("{address}+{bytes}"),
    }
}

/// The first two registers of the A operand in each other's place.
fn swap_operands(text: &str) -> String {
    let groups: Vec<&str> = text.split('{').collect();
    let a: Vec<&str> = groups[2].splitn(3, ", ").collect();
    let swapped = format!("{}, {}, {}", a[1], a[0], a[2]);
    groups[..2]
        .iter()
        .chain([&swapped.as_str()])
        .chain(&groups[3..])
        .copied()
        .collect::<Vec<_>>()
        .join("{")
}

/// Runs all mutants of an entry; those that nothing caught.
fn survivors(
    entry: &str,
    mutants: fn(&str) -> Vec<Mutant>,
    work: &dyn Fn(&mut Device) -> Vec<f32>,
) -> Vec<String> {
    let want = work(&mut Device::new(0));
    let ptx = ptx_of(entry);
    let is_caught = |mutant: &Module| {
        (0..SEEDS).any(|seed| {
            let mut device = Device::new(seed);
            device.mutant = Some(mutant.clone());
            device.options.max_block_instructions = 1 << 22;
            let got = work(&mut device);
            let is_same = got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits());
            device.fault.is_some() || !is_same
        })
    };
    let all = mutants(&ptx);
    eprintln!("{entry}: {} mutants", all.len());
    assert!(all.len() > 4, "mutants of {entry}");
    let alive = |mutant: &Mutant| {
        let module = Module::parse(&mutant.ptx).expect("valid PTX");
        (!is_caught(&module)).then(|| format!("{entry}, {}", mutant.what))
    };
    all.iter().filter_map(alive).collect()
}

#[test]
fn mutants_of_linear_layers_are_caught() {
    if !has_kernels() {
        return;
    }
    let mut alive = Vec::new();
    for (kind, name) in [
        (WeightKind::Bf16, "linear_bf16"),
        (WeightKind::Q8_0, "linear_q8_0_bf16"),
        (WeightKind::Q4K, "linear_q4_k_bf16"),
    ] {
        // More steps than stages, two segments, an odd number of steps in each.
        let layer = Layer::new(kind, 70, 2304, 2);
        let packed = layer.packed(WorkType::Bf16);
        for (rows, suffix) in [(8, "n8"), (32, "n32"), (65, "n64")] {
            let input = random_values(rows * 2304, 3);
            let work = |device: &mut Device| {
                run(device, &packed, WorkType::Bf16, &input, None, rows as u32)
            };
            alive.extend(survivors(&format!("{name}_{suffix}"), mutants, &work));
        }
    }
    assert!(alive.is_empty(), "survivors: {alive:#?}");
}

#[test]
fn mutants_of_experts_are_caught() {
    if !has_kernels() {
        return;
    }
    let mut alive = Vec::new();
    for (kind, name) in [
        (WeightKind::Bf16, "experts_bf16"),
        (WeightKind::Q8_0, "experts_q8_0_bf16"),
        (WeightKind::Q4K, "experts_q4_k_bf16"),
    ] {
        // More steps than stages.
        let packed = Experts::new(kind, 3, (70, 1280, 2)).packed(WorkType::Bf16);
        for (rows, tile_rows) in [(11, 8), (33, 32), (67, 64)] {
            // Rows that are not the first ones, and a whole tile of one expert.
            let experts: Vec<u32> = (0..rows).map(|row| if row < 3 { 2 } else { 0 }).collect();
            let input = random_values(rows * 1280, 3);
            let work = |device: &mut Device| {
                let way = Way { tile_rows, at_once: 2, by_rows: true };
                run_experts(device, &packed, WorkType::Bf16, &input, (&experts, 1), way)
            };
            alive.extend(survivors(&format!("{name}_n{tile_rows}"), mutants, &work));
        }
    }
    assert!(alive.is_empty(), "survivors: {alive:#?}");
}

#[test]
fn mutants_of_routing_are_caught() {
    if !has_kernels() {
        return;
    }
    // Ties, experts in more than one of a lane's places, and a row without a choice.
    let mut logits: Vec<f32> =
        random_values(9 * 2 * 70, 4).iter().map(|value| (value * 16.0).round()).collect();
    logits[1000] = f32::NAN;
    let mut alive = survivors("route_f32", mutants_of_lanes, &|device| {
        let mut out = Vec::new();
        for normalize in [true, false] {
            let (experts, weights) = route(device, &logits, (9, 2, 70), (6, normalize));
            out.extend(experts.iter().map(|expert| *expert as f32).chain(weights));
        }
        out
    });
    let choices = random_choices(300, (12, 3), 5);
    alive.extend(survivors("expert_plan", mutants_of_lanes, &|device| {
        let plan = plan(device, &choices, (12, 3), 8);
        let tiles = plan.num_tiles * 4;
        let (rows, places) = ((plan.params.rows, 900), (plan.params.places, 900));
        [rows, places, (plan.params.tiles, tiles), (plan.params.counts, 2)]
            .into_iter()
            .flat_map(|(address, count)| device.read::<u32>(address, count))
            .map(|word| word as f32)
            .collect()
    }));
    let sums = [Sums::random(3, 260, 17, 8), Sums::random(3, 70, 9, 4), Sums::random(2, 33, 2, 8)];
    alive.extend(survivors("expert_combine_f32", mutants_of_lanes, &|device| {
        let ranges = [1, 2, 8];
        sums.iter().zip(ranges).flat_map(|(sums, ranges)| sums.combine(device, ranges)).collect()
    }));
    assert!(alive.is_empty(), "survivors: {alive:#?}");
}

#[test]
fn mutants_of_attention_are_caught() {
    if !has_kernels() {
        return;
    }
    let mut alive = Vec::new();
    for (width, name) in [(64, "d64"), (128, "d128"), (256, "d256")] {
        for (rows, suffix) in [(5, "w1"), (19, "w4")] {
            // Heads as wide as the kernel's, and narrower ones, which it loads in another way.
            let cases = [width, width - 16].map(|width| {
                let case = Case { width, kv_heads: 1, group: 3, len: 574, ..BASE };
                let input = case.input(WorkType::Bf16, 5);
                // A value that only the last two rows see takes another way through the kernel.
                let mut spoiled = input.clone();
                spoiled.values[572 * width + 5] = f32::NAN;
                (case, [input, spoiled])
            });
            let work = |device: &mut Device| {
                let mut out = Vec::new();
                for (case, [input, spoiled]) in &cases {
                    for (input, budget) in [(input, WHOLE), (input, SPLIT), (spoiled, WHOLE)] {
                        let chunk = Chunk { input, start: 574 - rows, rows, first_block: 0 };
                        out.extend(step(device, case, WorkType::Bf16, &[chunk], budget).remove(0));
                    }
                }
                out
            };
            alive.extend(survivors(&format!("attention_bf16_{name}_{suffix}"), mutants, &work));
        }
    }
    assert!(alive.is_empty(), "survivors: {alive:#?}");
}
