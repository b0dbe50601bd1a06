//! What the kernels ask of memory at common shapes: bytes, sectors, bank conflicts.

use oarlock_backend_cuda::kernels::launch::{self, Launch, LinearFormat, WorkType};
use oarlock_backend_cuda::kernels::{
    AddRmsNormParams, AttentionJoinParams, AttentionParams, AttentionPlan, ExpertCombineParams,
    ExpertLinearParams, GatedActivationParams, LinearParams, PlanBudget, PlanChunk, PlanShape,
    RotaryKvWriteParams,
};
use oarlock_simgpu::{Counters, Options};

use crate::device::{Device, has_kernels};
use crate::routing::plan;

/// A device that counts; checks and schedules are other tests' business.
fn counting() -> Device {
    let mut device = Device::new(1);
    device.options = Options {
        hostile_schedule: false,
        late_stores: false,
        check_races: false,
        count_memory: true,
        ..device.options
    };
    device
}

/// Sectors that were used, bank conflicts of lines that run often, DRAM bytes against `needed`.
fn check(what: &str, counters: &Counters, needed: u64, most: f64) {
    let reads = counters.global_reads.efficiency();
    let writes = counters.global_writes.efficiency();
    let dram = (counters.dram_read_bytes + counters.dram_write_bytes) as f64 / needed as f64;
    eprintln!(
        "{what}: DRAM {dram:.3} of what is needed, sectors used {reads:.3} / {writes:.3}, {} warp \
         instructions: {} integer, {} float, {} tensor, {} shared, {} control",
        counters.warp_instructions,
        counters.integer,
        counters.float,
        counters.tensor,
        counters.shared,
        counters.control,
    );
    let often = counters.lines.values().map(|line| line.warps).max().unwrap_or(0) / 8;
    for (number, line) in &counters.lines {
        if line.banks.max_degree > 1 {
            eprintln!("  PTX line {number}: {:?} {}", line.banks, line.instruction);
        }
        assert!(
            line.banks.max_degree <= 2 || line.warps < often,
            "{what}: bank conflicts of {} at line {number}: {}",
            line.banks.max_degree,
            line.instruction
        );
        if line.global.efficiency() < 0.95 {
            eprintln!("  PTX line {number}: {:?} {}", line.global, line.instruction);
        }
    }
    assert!(dram <= most, "{what}: {dram} times the bytes that are needed");
    let all = counters.global_reads.sectors + counters.global_writes.sectors;
    let used = (counters.global_reads.bytes + counters.global_writes.bytes) as f64;
    let share = used / (all * 32) as f64;
    assert!(share >= 0.95, "{what}: {share} of the sectors' bytes are used");
}

#[test]
fn linear_layers_read_their_weights_once() {
    if !has_kernels() {
        return;
    }
    let (outputs, columns) = (4096_usize, 4096_usize);
    let values = outputs * columns;
    for (format, planes) in [
        (LinearFormat::Bf16, [values * 2, 0, 0]),
        (LinearFormat::Q8_0, [values, values / 16, 0]),
        (LinearFormat::Q4K, [values / 2, values / 64, values / 64 * 3]),
    ] {
        for rows in [1_u32, 8] {
            let mut device = counting();
            // Numbers do not matter here, but they are there.
            let plane = |bytes: usize| {
                if bytes == 0 { 0 } else { device.upload(&vec![0_u8; bytes]) }
            };
            let params = LinearParams {
                out: device.allocate(rows as usize * outputs * 2),
                input: device.upload(&vec![0_u16; rows as usize * columns]),
                weight: plane(planes[0]),
                scales: plane(planes[1]),
                sub_scales: plane(planes[2]),
                num_rows: device.upload(&[rows]),
                outputs: outputs as u32,
                columns: columns as u32,
                segments: 1,
                ..LinearParams::default()
            };
            let counters = device.run(&launch::linear(format, rows, outputs as u32, 1), &params);
            let needed = planes.iter().sum::<usize>() as u64;
            check(&format!("{format:?}, {rows} rows"), &counters, needed, 1.05);
        }
    }
}

