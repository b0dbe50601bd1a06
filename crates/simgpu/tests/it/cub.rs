//! CUB's algorithms: written by others, proved on hardware.

use crate::harness::{Arg, Device, words};
use crate::nvcc::compile;

const SEEDS: [u64; 3] = [1, 2, 3];

fn small(seed: u64, len: usize) -> Vec<i32> {
    words(seed, len).into_iter().map(|word| (word % 1000) as i32 - 300).collect()
}

/// The sum of everything before each element of a part.
fn exclusive(values: &[i32]) -> Vec<i32> {
    let mut sum = 0;
    values
        .iter()
        .map(|value| {
            sum += value;
            sum - value
        })
        .collect()
}

/// Also as the compiler makes it for debugging: calls, local memory, generic addresses.
#[test]
fn block_algorithms() {
    for arguments in [&[][..], &["-G"]] {
        if let Some(ptx) = compile("cub_block.cu", arguments) {
            // For debugging, variables live in memory, and CUB copies some that have no value yet (what
            // an exclusive scan without a first value leaves to lane 0).
            scans_and_reduces(&ptx, arguments.is_empty());
        }
    }
}

fn scans_and_reduces(ptx: &str, checks_uninitialized: bool) {
    let mut device = Device::new(ptx);
    device.options.check_uninitialized = checks_uninitialized;
    for seed in SEEDS {
        device.options.seed = seed;
        for (entry, threads, items) in [("scan_raking", 128, 4), ("scan_warps", 96, 3)] {
            let (blocks, tile) = (5, threads * items);
            let input = small(seed, blocks * tile);
            let (from, to) = (device.upload(&input), device.alloc(4 * blocks * tile));
            device.launch(entry, blocks as u32, threads as u32, 0, &[Arg::U64(from), Arg::U64(to)]);
            let expected: Vec<i32> = input.chunks(tile).flat_map(exclusive).collect();
            assert_eq!(device.download::<i32>(to, blocks * tile), expected, "{entry}");
        }
        let input = small(seed, 160 * 4);
        let (from, to) = (device.upload(&input), device.alloc(16));
        device.launch("reduce_raking", 4, 160, 0, &[Arg::U64(from), Arg::U64(to)]);
        let expected: Vec<i32> = input.chunks(160).map(|part| part.iter().sum()).collect();
        assert_eq!(device.download::<i32>(to, 4), expected);

        let input: Vec<f32> = small(seed, 128 * 4).into_iter().map(|value| value as f32).collect();
        let (from, to) = (device.upload(&input), device.alloc(16));
        device.launch("reduce_warps", 4, 128, 0, &[Arg::U64(from), Arg::U64(to)]);
        let expected: Vec<f32> = input.chunks(128).map(|part| part.iter().sum()).collect();
        assert_eq!(device.download::<f32>(to, 4), expected);
    }
}

/// Whether the block sort of a text ends, with the right result.
pub(crate) fn sorts(ptx: &str, seed: u64) -> bool {
    let mut device = Device::new(ptx);
    device.options.seed = seed;
    let keys = words(seed, 3 * 512);
    let values: Vec<i32> = (0..3 * 512).collect();
    let (keys_in, values_in) = (device.upload(&keys), device.upload(&values));
    let (keys_out, values_out) = (device.alloc(4 * 3 * 512), device.alloc(4 * 3 * 512));
    let args = [keys_in, values_in, keys_out, values_out].map(Arg::U64);
    if device.try_launch("sort_pairs", 3, 128, 0, &args).is_err() {
        return false;
    }
    let mut expected: Vec<(u32, i32)> = keys.iter().copied().zip(values).collect();
    expected.chunks_mut(512).for_each(|part| part.sort_by_key(|pair| pair.0));
    let sorted = device.download::<u32>(keys_out, 3 * 512);
    let moved = device.download::<i32>(values_out, 3 * 512);
    sorted.into_iter().zip(moved).eq(expected)
}

#[test]
fn block_sort() {
    let Some(ptx) = compile("cub_block.cu", &[]) else { return };
    for seed in SEEDS {
        assert!(sorts(&ptx, seed), "seed {seed}");
    }
}

/// Bytes of a struct that a kernel builds on the device.
fn built(device: &Device, entry: &str, bytes: usize, rest: Vec<Arg>) -> Vec<u8> {
    let place = device.alloc(bytes);
    let mut args = vec![Arg::U64(place)];
    args.extend(rest);
    device.launch(entry, 1, 1, 0, &args);
    device.download(place, bytes)
}

