//! Runs random operation traces through the checking harness of the tests: `cargo xtask soak`.
#![expect(clippy::print_stdout, reason = "a program for a terminal")]
#![expect(clippy::disallowed_methods, reason = "it tells how fast it is")]

#[path = "../tests/it/client.rs"]
mod client;
#[path = "../tests/it/harness.rs"]
#[expect(dead_code, reason = "the rules' tests use more of it")]
mod harness;
#[path = "../tests/it/trace.rs"]
mod trace;
#[path = "../tests/it/worker.rs"]
mod worker;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use oarlock_scheduler::Limits;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use trace::{End, Op, limits, ops, run};

/// Operations of one trace: few enough to find a failure's cause in it.
const MAX_TRACE: usize = 600;
/// Of so many traces, one runs twice, and the plans are compared.
const COMPARE_EVERY: u64 = 16;
/// How often progress is printed.
const REPORT: Duration = Duration::from_secs(2);
/// Attempts at making a failing trace smaller.
const MAX_SHRINKS: u32 = 20_000;

fn main() -> ExitCode {
    let (mut operations, mut seed) = (10_000_000_u64, 1_u64);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().and_then(|value| value.parse().ok());
        match (name.as_str(), value) {
            ("--operations", Some(value)) => operations = value,
            ("--seed", Some(value)) => seed = value,
            _ => {
                println!("usage: soak [--operations N] [--seed N]; got {name}");
                return ExitCode::FAILURE;
            }
        }
    }
    soak(operations, seed)
}

fn soak(operations: u64, first_seed: u64) -> ExitCode {
    let begin = Instant::now();
    let (mut done, mut seed, mut reported) = (0, first_seed, Instant::now());
    let report = |done: u64, seed: u64| {
        let rate = done as f64 / begin.elapsed().as_secs_f64();
        println!("{done} of {operations} operations, {rate:.0} operations/s, seed {seed}");
    };
    while done < operations {
        let tree = tree(seed);
        let (limits, ops, end) = tree.current();
        let at = Cell::new(0);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let plans = run(limits, &ops, end, &at);
            if seed.is_multiple_of(COMPARE_EVERY) {
                assert_eq!(plans, run(limits, &ops, end, &at), "the same trace, other plans");
            }
        }));
        if outcome.is_err() {
            let len = ops.len();
            println!("seed {seed} failed at operation {} of {len}: making it smaller", at.get());
            show_smallest(tree);
            println!("seed {seed} failed; again: cargo xtask soak --seed {seed} --operations 1");
            return ExitCode::FAILURE;
        }
        done += ops.len() as u64;
        seed += 1;
        if reported.elapsed() > REPORT {
            reported = Instant::now();
            report(done, seed);
        }
    }
    report(done, seed);
    println!("all invariants held");
    ExitCode::SUCCESS
}

type Trace = (Limits, Vec<Op>, End);

/// The trace of a seed, and how to make it smaller.
fn tree(seed: u64) -> impl ValueTree<Value = Trace> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), random);
    let end = if seed.is_multiple_of(8) { End::CancelAll } else { End::Drain };
    let strategy = (limits(), ops(1..MAX_TRACE)).prop_map(move |(limits, ops)| (limits, ops, end));
    strategy.new_tree(&mut runner).expect("nothing is filtered")
}

/// Prints the smallest trace found that fails, too.
fn show_smallest(mut tree: impl ValueTree<Value = Trace>) {
    let fails = |(limits, ops, end): &Trace| {
        catch_unwind(AssertUnwindSafe(|| run(*limits, ops, *end, &Cell::new(0)))).is_err()
    };
    let hook = take_hook();
    set_hook(Box::new(|_| ()));
    let mut smallest = tree.current();
    for _ in 0..MAX_SHRINKS {
        let failed = fails(&tree.current());
        if failed {
            smallest = tree.current();
        }
        if !(if failed { tree.simplify() } else { tree.complicate() }) {
            break;
        }
    }
    set_hook(hook);
    println!("{smallest:#?}");
    let at = Cell::new(0);
    let (limits, ops, end) = smallest;
    // Once more, for its message.
    drop(catch_unwind(AssertUnwindSafe(|| run(limits, &ops, end, &at))));
    println!("the trace above fails at operation {}", at.get());
}
