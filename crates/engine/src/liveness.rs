//! Which rank of a group is stuck, from its heartbeats and the engine's own ticks.
//!
//! Time is counted in ticks of the engine, not by a clock: an engine that was paused together with its
//! workers counts one tick when it goes on, and suspects nobody.

use oarlock_types::Heartbeat;

/// Ticks that a rank may be silent, or stand still.
pub(crate) const PATIENCE: u32 = 20;

/// A rank that must be replaced, and with it its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stuck {
    /// No heartbeat comes: the process is stopped, or its host is cut off.
    Silent {
        /// Which one.
        rank: usize,
    },
    /// Heartbeats come, work does not go on, and it waits for no other rank.
    Still {
        /// Which one.
        rank: usize,
    },
    /// All that have work wait for each other.
    All,
}

/// What is known of all ranks.
#[derive(Debug)]
pub(crate) struct Liveness {
    ranks: Vec<Vital>,
    /// Ticks that work may stand still.
    still_limit: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Vital {
    last: Option<Heartbeat>,
    /// Ticks since the last heartbeat.
    silent: u32,
    /// Ticks with work and without progress.
    still: u32,
}

impl Liveness {
    /// Nothing is known yet. Work may stand still for `still_limit` ticks.
    pub(crate) fn new(ranks: usize, still_limit: u32) -> Self {
        Self { ranks: vec![Vital::default(); ranks], still_limit }
    }

    /// A heartbeat came.
    pub(crate) fn beat(&mut self, rank: usize, beat: Heartbeat) {
        let vital = &mut self.ranks[rank];
        vital.silent = 0;
        if vital.last.is_none_or(|last| last.progress != beat.progress) {
            vital.still = 0;
        }
        vital.last = Some(beat);
    }

    /// One tick went by. `has_work` says of each rank whether something was asked of it that it has not
    /// answered.
    pub(crate) fn tick(&mut self, has_work: impl Fn(usize) -> bool) -> Option<Stuck> {
        for (rank, vital) in self.ranks.iter_mut().enumerate() {
            vital.silent += 1;
            vital.still = if has_work(rank) { vital.still + 1 } else { 0 };
        }
        if let Some(rank) = self.ranks.iter().position(|vital| vital.silent > PATIENCE) {
            return Some(Stuck::Silent { rank });
        }
        let is_still = |vital: &Vital| vital.still > self.still_limit;
        let waits = |vital: &Vital| vital.last.is_some_and(|beat| beat.waiting_for.is_some());
        let culprit = self.ranks.iter().position(|vital| is_still(vital) && !waits(vital));
        if let Some(rank) = culprit {
            return Some(Stuck::Still { rank });
        }
        let mut busy = self.ranks.iter().filter(|vital| vital.still > 0).peekable();
        (busy.peek().is_some() && busy.all(is_still)).then_some(Stuck::All)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(progress: u64, waiting_for: Option<u32>) -> Heartbeat {
        Heartbeat { progress, waiting_for, ..Heartbeat::default() }
    }

    /// Ticks with a heartbeat of each rank until somebody is stuck.
    fn run(
        ticks: u32,
        busy: bool,
        beat: impl Fn(u32, usize) -> Option<Heartbeat>,
    ) -> Option<(u32, Stuck)> {
        let mut liveness = Liveness::new(2, PATIENCE);
        for tick in 0..ticks {
            for rank in 0..2 {
                if let Some(beat) = beat(tick, rank) {
                    liveness.beat(rank, beat);
                }
            }
            if let Some(stuck) = liveness.tick(|_| busy) {
                return Some((tick, stuck));
            }
        }
        None
    }

    #[test]
    fn who_works_or_has_no_work_is_not_stuck() {
        assert_eq!(run(500, true, |tick, _| Some(beat(tick.into(), None))), None);
        assert_eq!(run(500, false, |_, _| Some(beat(7, None))), None);
        // A long step: progress in every nineteenth tick only.
        assert_eq!(run(500, true, |tick, _| Some(beat((tick / 19).into(), None))), None);
    }

    #[test]
    fn silence_is_found_with_and_without_work() {
        for busy in [true, false] {
            let stuck = run(500, busy, |tick, rank| {
                (rank == 0 || tick < 5).then(|| beat(tick.into(), None))
            });
            assert_eq!(stuck, Some((4 + PATIENCE, Stuck::Silent { rank: 1 })));
        }
        // One that never spoke.
        let stuck = run(500, false, |tick, rank| (rank == 1).then(|| beat(tick.into(), None)));
        assert_eq!(stuck.map(|(_, stuck)| stuck), Some(Stuck::Silent { rank: 0 }));
    }

    #[test]
    fn a_rank_that_stands_still_is_found_and_who_waits_for_it_is_not_blamed() {
        let stuck = run(500, true, |tick, rank| {
            Some(if rank == 0 { beat(9, Some(1)) } else { beat(tick.min(5).into(), None) })
        });
        assert_eq!(stuck, Some((5 + PATIENCE, Stuck::Still { rank: 1 })));
    }

    #[test]
    fn waiting_for_each_other_is_found() {
        let stuck = run(500, true, |_, rank| Some(beat(3, Some(1 - rank as u32))));
        assert_eq!(stuck, Some((PATIENCE, Stuck::All)));
    }

    #[test]
    fn a_paused_engine_suspects_nobody() {
        let mut liveness = Liveness::new(1, PATIENCE);
        for round in 0..100 {
            liveness.beat(0, beat(round, None));
            // However long the pause was, it is one tick.
            assert_eq!(liveness.tick(|_| true), None);
        }
    }
}
