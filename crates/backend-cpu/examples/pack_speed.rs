//! Speed of packing weights out of a mapped file that the page cache holds, against the speed at which one
//! thread reads that file: what a load costs beside the disk.
//!
//! `cargo run --release -p oarlock-backend-cpu --example pack_speed [MB per kind] [threads] [dtype] [kind]...`
#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::fs::File;
use std::hint::black_box;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::Instant;

use memmap2::Mmap;
use oarlock_backend::quant::random_row;
use oarlock_backend::{Backend, BackendLimits, InnerSplit, WeightKind, WeightView};
use oarlock_backend_cpu::{CpuBackend, CpuConfig, Dtype};

/// Shape of every tensor, a feed-forward layer's of a model of some eight billion parameters.
const ROWS: usize = 14_336;
const COLUMNS: usize = 4096;
/// Reading and packing take turns this often; medians are reported.
const ROUNDS: usize = 5;

fn main() {
    let argument = |index: usize| std::env::args().nth(index);
    let megabytes = argument(1).and_then(|arg| arg.parse().ok()).unwrap_or(400_usize);
    let threads = argument(2).and_then(|arg| arg.parse().ok()).unwrap_or(2);
    let dtype = argument(3).and_then(|arg| arg.parse().ok()).unwrap_or(Dtype::Auto);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let wanted: Vec<String> = std::env::args().skip(4).collect();
    println!("{megabytes} MB of {ROWS} x {COLUMNS}, {threads} threads, {dtype}; GB/s of the file");
    for kind in [
        WeightKind::Bf16,
        WeightKind::F16,
        WeightKind::F32,
        WeightKind::Q8_0,
        WeightKind::Q4_0,
        WeightKind::Q5_0,
        WeightKind::Q4K,
        WeightKind::Q5K,
        WeightKind::Q6K,
    ] {
        if !wanted.is_empty() && !wanted.contains(&format!("{kind:?}")) {
            continue;
        }
        let path = folder.path().join("weights");
        let tensors = write_file(&path, kind, megabytes);
        let mut reading = Vec::new();
        let mut packing = Vec::new();
        for _ in 0..ROUNDS {
            reading.push(read(&path));
            packing.push(pack(&path, kind, tensors, threads, dtype));
        }
        let (reading, packing) = (median(reading), median(packing));
        println!(
            "{:6} read {reading:5.2}  packed {packing:5.2}  ratio {:.2}",
            format!("{kind:?}"),
            packing / reading
        );
    }
}

/// Writes tensors of some `megabytes` together, and says how many.
fn write_file(path: &Path, kind: WeightKind, megabytes: usize) -> usize {
    const DISTINCT_ROWS: usize = 256;
    let some_rows: Vec<u8> =
        (0..DISTINCT_ROWS).flat_map(|row| random_row(kind, COLUMNS, 0.05, row as u64)).collect();
    let mut file = File::create(path).expect("a file");
    let tensor_bytes = some_rows.len() * (ROWS / DISTINCT_ROWS);
    let tensors = (megabytes * 1_000_000).div_ceil(tensor_bytes);
    for _ in 0..tensors * (ROWS / DISTINCT_ROWS) {
        file.write_all(&some_rows).expect("room on the disk");
    }
    tensors
}

/// GB/s of one thread that reads the file into a buffer of a mebibyte.
fn read(path: &Path) -> f64 {
    let mut file = File::open(path).expect("the file");
    let mut buffer = vec![0; 1 << 20];
    let start = Instant::now();
    let mut bytes = 0;
    loop {
        let len = file.read(&mut buffer).expect("the file's bytes");
        if len == 0 {
            return bytes as f64 / start.elapsed().as_secs_f64() / 1e9;
        }
        bytes += black_box(&buffer[..len]).len();
    }
}

/// GB/s of packing the file's tensors, all of which stay in memory.
#[expect(unsafe_code, reason = "mapping a file has no safe interface")]
fn pack(path: &Path, kind: WeightKind, tensors: usize, threads: usize, dtype: Dtype) -> f64 {
    let limits = BackendLimits { max_tokens: 1, max_gathered: 1, max_chunks: 1, max_positions: 1 };
    let config = CpuConfig { threads, dtype, ..CpuConfig::default() };
    let mut backend = CpuBackend::new(config, limits).expect("a backend");
    let file = File::open(path).expect("the file");
    let start = Instant::now();
    // SAFETY: nobody else knows the temporary file.
    let map = unsafe { Mmap::map(&file) }.expect("a mapping");
    let weights: Vec<_> = map
        .chunks_exact(map.len() / tensors)
        .map(|data| {
            let view = WeightView::whole("bench", kind, ROWS, COLUMNS, data);
            backend.pack_linear(&[view], InnerSplit::WHOLE).expect("a weight")
        })
        .collect();
    let seconds = start.elapsed().as_secs_f64();
    black_box(&weights);
    map.len() as f64 / seconds / 1e9
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
