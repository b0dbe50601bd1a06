//! What happens on one connection, and when its patience ends.
//!
//! Pure bookkeeping over times that are passed in. A request counts from the call of the service to
//! the drop of its answer's body. An answer is *stalled* when it gave a piece and was not asked for
//! the next: only what lies between it and the client, and so the client, can be the reason.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::connection::Slot;

/// How long a client may do nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// From the first byte of a head to its last; before the first request also until its first byte.
    pub(crate) header: Duration,
    /// Between two requests.
    pub(crate) idle: Duration,
    /// With a piece of an answer waiting for it.
    pub(crate) write: Duration,
}

impl Patience {
    /// How often to look: whatever begins meanwhile is noticed at most half its time late.
    pub(crate) fn interval(&self) -> Duration {
        self.header.min(self.idle).min(self.write) / 2
    }
}

/// Whose patience has ended.
#[derive(Debug)]
pub(crate) enum Overdue {
    /// A head, or the first byte of the first one, did not come.
    Header,
    /// No request came.
    Idle,
    /// These answers are not taken.
    Answers(Vec<Slot>),
}

/// One connection.
#[derive(Clone, Debug)]
pub(crate) struct Activity(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Over HTTP/2, bytes without a request are not the beginning of one: pings come at any time.
    is_http2: bool,
    /// Whether there was a request.
    has_begun: bool,
    active: usize,
    head_since: Option<Instant>,
    idle_since: Instant,
    next_answer: u64,
    /// Answers that have given a piece and were not asked again, by number.
    given: BTreeMap<u64, (Instant, Slot)>,
}

/// A request in flight; dropping it ends it.
#[derive(Debug)]
pub(crate) struct InFlight {
    activity: Activity,
    answer: u64,
}

