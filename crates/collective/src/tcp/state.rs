//! What a rank knows of its group: of itself at first hand, of the others by their beats.
//!
//! A beat is five little-endian words: whom the rank waits for (plus one), its progress (work done, and
//! pieces of messages moved), the number of its operation, the operation, and a failure if it knows of
//! one, which is the last beat then.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oarlock_backend::Progress;
use oarlock_types::Shard;

use crate::operation::Operation;
use crate::tree::MAX_RANKS;
use crate::{CollectiveError, failure};

/// Beats in a deadline.
const BEATS: u32 = 10;
/// What a rank said of itself is old after so many beats without news.
const FRESH: u32 = 2;
pub(super) const BEAT_BYTES: usize = 40;

/// Where a rank is: the number of its operation, and which one that is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) sequence: u64,
    pub(super) operation: Operation,
}

/// What is known of a rank: by itself of its own, by beats of the others.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Plus one; zero while it waits for nobody.
    waiting_for: AtomicU64,
    /// Under a lock, because a number with another's operation would look like a rank gone astray.
    place: Mutex<Place>,
    progress: AtomicU64,
    /// Beats of ours since its last one.
    silence: AtomicU32,
    has_begun: AtomicBool,
    has_ended: AtomicBool,
}

impl Known {
    pub(super) fn waits_for(&self) -> Option<usize> {
        (self.waiting_for.load(Ordering::Relaxed) as usize).checked_sub(1)
    }

    pub(super) fn set_waiting(&self, peer: Option<usize>) {
        let word = peer.map_or(0, |peer| peer as u64 + 1);
        self.waiting_for.store(word, Ordering::Relaxed);
    }

    pub(super) fn place(&self) -> Place {
        *self.lock()
    }

    pub(super) fn enter(&self, place: Place) {
        *self.lock() = place;
    }

    fn lock(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What changes while the rank is not stuck.
    pub(super) fn state(&self) -> (u64, u64) {
        (self.progress.load(Ordering::Relaxed), self.place().sequence)
    }

    fn is_fresh(&self) -> bool {
        self.silence.load(Ordering::Relaxed) <= FRESH
    }

    /// Has it sent a beat?
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Acquire)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }
}

/// What the rank's own thread and the one of its beats share.
#[derive(Debug)]
pub(super) struct State {
    pub(super) shard: Shard,
    pub(super) known: [Known; MAX_RANKS],
    pub(super) progress: Progress,
    /// Pieces of messages that this rank has sent or received.
    num_moved: AtomicU64,
    failure: AtomicU64,
    is_leaving: AtomicBool,
    /// Between two beats.
    pub(super) interval: Duration,
    /// Wakes the rank's thread at a failure.
    pub(super) alarm: OwnedFd,
    /// Wakes the thread of beats when the rank leaves.
    pub(super) farewell: OwnedFd,
}

impl State {
    pub(super) fn new(shard: Shard, deadline: Duration) -> io::Result<Self> {
        let event = || {
            let flags =
                rustix::event::EventfdFlags::NONBLOCK | rustix::event::EventfdFlags::CLOEXEC;
            rustix::event::eventfd(0, flags)
        };
        Ok(Self {
            shard,
            known: Default::default(),
            progress: Progress::default(),
            num_moved: AtomicU64::new(0),
            failure: AtomicU64::new(0),
            is_leaving: AtomicBool::new(false),
            interval: (deadline / BEATS).max(Duration::from_millis(1)),
            alarm: event()?,
            farewell: event()?,
        })
    }

    pub(super) fn own(&self) -> &Known {
        &self.known[self.shard.rank as usize]
    }

    /// A piece of a message was sent or received: whoever waits for this rank sees that it is not stuck.
    pub(super) fn count_moved(&self) {
        self.num_moved.fetch_add(1, Ordering::Relaxed);
    }

    /// One more beat of ours without one of `rank`.
    pub(super) fn count_silence(&self, rank: usize) {
        self.known[rank].silence.fetch_add(1, Ordering::Relaxed);
    }

    /// For how long nothing was heard of `rank`, if that is too long.
    pub(super) fn silence(&self, rank: usize) -> Option<Duration> {
        let beats = self.known[rank].silence.load(Ordering::Relaxed);
        (beats > BEATS).then(|| self.interval * beats)
    }

    /// Follows who waits for whom, from `peer` on, to the one that all of them wait for. What a rank said
    /// before it fell silent does not count: the one it waited for may long have answered.
    pub(super) fn blocking(&self, peer: usize) -> usize {
        let mut is_visited = [false; MAX_RANKS];
        is_visited[self.shard.rank as usize] = true;
        let mut rank = peer;
        loop {
            is_visited[rank] = true;
            let known = &self.known[rank];
            match known.waits_for() {
                Some(next) if known.is_fresh() && !is_visited[next] => rank = next,
                _ => return rank,
            }
        }
    }

    pub(super) fn failure(&self) -> Option<CollectiveError> {
        failure::from_word(self.failure.load(Ordering::Acquire), self.shard.ranks)
    }

