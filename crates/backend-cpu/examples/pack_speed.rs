//! Speed of packing weights out of a mapped file that the page cache holds, against the speed at which one
//! thread reads that file, and at which all threads copy it into fresh memory, which no packing can beat.
//!
//! `cargo run --release -p oarlock-backend-cpu --example pack_speed [MB per kind] [threads] [dtype] [kind]...`
#![expect(unsafe_code, reason = "mapping a file and the clock of CPU time have no safe interface")]
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
/// Reading and packing take turns this often; the best of each are reported, since machines are shared.
const ROUNDS: usize = 9;

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
        WeightKind::Q5_1,
        WeightKind::Q2K,
        WeightKind::Q3K,
        WeightKind::Iq4Xs,
    ] {
        if !wanted.is_empty() && !wanted.contains(&format!("{kind:?}")) {
            continue;
        }
        let path = folder.path().join("weights");
        let tensors = write_file(&path, kind, megabytes);
        let [mut reading, mut copying, mut packing] = [Speed::default(); 3];
        for _ in 0..ROUNDS {
            reading.keep_best(read(&path));
            let config = CpuConfig { threads, dtype, ..CpuConfig::default() };
            copying.keep_best(pack(&path, kind, tensors, config, &|backend, view| {
                backend.pack_table(view, 0).expect("a table")
            }));
            packing.keep_best(pack(&path, kind, tensors, config, &|backend, view| {
                backend.pack_linear(&[*view], InnerSplit::WHOLE).expect("a weight")
            }));
        }
        let columns = |speed: fn(&Speed) -> f64| {
            let [read, copied, packed] = [&reading, &copying, &packing].map(speed);
            format!(
                "read {read:5.2}  copied {copied:5.2}  packed {packed:5.2} ({:.2})",
                packed / read
            )
        };
        println!(
            "{:6} {}   per CPU second: {}",
            format!("{kind:?}"),
            columns(|speed| speed.wall),
            columns(|speed| speed.cpu),
        );
    }
}

/// GB per second that passed, and per second of all threads' CPU time.
#[derive(Clone, Copy, Default)]
struct Speed {
    wall: f64,
    cpu: f64,
}

impl Speed {
    fn keep_best(&mut self, other: Self) {
        self.wall = self.wall.max(other.wall);
        self.cpu = self.cpu.max(other.cpu);
    }
}

/// When something began.
struct Start {
    wall: Instant,
    cpu_seconds: f64,
}

impl Start {
    fn now() -> Self {
        Self { wall: Instant::now(), cpu_seconds: cpu_seconds() }
    }

    fn speed(&self, bytes: usize) -> Speed {
        let gigabytes = bytes as f64 / 1e9;
        Speed {
            wall: gigabytes / self.wall.elapsed().as_secs_f64(),
            cpu: gigabytes / (cpu_seconds() - self.cpu_seconds),
        }
    }
}

/// CPU time of the process.
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills the value that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
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

/// One thread reads the file into a buffer of a mebibyte.
fn read(path: &Path) -> Speed {
    let mut file = File::open(path).expect("the file");
    let mut buffer = vec![0; 1 << 20];
    let start = Start::now();
    let mut bytes = 0;
    loop {
        let len = file.read(&mut buffer).expect("the file's bytes");
        if len == 0 {
            return start.speed(bytes);
        }
        bytes += black_box(&buffer[..len]).len();
    }
}

/// Packs the file's tensors, all of which stay in memory.
fn pack<T>(
    path: &Path,
    kind: WeightKind,
    tensors: usize,
    config: CpuConfig,
    pack: &dyn Fn(&mut CpuBackend, &WeightView<'_>) -> T,
) -> Speed {
    let limits = BackendLimits { max_tokens: 1, max_gathered: 1, max_chunks: 1, max_positions: 1 };
    let mut backend = CpuBackend::new(config, limits).expect("a backend");
    let file = File::open(path).expect("the file");
    let start = Start::now();
    // SAFETY: nobody else knows the temporary file.
    let map = unsafe { Mmap::map(&file) }.expect("a mapping");
    let packed: Vec<_> = map
        .chunks_exact(map.len() / tensors)
        .map(|data| pack(&mut backend, &WeightView::whole("bench", kind, ROWS, COLUMNS, data)))
        .collect();
    let speed = start.speed(map.len());
    black_box(&packed);
    speed
}
