//! Ranks that take their time, or hurry on: nobody loses patience with them, or takes one thing for another.

#![expect(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use std::thread;
use std::time::{Duration, Instant};

use oarlock_collective::CollectiveError;
use support::{Boxed, Kind, as_ranks};

/// Two ranks that exchange values for longer than the deadline look stuck to nobody, though neither
/// begins an operation or reports any work meanwhile.
#[test]
fn moving_values_is_progress_to_third_ranks() {
    const DEADLINE: Duration = Duration::from_millis(600);
    const CHUNK: usize = 256 * 1024;
    // What rank 2 gives is more than the system takes before its turn comes.
    let lens = [0, 18 * CHUNK, 16 * CHUNK, 1];
    let taken = as_ranks(Kind::Tcp.group(4, DEADLINE), |rank, mut transport| {
        let own = vec![1.0; lens[rank]];
        let mut taken = 0;
        let mut take = |from: usize, _: usize, part: &[f32]| {
            taken += part.len();
            if from == 1 {
                thread::sleep(DEADLINE / 6);
            }
        };
        transport.gather(&own, &lens, &mut take).unwrap();
        // Nobody leaves before all are through.
        transport.barrier().unwrap();
        taken
    });
    assert_eq!(taken, [lens.iter().sum::<usize>(), 0, 0, 0]);
}

/// Operations of megabytes in turn, so that a rank often waits while its peer passes to the next one.
fn alternate(rank: usize, mut transport: Boxed) -> Result<(), CollectiveError> {
    const LEN: usize = 500_000;
    let lens = [1, LEN];
    let own = vec![1.0; lens[rank]];
    let mut words = vec![0; LEN];
    for _ in 0..50 {
        transport.gather(&own, &lens, &mut |_, _, _| {})?;
        transport.broadcast(&mut words)?;
    }
    transport.barrier()
}

#[test]
fn beats_between_two_operations_tell_of_one() {
    // A beat every millisecond.
    const DEADLINE: Duration = Duration::from_millis(10);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        for outcome in as_ranks(Kind::Tcp.group(2, DEADLINE), alternate) {
            // On a busy machine a rank may well be late for such a deadline, but none goes astray.
            let is_late = matches!(
                outcome,
                Err(CollectiveError::Stalled { .. } | CollectiveError::GaveUp { .. })
            );
            assert!(outcome.is_ok() || is_late, "{outcome:?}");
        }
    }
}