    /// Of several failures the first counts.
    pub(super) fn fail(&self, error: &CollectiveError) {
        let word = failure::to_word(error, self.shard.rank);
        let first = self.failure.compare_exchange(0, word, Ordering::AcqRel, Ordering::Acquire);
        if first.is_ok() {
            signal(&self.alarm);
        }
    }

    /// Asks the thread of beats for a last one.
    pub(super) fn leave(&self) {
        self.is_leaving.store(true, Ordering::Release);
        signal(&self.farewell);
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Acquire)
    }

    pub(super) fn beat(&self) -> [u8; BEAT_BYTES] {
        let own = self.own();
        let place = own.place();
        let words = [
            own.waiting_for.load(Ordering::Relaxed),
            self.progress.get().wrapping_add(self.num_moved.load(Ordering::Relaxed)),
            place.sequence,
            place.operation.to_word(),
            if self.is_leaving() { self.failure.load(Ordering::Acquire) } else { 0 },
        ];
        let mut bytes = [0; BEAT_BYTES];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub(super) fn hear(&self, rank: usize, beat: &[u8; BEAT_BYTES]) {
        let word = |place: usize| {
            let bytes = beat.iter().skip(place * 8).take(8).rev();
            bytes.fold(0, |word, byte| word << 8 | u64::from(*byte))
        };
        let known = &self.known[rank];
        known.waiting_for.store(word(0).min(u64::from(self.shard.ranks)), Ordering::Relaxed);
        known.progress.store(word(1), Ordering::Relaxed);
        known.enter(Place { sequence: word(2), operation: Operation::from_word(word(3)) });
        known.silence.store(0, Ordering::Relaxed);
        known.has_begun.store(true, Ordering::Release);
        if word(4) != 0 {
            // Whatever it tried to say, it has failed.
            let said = failure::from_word(word(4), self.shard.ranks);
            self.fail(&said.unwrap_or(CollectiveError::GaveUp { rank: rank as u32 }));
        }
    }

    /// The connection of beats with `rank` has ended. One that leaves on purpose has said so before.
    pub(super) fn end(&self, rank: usize) {
        self.fail(&CollectiveError::Gone { rank: rank as u32 });
        self.known[rank].has_ended.store(true, Ordering::Release);
        signal(&self.alarm);
    }
}

fn signal(event: &OwnedFd) {
    // It can only be full, and then it is signalled.
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn state(rank: u32) -> State {
        State::new(Shard { rank, ranks: 4 }, Duration::from_secs(10)).unwrap()
    }

    /// A rank that hurries through operations is never seen at one that has another's number, neither by
    /// the thread of its beats nor by those who hear them.
    #[test]
    fn number_and_operation_go_together() {
        const LAST: u64 = 50_000;
        let at = |sequence: u64| {
            let operation = Operation::broadcast(sequence as usize);
            Place { sequence, operation }
        };
        let (own, peer) = (state(0), state(1));
        thread::scope(|scope| {
            scope.spawn(|| (1..=LAST).for_each(|sequence| own.own().enter(at(sequence))));
            scope.spawn(|| {
                while peer.known[0].place().sequence < LAST {
                    peer.hear(0, &own.beat());
                }
            });
            loop {
                let place = peer.known[0].place();
                assert!(place == Place::default() || place == at(place.sequence), "{place:?}");
                if place.sequence == LAST {
                    break;
                }
            }
        });
    }

    #[test]
    fn only_fresh_words_are_followed_and_nobody_twice() {
        let own = state(0);
        let say = |rank: u32, waits_for| {
            let peer = state(rank);
            peer.own().set_waiting(waits_for);
            own.hear(rank as usize, &peer.beat());
        };
        say(1, Some(2));
        say(2, Some(3));
        assert_eq!(own.blocking(1), 3);
        // In a circle, without this rank or with it, the last one before it closes.
        say(3, Some(1));
        assert_eq!(own.blocking(1), 3);
        say(3, Some(0));
        assert_eq!(own.blocking(1), 3);
        (0..=FRESH).for_each(|_| own.count_silence(2));
        assert_eq!(own.blocking(1), 2);
        say(2, None);
        assert_eq!(own.blocking(1), 2);
        say(2, Some(3));
        assert_eq!(own.blocking(1), 3);
    }

    #[test]
    fn moved_bytes_are_progress_to_all() {
        let (own, peer) = (state(0), state(1));
        own.hear(1, &peer.beat());
        let before = own.known[1].state();
        peer.count_moved();
        own.hear(1, &peer.beat());
        assert_ne!(own.known[1].state(), before);
    }

    #[test]
    fn a_failure_that_nobody_understands_is_one_all_the_same() {
        for word in [u64::MAX, 9 << 56, 1 << 56 | 4 << 32] {
            let own = state(0);
            let mut beat = state(1).beat();
            beat[32..].copy_from_slice(&word.to_le_bytes());
            own.hear(1, &beat);
            let failure = own.failure();
            assert!(matches!(failure, Some(CollectiveError::GaveUp { rank: 1 })), "{failure:?}");
        }
    }
}
