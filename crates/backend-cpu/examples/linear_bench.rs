//! Speed of one linear layer per kind, number of rows and instruction set.
//!
//! `cargo run --release -p oarlock-backend-cpu --example linear_bench [threads] [instruction set]...`
#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::time::{Duration, Instant};

use oarlock_backend::conformance::TestStep;
use oarlock_backend::quant::random_row;
use oarlock_backend::{Backend, BackendLimits, InnerSplit, RowSet, WeightKind, WeightView};
use oarlock_backend_cpu::{CpuBackend, CpuConfig, InstructionSet};

const OUTPUTS: usize = 4864;
const COLUMNS: usize = 1024;

fn main() {
    let threads = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(2);
    println!("{OUTPUTS} x {COLUMNS}, {threads} threads; GMAC/s (GB/s of stored weights)");
    let wanted: Vec<String> = std::env::args().skip(2).collect();
    let mut sets = InstructionSet::available();
    sets.retain(|set| wanted.is_empty() || wanted.contains(&set.to_string()));
    for set in sets {
        for kind in [
            WeightKind::Q4_0,
            WeightKind::Q5_0,
            WeightKind::Q8_0,
            WeightKind::Q4K,
            WeightKind::Q5K,
            WeightKind::Q6K,
            WeightKind::Bf16,
        ] {
            let speeds: Vec<String> =
                [1, 4, 16, 64, 256].iter().map(|&rows| measure(set, threads, kind, rows)).collect();
            println!(
                "{:9} {:6} rows 1, 4, 16, 64, 256: {}",
                set.to_string(),
                format!("{kind:?}"),
                speeds.join("  ")
            );
        }
    }
}

/// Several copies of the weight, so that it does not stay in the cache.
fn measure(set: InstructionSet, threads: usize, kind: WeightKind, rows: usize) -> String {
    const COPIES: usize = 12;
    let limits =
        BackendLimits { max_tokens: rows, max_gathered: 1, max_chunks: 1, max_positions: 4096 };
    let config = CpuConfig { threads, instruction_set: Some(set), ..CpuConfig::default() };
    let mut backend = CpuBackend::new(config, limits).expect("a backend");
    let row = random_row(kind, COLUMNS, 0.05, 1);
    let data = row.repeat(OUTPUTS);
    let view = WeightView::whole("bench", kind, OUTPUTS, COLUMNS, &data);
    let weights: Vec<_> = (0..COPIES)
        .map(|_| backend.pack_linear(&[view], InnerSplit::WHOLE).expect("a weight"))
        .collect();
    let input = backend.tensor(RowSet::Tokens, COLUMNS).expect("a tensor");
    let mut out = backend.tensor(RowSet::Tokens, OUTPUTS).expect("a tensor");
    TestStep::rows(rows).begin(&mut backend, &[]);
    let start = Instant::now();
    let mut runs = 0;
    while start.elapsed() < Duration::from_millis(100) {
        for weight in &weights {
            backend.linear(&mut out, &input, weight, None);
            runs += 1;
        }
    }
    let seconds = start.elapsed().as_secs_f64() / f64::from(runs);
    let macs = (OUTPUTS * COLUMNS * rows) as f64 / seconds / 1e9;
    format!("{macs:.1} ({:.1})", data.len() as f64 / seconds / 1e9)
}
