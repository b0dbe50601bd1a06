//! What to do when a group has died, from how often it did so in a row.

use oarlock_types::RequestId;

/// A group that committed this many steps was healthy: its death does not count with those before.
const STEPS_OF_A_HEALTHY_GROUP: u64 = 64;
/// Deaths in a row after which the requests of the plans that died run one at a time.
const DEATHS_UNTIL_ISOLATION: u32 = 2;
/// Deaths in a row after which the engine gives up.
const DEATHS_UNTIL_GIVING_UP: u32 = 8;

/// Deaths in a row, without a healthy group in between.
#[derive(Debug, Default)]
pub(crate) struct Deaths {
    in_a_row: u32,
    /// Steps that the current group committed.
    steps: u64,
}

/// What to do about a death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All that ran goes on.
    GoOn,
    /// What was computed when the group died is to run one request at a time.
    Isolate,
    /// This request is the one.
    Fail(RequestId),
    /// Groups die whatever they do.
    GiveUp,
}

impl Deaths {
    /// A step committed.
    pub(crate) fn committed(&mut self) {
        self.steps += 1;
        if self.steps == STEPS_OF_A_HEALTHY_GROUP {
            self.in_a_row = 0;
        }
    }

    /// The group died. `alone` is the suspect that it computed, and nothing else.
    pub(crate) fn died(&mut self, alone: Option<RequestId>) -> Verdict {
        self.steps = 0;
        if let Some(request) = alone {
            // There may be another one: the next death in a row is a second one.
            self.in_a_row = 1;
            return Verdict::Fail(request);
        }
        self.in_a_row += 1;
        if self.in_a_row >= DEATHS_UNTIL_GIVING_UP {
            Verdict::GiveUp
        } else if self.in_a_row >= DEATHS_UNTIL_ISOLATION {
            Verdict::Isolate
        } else {
            Verdict::GoOn
        }
    }

    /// How many there were.
    pub(crate) fn in_a_row(&self) -> u32 {
        self.in_a_row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_in_a_row_isolates_and_the_one_alone_fails() {
        let mut deaths = Deaths::default();
        assert_eq!(deaths.died(None), Verdict::GoOn);
        assert_eq!(deaths.died(None), Verdict::Isolate);
        assert_eq!(deaths.died(Some(RequestId(7))), Verdict::Fail(RequestId(7)));
        // A second culprit is found in the same way.
        assert_eq!(deaths.died(None), Verdict::Isolate);
        assert_eq!(deaths.died(Some(RequestId(8))), Verdict::Fail(RequestId(8)));
    }

    #[test]
    fn deaths_far_apart_are_nobodys_fault() {
        let mut deaths = Deaths::default();
        for _ in 0..100 {
            assert_eq!(deaths.died(None), Verdict::GoOn);
            (0..STEPS_OF_A_HEALTHY_GROUP).for_each(|_| deaths.committed());
        }
        assert_eq!(deaths.in_a_row(), 0);
    }

    #[test]
    fn groups_that_always_die_are_given_up() {
        let mut deaths = Deaths::default();
        let verdicts: Vec<_> = (0..8).map(|_| deaths.died(None)).collect();
        assert_eq!(verdicts.iter().filter(|verdict| **verdict == Verdict::Isolate).count(), 6);
        assert_eq!(verdicts[7], Verdict::GiveUp);
    }
}
