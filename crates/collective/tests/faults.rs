//! Ranks that die, stop, hang, leave or go astray: their peers hear of it in time, by the right name.

#![expect(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::processes::{Over, Rank, all, group, serve};

/// So long that only a death or a farewell can be what ended an operation early.
const LONG: Duration = Duration::from_secs(25);
/// Longer than a busy machine keeps a rank from its work.
const SHORT: Duration = Duration::from_secs(2);
/// For what is found at once or in slices of 100 ms, on a machine with other work.
const SOON: Duration = Duration::from_secs(5);
const OTHERS: [usize; 3] = [0, 1, 3];

#[test]
fn rank_process() {
    serve();
}

fn four(over: Over, deadline: Duration) -> Vec<Rank> {
    let mut group = group(over, 4, deadline, "rank_process");
    for (outcome, _) in all(&mut group, &[0, 1, 2, 3], "sum") {
        assert_eq!(outcome, "sum 15");
    }
    group
}

/// All others fail with `error`, in time.
fn assert_error(outcomes: &[(String, Duration)], error: &str, within: Duration) {
    for (outcome, after) in outcomes {
        assert!(outcome.starts_with(error), "{outcomes:?}");
        assert!(*after < within, "{outcomes:?}");
    }
}

/// All others say that rank 2 was still for as long as the deadline, in time.
fn assert_stalled(outcomes: &[(String, Duration)]) {
    let error = "rank 2 made no progress for ";
    assert_error(outcomes, error, SHORT + SOON);
    for (outcome, _) in outcomes {
        let seconds = outcome[error.len()..].trim_end_matches(" s");
        let seconds: f64 = seconds.parse().unwrap();
        let possible = SHORT.as_secs_f64()..2.0 * SHORT.as_secs_f64();
        assert!(possible.contains(&seconds), "{outcomes:?}");
    }
}

/// Sums until the others see that something is wrong: what the lost rank gave before may be enough for
/// one more.
fn sum_until_error(group: &mut [Rank]) -> Vec<(String, Duration)> {
    let outcomes = all(group, &OTHERS, "sum");
    let is_done = |(_, (outcome, _)): &(&usize, &(String, Duration))| outcome == "sum 15";
    let done: Vec<_> =
        OTHERS.iter().zip(&outcomes).filter(is_done).map(|(rank, _)| *rank).collect();
    let failed = outcomes.into_iter().filter(|(outcome, _)| outcome != "sum 15");
    failed.chain(all(group, &done, "sum")).collect()
}

fn killed_between_operations(over: Over) {
    let mut group = four(over, LONG);
    group[2].signal(Signal::KILL);
    assert_error(&all(&mut group, &OTHERS, "sum"), "rank 2 is gone", SOON);
    // Whatever they try from then on ends the same way.
    assert_error(&all(&mut group, &OTHERS, "broadcast"), "rank 2 is gone", SOON);
}

fn killed_inside(over: Over) {
    let mut group = four(over, LONG);
    group[2].tell("sum");
    group[2].await_waiting();
    group[2].signal(Signal::KILL);
    assert_error(&sum_until_error(&mut group), "rank 2 is gone", SOON);
}

fn killed_while_awaited(over: Over) {
    let mut group = four(over, LONG);
    for rank in OTHERS {
        group[rank].tell("sum");
    }
    for rank in OTHERS {
        group[rank].await_waiting();
    }
    group[2].signal(Signal::KILL);
    let begun = Instant::now();
    for rank in OTHERS {
        let outcome = group[rank].outcome();
        assert_error(&[(outcome, begun.elapsed())], "rank 2 is gone", SOON);
    }
}

fn stopped_between_operations(over: Over) {
    let mut group = four(over, SHORT);
    group[2].signal(Signal::STOP);
    assert_stalled(&all(&mut group, &OTHERS, "sum"));
}

fn stopped_inside(over: Over) {
    let mut group = four(over, SHORT);
    group[2].tell("sum");
    group[2].await_waiting();
    // All hear that it waits for rank 3, which then answers and is not to blame.
    thread::sleep(SHORT / 4);
    group[2].signal(Signal::STOP);
    assert_stalled(&sum_until_error(&mut group));
}

fn hangs(over: Over) {
    let mut group = four(over, SHORT);
    group[2].tell("hang");
    assert_stalled(&all(&mut group, &OTHERS, "sum"));
}

fn works_for_long(over: Over) {
    let work = SHORT * 5 / 2;
    let mut group = four(over, SHORT);
    let begun = Instant::now();
    group[2].tell(&format!("work {}", work.as_millis()));
    group[2].tell("sum");
    for rank in OTHERS {
        group[rank].tell("sum");
    }
    // Those who wait for those who wait for the slow one are no less patient.
    for rank in OTHERS {
        assert_eq!(group[rank].outcome(), "sum 15");
        assert!(begun.elapsed() >= work, "the slow rank was awaited: {:?}", begun.elapsed());
    }
}

fn leaves(over: Over) {
    let mut group = four(over, LONG);
    for rank in OTHERS {
        group[rank].tell("sum");
    }
    for rank in OTHERS {
        group[rank].await_waiting();
    }
    let begun = Instant::now();
    group[2].tell("leave");
    for rank in OTHERS {
        let outcome = group[rank].outcome();
        assert_error(&[(outcome, begun.elapsed())], "rank 2 gave up", SOON);
    }
}

fn goes_astray(over: Over) {
    let mut group = four(over, LONG);
    group[2].tell("broadcast");
    let mut outcomes = all(&mut group, &OTHERS, "sum");
    outcomes.push((group[2].outcome(), Duration::ZERO));
    for (outcome, after) in &outcomes {
        let is_diverged = outcome.contains("is at another operation");
        assert!(is_diverged && *after < SOON, "{outcomes:?}");
    }
    // Whoever sees it first tells both operations.
    let names = ["all_reduce of 100", "broadcast of 8"];
    let is_told = |outcome: &str| names.iter().all(|name| outcome.contains(name));
    assert!(outcomes.iter().any(|(outcome, _)| is_told(outcome)), "{outcomes:?}");
}

/// One test of every fault and transport, so that they run side by side.
macro_rules! over_both {
    ($($fault:ident),*) => {
        mod shared_memory {
            $(#[test] fn $fault() { super::$fault(super::Over::SharedMemory); })*
        }
        mod tcp {
            $(#[test] fn $fault() { super::$fault(super::Over::Tcp); })*
        }
    };
}

over_both!(
    killed_between_operations,
    killed_inside,
    killed_while_awaited,
    stopped_between_operations,
    stopped_inside,
    hangs,
    works_for_long,
    leaves,
    goes_astray
);