impl Activity {
    /// A connection that was opened at `now`.
    pub(crate) fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(State {
            is_http2: false,
            has_begun: false,
            active: 0,
            head_since: None,
            idle_since: now,
            next_answer: 0,
            given: BTreeMap::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes came.
    pub(crate) fn received(&self) {
        let mut state = self.lock();
        if state.active == 0 && !state.is_http2 && state.head_since.is_none() {
            state.head_since = Some(Instant::now());
        }
    }

    /// A whole head came.
    pub(crate) fn begin(&self, is_http2: bool) -> InFlight {
        let mut state = self.lock();
        state.is_http2 = is_http2;
        state.has_begun = true;
        state.head_since = None;
        state.active += 1;
        state.next_answer += 1;
        InFlight { activity: self.clone(), answer: state.next_answer }
    }

    /// Whether a request is in flight.
    pub(crate) fn is_active(&self) -> bool {
        self.lock().active > 0
    }

    /// Whose patience has ended at `now`, or when to look again.
    pub(crate) fn overdue(&self, patience: &Patience, now: Instant) -> Result<Overdue, Instant> {
        let mut state = self.lock();
        let stalled = |since: Instant| since + patience.write <= now;
        let late: Vec<u64> = state
            .given
            .iter()
            .filter(|(_, (since, _))| stalled(*since))
            .map(|(answer, _)| *answer)
            .collect();
        if !late.is_empty() {
            let slots = late.iter().filter_map(|answer| state.given.remove(answer));
            return Ok(Overdue::Answers(slots.map(|(_, slot)| slot).collect()));
        }
        let mut next = now + patience.interval();
        if let Some(first) = state.given.values().map(|(since, _)| *since).min() {
            next = next.min(first + patience.write);
        }
        if state.active == 0 {
            let (deadline, overdue) = match state.head_since {
                Some(since) => (since + patience.header, Overdue::Header),
                None if state.has_begun => (state.idle_since + patience.idle, Overdue::Idle),
                None => (state.idle_since + patience.header, Overdue::Header),
            };
            if deadline <= now {
                return Ok(overdue);
            }
            next = next.min(deadline);
        }
        Err(next)
    }
}

impl InFlight {
    /// The answer gave a piece.
    pub(crate) fn gave(&self, slot: &Slot) {
        let given = (Instant::now(), Arc::clone(slot));
        self.activity.lock().given.insert(self.answer, given);
    }

    /// The answer is asked for its next piece.
    pub(crate) fn asked(&self) {
        self.activity.lock().given.remove(&self.answer);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = self.activity.lock();
        state.active -= 1;
        if state.active == 0 {
            state.idle_since = Instant::now();
        }
        let given = state.given.remove(&self.answer);
        drop(state);
        // Perhaps the last handle to the answer: not under the lock.
        drop(given);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const PATIENCE: Patience = Patience {
        header: Duration::from_secs(30),
        idle: Duration::from_secs(100),
        write: Duration::from_mins(1),
    };

    fn check(activity: &Activity) -> Result<Overdue, Duration> {
        let now = Instant::now();
        activity.overdue(&PATIENCE, now).map_err(|next| next - now)
    }

    #[tokio::test(start_paused = true)]
    async fn heads_have_their_time_from_the_first_byte_on() {
        let activity = Activity::new(Instant::now());
        advance(29 * SECOND).await;
        assert_eq!(check(&activity).unwrap_err(), SECOND);
        // More and more bytes give no more time.
        for _ in 0..2 {
            activity.received();
            advance(14 * SECOND).await;
        }
        assert_eq!(check(&activity).unwrap_err(), 2 * SECOND);
        advance(2 * SECOND).await;
        assert!(matches!(check(&activity), Ok(Overdue::Header)));
        let silent = Activity::new(Instant::now());
        advance(30 * SECOND).await;
        assert!(matches!(check(&silent), Ok(Overdue::Header)));
    }

    #[tokio::test(start_paused = true)]
    async fn between_requests_a_connection_may_be_idle() {
        let activity = Activity::new(Instant::now());
        let first = activity.begin(false);
        let second = activity.begin(false);
        advance(500 * SECOND).await;
        assert_eq!(check(&activity).unwrap_err(), 15 * SECOND);
        drop(first);
        assert!(activity.is_active() && check(&activity).is_err());
        drop(second);
        advance(99 * SECOND).await;
        assert_eq!(check(&activity).unwrap_err(), SECOND);
        advance(SECOND).await;
        assert!(matches!(check(&activity), Ok(Overdue::Idle)));
        activity.received();
        advance(30 * SECOND).await;
        assert!(matches!(check(&activity), Ok(Overdue::Header)));
    }

    #[tokio::test(start_paused = true)]
    async fn pings_over_http2_are_no_heads() {
        let activity = Activity::new(Instant::now());
        drop(activity.begin(true));
        for _ in 0..9 {
            advance(11 * SECOND).await;
            activity.received();
            assert!(check(&activity).is_err());
        }
        advance(SECOND).await;
        assert!(matches!(check(&activity), Ok(Overdue::Idle)));
    }

    #[tokio::test(start_paused = true)]
    async fn answers_that_are_not_taken_are_found() {
        let activity = Activity::new(Instant::now());
        let (slow, quick) = (activity.begin(true), activity.begin(true));
        let slot = Slot::default();
        slow.gave(&slot);
        advance(59 * SECOND).await;
        quick.gave(&slot);
        assert_eq!(check(&activity).unwrap_err(), SECOND);
        slow.asked();
        quick.asked();
        advance(500 * SECOND).await;
        assert!(check(&activity).is_err(), "the server itself is slow");
        slow.gave(&slot);
        quick.gave(&slot);
        quick.asked();
        advance(60 * SECOND).await;
        let Ok(Overdue::Answers(late)) = check(&activity) else { panic!("an answer is stalled") };
        assert_eq!(late.len(), 1);
        assert!(check(&activity).is_err(), "said once");
        drop((slow, quick, late));
        assert_eq!(Arc::strong_count(&slot), 1);
    }
}