/// One token through 8 of 16 experts: theirs are the only weights that are read.
/// Segments of the down projection have 96 columns, a step and a half: scales of half a step are padding.
#[test]
fn decode_reads_the_chosen_experts_once() {
    if !has_kernels() {
        return;
    }
    let (hidden, feed_forward, num_experts, top_k) = (2048_usize, 768_usize, 16_usize, 8_usize);
    for format in [LinearFormat::Bf16, LinearFormat::Q8_0, LinearFormat::Q4K] {
        let mut device = counting();
        let chosen: Vec<u32> = (0..top_k as u32).map(|choice| 2 * choice).collect();
        let plan = plan(&mut device, &chosen, (num_experts, top_k), 8);
        let mut counters = Counters::default();
        let mut needed = 0;
        // Gate and up in the working type, then down in eight segments.
        let sums = device.allocate(8 * top_k * hidden * 4);
        for (outputs, columns, segments, out) in
            [(2 * feed_forward, hidden, 1, 0), (hidden, feed_forward, 8, sums)]
        {
            let (values, width) = (outputs * columns, columns / segments as usize);
            let steps = outputs * columns / width * width.div_ceil(64);
            // Weights or quants; scales; sub-scales. As stored, and without what is padding.
            let [planes, stored] = [steps * 64, values].map(|padded| match format {
                LinearFormat::Q8_0 => [values, padded / 16, 0],
                LinearFormat::Q4K => [values / 2, values / 64, padded / 64 * 3],
                _ => [values * 2, 0, 0],
            });
            let plane = |bytes: usize| {
                if bytes == 0 { 0 } else { device.upload(&vec![0_u8; bytes * num_experts]) }
            };
            let is_down = segments > 1;
            let out = if is_down { out } else { device.allocate(top_k * outputs * 2) };
            let params = ExpertLinearParams {
                linear: LinearParams {
                    out,
                    input: device.upload(&vec![0_u16; top_k * columns]),
                    weight: plane(planes[0]),
                    scales: plane(planes[1]),
                    sub_scales: plane(planes[2]),
                    outputs: outputs as u32,
                    columns: columns as u32,
                    segments,
                    out_is_float: is_down.into(),
                    ..LinearParams::default()
                },
                rows: if is_down { 0 } else { plan.params.rows },
                tiles: plan.params.tiles,
                num_tiles: plan.params.counts + 4,
                weight_bytes: planes[0] as u64,
                scale_bytes: planes[1] as u64,
                sub_scale_bytes: planes[2] as u64,
                segment_values: (top_k * outputs) as u64,
                first_segment: 0,
                end_segment: segments,
            };
            let tiles = plan.num_tiles as u32;
            let launch = launch::experts(format, 8, tiles, outputs as u32);
            counters.add(&device.run(&launch, &params));
            needed += stored.iter().sum::<usize>() * top_k;
        }
        let combine = ExpertCombineParams {
            out: device.allocate(hidden * 4),
            sums,
            places: plan.params.places,
            weights: device.upload(&vec![0.125_f32; top_k]),
            num_rows: plan.params.num_rows,
            segment_values: (top_k * hidden) as u64,
            hidden: hidden as u32,
            top_k: top_k as u32,
            ranges: 1,
            ..ExpertCombineParams::default()
        };
        counters.add(&device.run(&launch::expert_combine(1, hidden as u32, 8), &combine));
        // Sums of experts and segments go through memory, too.
        check(&format!("{format:?}, 8 of 16 experts"), &counters, needed as u64, 1.07);
    }
}

#[test]
fn decode_attention_reads_the_cache_once() {
    if !has_kernels() {
        return;
    }
    let (kv_heads, width, tokens) = (8_u32, 128_u32, 4096_u32);
    for group in [1, 4] {
        let mut device = counting();
        let shape = PlanShape { group, num_kv_heads: kv_heads, window: None, has_wide: true };
        let mut plan = AttentionPlan::default();
        let chunk = PlanChunk { first_row: 0, rows: 1, start: tokens - 1, first_table_entry: 0 };
        plan.plan(&[chunk], &shape, PlanBudget { wanted_blocks: 264, max_slots: 64 });
        let heads = group * kv_heads;
        let cache_values = (tokens * kv_heads * 2 * width) as usize;
        let tables: Vec<u32> = (0..tokens / 16).map(|i| i * 37 % (tokens / 16)).collect();
        let params = AttentionParams {
            out: device.allocate((heads * width * 2) as usize),
            qkv: device.upload(&vec![0_u16; ((heads + 2 * kv_heads) * width) as usize]),
            cache: device.upload(&vec![0_u16; cache_values]),
            workspace: device.allocate((plan.num_slots * kv_heads * 16 * (width + 2) * 4) as usize),
            tables: device.upload(&tables),
            items: device.upload(&plan.narrow),
            num_items: device.upload(&[plan.narrow.len() as u32]),
            num_heads: heads,
            num_kv_heads: kv_heads,
            head_dim: width,
            scale: 0.1,
            ..AttentionParams::default()
        };
        let items = plan.narrow.len() as u32;
        let mut counters =
            device.run(&launch::attention_narrow(WorkType::Bf16, items, kv_heads, width), &params);
        let joins = AttentionJoinParams {
            out: params.out,
            workspace: params.workspace,
            joins: device.upload(&plan.joins),
            num_joins: device.upload(&[plan.joins.len() as u32]),
            num_heads: heads,
            num_kv_heads: kv_heads,
            head_dim: width,
            window: 0,
        };
        let launch = launch::attention_join(WorkType::Bf16, plan.joins.len() as u32, kv_heads);
        counters.add(&device.run(&launch, &joins));
        let needed = cache_values as u64 * 2;
        check(&format!("attention, groups of {group}"), &counters, needed, 1.05);
    }
}

