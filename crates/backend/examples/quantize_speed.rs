//! Speed of rounding weights while a model loads.
//!
//! `cargo run --release -p oarlock-backend --example quantize_speed [threads]`
#![expect(clippy::print_stdout, reason = "a benchmark prints what it measured")]

use std::hint::black_box;
use std::time::Instant;

use oarlock_backend::quant::{quantize, random_row};
use oarlock_backend::{WeightKind, WeightView};

const ROWS: usize = 14_336;
const COLUMNS: usize = 4096;

fn main() {
    let threads = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(2);
    println!("{ROWS} x {COLUMNS}, {threads} threads; GB/s of the input, the best of seven");
    for from in [WeightKind::Bf16, WeightKind::F16, WeightKind::F32] {
        let rows = (0..64).flat_map(|row| random_row(from, COLUMNS, 0.05, row));
        let data = rows.collect::<Vec<u8>>().repeat(ROWS / 64);
        let view = WeightView::whole("bench", from, ROWS, COLUMNS, &data);
        for to in [WeightKind::Q8_0, WeightKind::Q4_0] {
            let speed = || {
                let start = Instant::now();
                black_box(quantize(&view, to, threads).expect("floats"));
                data.len() as f64 / start.elapsed().as_secs_f64() / 1e9
            };
            let best = (0..7).map(|_| speed()).fold(0.0, f64::max);
            println!("{from:?} to {to:?}: {best:.2}");
        }
    }
}