#[test]
fn device_scan() {
    let Some(ptx) = compile("cub_scan.cu", &[]) else { return };
    let mut device = Device::new(&ptx);
    let shape = device.alloc(16);
    device.launch("scan_shape", 1, 1, 0, &[Arg::U64(shape)]);
    let shape = device.download::<u32>(shape, 4);
    let tile = (shape[0] * shape[1]) as usize;
    let init = built(&device, "scan_init_value", shape[3] as usize, vec![Arg::U32(7)]);
    let (init_kernel, scan_kernel) =
        (device.entry("DeviceScanInitKernel"), device.entry("DeviceScanKernel"));
    for (seed, threads) in [(1, 1), (2, 1), (3, 2)] {
        (device.options.seed, device.options.threads) = (seed, threads);
        let len = tile * 9 + 123;
        let num_tiles = len.div_ceil(tile) as u32;
        let input = small(seed, len);
        let (from, to) = (device.upload(&input), device.alloc(4 * len));
        let state = device.alloc((num_tiles as usize + 32) * 8);
        let state_arg = || Arg::Bytes(state.to_le_bytes().to_vec());
        device.launch(
            &init_kernel,
            num_tiles.div_ceil(128),
            128,
            0,
            &[state_arg(), Arg::U32(num_tiles)],
        );
        let args = [
            Arg::U64(from),
            Arg::U64(to),
            state_arg(),
            Arg::U32(0),
            Arg::Bytes(vec![0]),
            Arg::Bytes(init.clone()),
            Arg::U32(len as u32),
        ];
        device.launch(&scan_kernel, num_tiles, shape[0], 0, &args);
        let expected: Vec<i32> = exclusive(&input).into_iter().map(|sum| sum + 7).collect();
        assert_eq!(device.download::<i32>(to, len), expected, "seed {seed}");
    }
}

#[test]
fn device_reduction() {
    let Some(ptx) = compile("cub_reduce.cu", &[]) else { return };
    let mut device = Device::new(&ptx);
    for seed in SEEDS {
        device.options.seed = seed;
        let len = 100_003;
        let input = small(seed, len);
        let from = device.upload(&input);
        let shape = device.alloc(16);
        let rest = vec![Arg::U64(shape), Arg::U32(len as u32), Arg::U32(12)];
        let share = built(&device, "reduce_share", 40, rest);
        let shape = device.download::<u32>(shape, 4);
        assert_eq!(shape[3], 40);
        let (partial, to) = (device.alloc(4 * shape[2] as usize), device.alloc(4));
        let nothing = || Arg::Bytes(vec![0]);
        let args = [
            Arg::U64(from),
            Arg::U64(partial),
            Arg::U32(len as u32),
            Arg::Bytes(share),
            nothing(),
            nothing(),
        ];
        device.launch(&device.entry("DeviceReduceKernel"), shape[2], shape[0], 0, &args);
        let args = [
            Arg::U64(partial),
            Arg::U64(to),
            Arg::U32(shape[2]),
            nothing(),
            Arg::U32(5),
            nothing(),
        ];
        device.launch(&device.entry("DeviceReduceSingleTileKernel"), 1, shape[1], 0, &args);
        assert_eq!(device.download::<i32>(to, 1)[0], input.iter().sum::<i32>() + 5);
    }
}

#[test]
fn device_sort() {
    let Some(ptx) = compile("cub_sort.cu", &[]) else { return };
    let mut device = Device::new(&ptx);
    let shape = device.alloc(24);
    device.launch("sort_shape", 1, 1, 0, &[Arg::U64(shape)]);
    let shape = device.download::<u32>(shape, 6);
    let [_, _, sum_threads, sweep_threads, sweep_items, bits] = shape[..] else { panic!() };
    let (passes, digits) = (32_u32.div_ceil(bits), 1_usize << bits);
    for (seed, threads) in [(1, 1), (2, 2)] {
        (device.options.seed, device.options.threads) = (seed, threads);
        let len = 10_007;
        let keys = words(seed, len);
        let values: Vec<i32> = (0..len as i32).collect();
        let mut from = (device.upload(&keys), device.upload(&values));
        let mut to = (device.alloc(4 * len), device.alloc(4 * len));
        let bins = device.upload(&vec![0_u32; passes as usize * digits]);
        let args = [
            Arg::U64(bins),
            Arg::U64(from.0),
            Arg::U32(len as u32),
            Arg::U32(0),
            Arg::U32(32),
            Arg::Bytes(vec![0]),
        ];
        device.launch(&device.entry("DeviceRadixSortHistogramKernel"), 3, shape[0], 0, &args);
        device.launch(
            &device.entry("DeviceRadixSortExclusiveSumKernel"),
            passes,
            sum_threads,
            0,
            &[Arg::U64(bins)],
        );
        let num_tiles = len.div_ceil((sweep_threads * sweep_items) as usize);
        for pass in 0..passes {
            let lookback = device.upload(&vec![0_u32; num_tiles * digits]);
            let counters = device.upload(&[0_u32]);
            let first = pass * bits;
            let args = [
                Arg::U64(lookback),
                Arg::U64(counters),
                Arg::U64(0),
                Arg::U64(bins + u64::from(pass) * digits as u64 * 4),
                Arg::U64(to.0),
                Arg::U64(from.0),
                Arg::U64(to.1),
                Arg::U64(from.1),
                Arg::U32(len as u32),
                Arg::U32(first),
                Arg::U32(bits.min(32 - first)),
                Arg::Bytes(vec![0]),
            ];
            let onesweep = device.entry("DeviceRadixSortOnesweepKernel");
            device.launch(&onesweep, num_tiles as u32, sweep_threads, 0, &args);
            std::mem::swap(&mut from, &mut to);
        }
        let mut expected: Vec<(u32, i32)> = keys.iter().copied().zip(values).collect();
        expected.sort_by_key(|pair| pair.0);
        let sorted = device.download::<u32>(from.0, len);
        let moved = device.download::<i32>(from.1, len);
        assert!(sorted.into_iter().zip(moved).eq(expected), "seed {seed}");
    }
}
