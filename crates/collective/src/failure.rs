//! A failure as a word that ranks pass on, so that all name the same culprit.

use std::time::Duration;

use crate::CollectiveError;

const GONE: u64 = 1;
const GAVE_UP: u64 = 2;
const STALLED: u64 = 3;
const DIVERGED: u64 = 4;

/// What peers need to know of `error`, which `own` rank met. Never zero.
pub(crate) fn to_word(error: &CollectiveError, own: u32) -> u64 {
    let (kind, rank, milliseconds) = match *error {
        CollectiveError::Gone { rank } => (GONE, rank, 0),
        CollectiveError::GaveUp { rank } => (GAVE_UP, rank, 0),
        CollectiveError::Stalled { rank, seconds } => {
            let milliseconds = Duration::try_from_secs_f64(seconds).unwrap_or_default();
            (STALLED, rank, milliseconds.as_millis().min(u128::from(u32::MAX)) as u64)
        }
        CollectiveError::Diverged { rank, .. } => (DIVERGED, rank, 0),
        CollectiveError::Io { .. } => (GAVE_UP, own, 0),
    };
    kind << 56 | u64::from(rank) << 32 | milliseconds
}

/// The error of a peer's word; `None` if there is none, or none that makes sense.
pub(crate) fn from_word(word: u64, ranks: u32) -> Option<CollectiveError> {
    let rank = (word >> 32 & 0xff_ffff) as u32;
    if rank >= ranks {
        return None;
    }
    match word >> 56 {
        GONE => Some(CollectiveError::Gone { rank }),
        GAVE_UP => Some(CollectiveError::GaveUp { rank }),
        STALLED => {
            let seconds = f64::from(word as u32) / 1000.0;
            Some(CollectiveError::Stalled { rank, seconds })
        }
        DIVERGED => {
            let detail = "a peer found it there".to_owned();
            Some(CollectiveError::Diverged { rank, detail })
        }
        _ => None,
    }
}

/// For how long nothing has changed, in this process's own time: where it was itself stopped, or its
/// machine was, that time does not count against its peers.
#[derive(Debug)]
pub(crate) struct Watch<S> {
    seen: Option<S>,
    still: Duration,
    last: std::time::Instant,
    /// Looks are at most this far apart, unless we were stopped ourselves.
    longest: Duration,
}

impl<S: PartialEq> Watch<S> {
    pub(crate) fn new(longest: Duration) -> Self {
        let last = std::time::Instant::now();
        Self { seen: None, still: Duration::ZERO, last, longest }
    }

    /// Since when the state is what it is `now`.
    pub(crate) fn look(&mut self, now: S) -> Duration {
        let elapsed = self.last.elapsed();
        self.last += elapsed;
        if self.seen.as_ref() == Some(&now) {
            self.still += elapsed.min(self.longest);
        } else {
            self.seen = Some(now);
            self.still = Duration::ZERO;
        }
        self.still
    }
}
