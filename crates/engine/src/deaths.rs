//! What to do when a group has died or could not be started, from how often that happened in a row.

use std::time::Duration;

use oarlock_types::RequestId;
use tokio::time::Instant;

/// Deaths in a row after which the engine gives up.
const DEATHS_UNTIL_GIVING_UP: u32 = 8;
/// A group that lived so long was healthy, whatever it did.
const HEALTHY: Duration = Duration::from_mins(10);
/// How long starts may fail in a row: a folder that is mounted again, memory that comes free.
const START_BUDGET: Duration = Duration::from_mins(2);
/// Longest wait between two starts.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// Deaths in a row, without a healthy group in between.
#[derive(Debug, Default)]
pub(crate) struct Deaths {
    in_a_row: u32,
    last: Option<Instant>,
    /// Starts that failed in a row, and since when.
    failed_starts: u32,
    failing_since: Option<Instant>,
}

/// What is known of a death.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Death {
    /// The suspect that the group computed, and nothing else; or a request that lived through too many.
    pub(crate) culprit: Option<RequestId>,
    /// A request died that had died before, and had not come further since.
    pub(crate) is_repeated: bool,
}

/// What to do about a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All that ran goes on.
    GoOn,
    /// What died twice is to run one request at a time.
    Isolate,
    /// This request is the one.
    Fail(RequestId),
    /// Groups die whatever they do.
    GiveUp,
}

impl Deaths {
    /// A step committed. `is_suspicious`: a request that died has yet to come past that point.
    pub(crate) fn committed(&mut self, is_suspicious: bool) {
        if !is_suspicious {
            self.in_a_row = 0;
        }
    }

    /// The group died.
    pub(crate) fn died(&mut self, death: Death, now: Instant) -> Verdict {
        if self.last.is_some_and(|last| now.duration_since(last) > HEALTHY) {
            self.in_a_row = 0;
        }
        self.last = Some(now);
        if let Some(request) = death.culprit {
            // There may be another one.
            self.in_a_row = 1;
            return Verdict::Fail(request);
        }
        self.in_a_row += 1;
        if self.in_a_row >= DEATHS_UNTIL_GIVING_UP {
            Verdict::GiveUp
        } else if death.is_repeated {
            Verdict::Isolate
        } else {
            Verdict::GoOn
        }
    }

    /// A group could not be started. Whether to try again.
    pub(crate) fn start_failed(&mut self, now: Instant) -> bool {
        self.failed_starts += 1;
        let since = *self.failing_since.get_or_insert(now);
        now.duration_since(since) < START_BUDGET
    }

    /// A group was started.
    pub(crate) fn started(&mut self) {
        self.failed_starts = 0;
        self.failing_since = None;
    }

    /// How many deaths there were in a row.
    pub(crate) fn in_a_row(&self) -> u32 {
        self.in_a_row
    }

    /// How long to wait before the next start; not at all after the first death: a client should see a
    /// short pause.
    pub(crate) fn backoff(&self) -> Duration {
        match self.in_a_row.saturating_sub(1).max(self.failed_starts) {
            0 => Duration::ZERO,
            failures => MAX_BACKOFF.min(Duration::from_millis(50 << failures.min(10))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONCE: Death = Death { culprit: None, is_repeated: false };
    const AGAIN: Death = Death { culprit: None, is_repeated: true };

    fn alone(id: u64) -> Death {
        Death { culprit: Some(RequestId(id)), is_repeated: true }
    }

    #[test]
    fn what_dies_again_is_isolated_and_the_one_alone_fails() {
        let (mut deaths, now) = (Deaths::default(), Instant::now());
        assert_eq!(deaths.died(ONCE, now), Verdict::GoOn);
        assert_eq!(deaths.died(AGAIN, now), Verdict::Isolate);
        assert_eq!(deaths.died(alone(7), now), Verdict::Fail(RequestId(7)));
        // A second culprit is found in the same way.
        assert_eq!(deaths.died(AGAIN, now), Verdict::Isolate);
        assert_eq!(deaths.died(alone(8), now), Verdict::Fail(RequestId(8)));
    }

    #[test]
    fn deaths_of_which_all_have_recovered_are_nobodys_fault() {
        let (mut deaths, now) = (Deaths::default(), Instant::now());
        for _ in 0..100 {
            assert_eq!(deaths.died(ONCE, now), Verdict::GoOn);
            assert_eq!(deaths.backoff(), Duration::ZERO);
            deaths.committed(true);
            assert_eq!(deaths.in_a_row(), 1);
            deaths.committed(false);
        }
        assert_eq!(deaths.in_a_row(), 0);
    }

    #[test]
    fn groups_that_always_die_are_given_up_unless_they_live_long() {
        let (mut deaths, mut now) = (Deaths::default(), Instant::now());
        for _ in 0..100 {
            now += 2 * HEALTHY;
            assert_eq!(deaths.died(ONCE, now), Verdict::GoOn);
        }
        let verdicts: Vec<_> = (0..7).map(|_| deaths.died(AGAIN, now)).collect();
        assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::Isolate).count(), 6);
        assert_eq!(verdicts[6], Verdict::GiveUp);
        assert_eq!(deaths.backoff(), MAX_BACKOFF);
    }

    #[test]
    fn starts_may_fail_for_a_while() {
        let (mut deaths, mut now) = (Deaths::default(), Instant::now());
        for round in 0..100 {
            let mut tries = 0;
            let begin = now;
            while deaths.start_failed(now) {
                tries += 1;
                now += deaths.backoff();
                if round < 99 && tries == 5 {
                    deaths.started();
                    break;
                }
            }
            assert!(round < 99 || now - begin >= START_BUDGET && tries > 20);
            assert_eq!(deaths.in_a_row(), 0, "no group died");
        }
    }
}