#[test]
fn row_wise_operations_touch_inputs_and_outputs_once() {
    if !has_kernels() {
        return;
    }
    let (rows, width) = (64_u32, 4096_u32);
    let all = (rows * width) as usize;
    let mut device = counting();
    let num_rows = device.upload(&[rows]);
    let norm = AddRmsNormParams {
        out: device.allocate(all * 2),
        residual: device.upload(&vec![1.0_f32; all]),
        delta: device.upload(&vec![1.0_f32; all]),
        weight: device.upload(&vec![1.0_f32; width as usize]),
        num_rows,
        width,
        eps: 1e-5,
    };
    let counters = device.run(&launch::add_rms_norm(WorkType::Bf16, rows, width), &norm);
    check("norm", &counters, all as u64 * (4 + 4 + 4 + 2), 1.1);

    let gated = GatedActivationParams {
        out: norm.out,
        gate_up: device.upload(&vec![0_u16; 2 * all]),
        num_rows,
        width,
        activation: 0,
    };
    let counters = device.run(&launch::gated_activation(WorkType::Bf16, rows, width), &gated);
    check("activation", &counters, all as u64 * 6, 1.1);

    let (heads, kv_heads, head_dim) = (32_u32, 8_u32, 128_u32);
    let row = (heads + 2 * kv_heads) * head_dim;
    let positions: Vec<u32> = (0..rows).collect();
    let tables: Vec<u32> = (0..rows / 16).collect();
    let cache_values = (rows * kv_heads * 2 * head_dim) as usize;
    let rotary = RotaryKvWriteParams {
        qkv: device.upload(&vec![0_u16; (rows * row) as usize]),
        cache: device.allocate(cache_values * 2),
        cosines: device.upload(&vec![1.0_f32; (rows * head_dim / 2) as usize]),
        sines: device.upload(&vec![0.0_f32; (rows * head_dim / 2) as usize]),
        positions: device.upload(&positions),
        first_table_entry: device.upload(&vec![0_u32; rows as usize]),
        tables: device.upload(&tables),
        num_rows,
        num_heads: heads,
        num_kv_heads: kv_heads,
        head_dim,
        half: head_dim / 2,
        ..RotaryKvWriteParams::default()
    };
    let counters = device.run(&launch::rotary_kv_write(WorkType::Bf16, rows), &rotary);
    let rotated = (heads + kv_heads) * head_dim * rows;
    let values = kv_heads * head_dim * rows;
    let angles = rows * head_dim * 4;
    let needed = u64::from(rotated * 4 + values * 2 + angles) + cache_values as u64 * 2;
    check("rotary", &counters, needed, 1.1);
}

/// The launch stays what the tables say.
#[test]
fn launches_are_within_the_limits_of_a_device() {
    let all = |launch: Launch| {
        assert!(launch.threads <= 1024 && launch.shared_bytes <= 163 << 10, "{launch:?}");
    };
    for rows in [1, 9, 100] {
        for format in [LinearFormat::Bf16, LinearFormat::Q8_0, LinearFormat::Q4K] {
            for segments in [1, 8] {
                all(launch::linear(format, rows, 4096, segments));
                all(launch::expert_combine(rows, 4096, segments));
            }
        }
    }
    for tile_rows in [8, 32, 64] {
        for format in [LinearFormat::Bf16, LinearFormat::Q8_0, LinearFormat::Q4K] {
            all(launch::experts(format, tile_rows, 100, 4096));
        }
    }
    for width in [16, 64, 128, 256] {
        all(launch::attention_narrow(WorkType::Bf16, 1, 1, width));
        all(launch::attention_wide(1, 1, width));
    }
}
