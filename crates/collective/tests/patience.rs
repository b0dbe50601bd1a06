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
    const DEADLINE: Duration = Duration::from_secs(2);
    const CHUNK: usize = 256 * 1024;
    // Rank 1's chunks take one and a half deadlines. What rank 2 gives is more than the system takes
    // before its turn comes.
    let lens = [0, 9 * CHUNK, 16 * CHUNK, 1];
    let taken = as_ranks(Kind::Tcp.group(4, DEADLINE), |rank, transport| {
        let own = vec![1.0; lens[rank]];
        let mut taken = 0;
        let mut take = |from: usize, _: usize, part: &[f32]| {
            taken += part.len();
            if from == 1 {
                thread::sleep(DEADLINE / 6);
            }
        };
        transport.gather(&own, &lens, &mut take).unwrap();
        // Whoever has given all, as rank 3 has at once, waits for the others here.
        transport.barrier().unwrap();
        taken
    });
    assert_eq!(taken, [lens.iter().sum::<usize>(), 0, 0, 0]);
}

/// Operations of megabytes in turn, so that a rank often waits while its peer passes to the next one.
fn alternate(rank: usize, transport: &mut Boxed) -> Result<(), CollectiveError> {
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
    // Whoever hears no last word of a peer for so long after their connection of values ended takes it
    // for dead (`EXPLANATION` in `tcp/exchange.rs`).
    const EXPLANATION: Duration = Duration::from_secs(1);
    let (mut begun, mut num_held_up) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(1) {
        let round = Instant::now();
        let outcomes = as_ranks(Kind::Tcp.group(2, DEADLINE), alternate);
        let was_long = round.elapsed() > EXPLANATION;
        for outcome in outcomes {
            // On a busy machine a rank may well be late for such a deadline, but none goes astray.
            let is_fine = match &outcome {
                Ok(()) | Err(CollectiveError::Stalled { .. } | CollectiveError::GaveUp { .. }) => {
                    true
                }
                // Even a last word may be so late, but not every time.
                Err(CollectiveError::Gone { .. }) if was_long && num_held_up < 5 => {
                    num_held_up += 1;
                    begun = Instant::now();
                    true
                }
                Err(_) => false,
            };
            assert!(is_fine, "{outcome:?}");
        }
    }
}
