//! What one key has used: token buckets and a count of running requests.
//!
//! A bucket holds as much as one minute allows, is refilled evenly, and refuses when it is empty.
//! What a request will cost in tokens is known only at its end: it may leave the bucket in debt, and
//! the key then waits until that is paid.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// When a client whose requests are all still running should ask again: nobody knows when one ends.
const PARALLEL_RETRY: Duration = Duration::from_secs(1);

/// What a key may use; `None` is without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests per minute.
    pub requests_per_minute: Option<NonZeroU32>,
    /// Tokens per minute, of prompts and answers.
    pub tokens_per_minute: Option<NonZeroU32>,
    /// Requests at the same time.
    pub max_parallel: Option<NonZeroU32>,
}

/// What there is too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quota {
    /// Requests in a minute.
    Requests,
    /// Tokens in a minute.
    Tokens,
    /// Requests at the same time.
    Parallel,
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Requests => "requests per minute",
            Self::Tokens => "tokens per minute",
            Self::Parallel => "requests at the same time",
        })
    }
}

/// A key has used up what it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this key may have {limit} {quota}; try again in {} s", self.retry_after_seconds())]
pub struct OverQuota {
    /// What there is too much of.
    pub quota: Quota,
    /// How much the key may have.
    pub limit: u32,
    /// When to ask again.
    pub retry_after: Duration,
}

impl OverQuota {
    /// For a header: whole seconds, at least 1.
    pub fn retry_after_seconds(&self) -> u32 {
        let seconds = self.retry_after.as_secs_f64().ceil();
        (seconds as u32).max(1)
    }
}

#[derive(Debug, Default)]
struct Bucket {
    level: f64,
    /// When `level` was right; `None` before the first use, when the bucket is full.
    updated: Option<Instant>,
}

impl Bucket {
    fn refill(&mut self, per_minute: NonZeroU32, now: Instant) {
        let capacity = f64::from(per_minute.get());
        self.level = match self.updated {
            None => capacity,
            Some(updated) => {
                let elapsed = now.saturating_duration_since(updated).as_secs_f64();
                (self.level + elapsed * capacity / 60.0).min(capacity)
            }
        };
        self.updated = self.updated.max(Some(now));
    }

    /// How long until there is a whole unit; `None` where there is one.
    fn wait(&self, per_minute: NonZeroU32) -> Option<Duration> {
        let missing = 1.0 - self.level;
        (missing > 0.0).then(|| {
            Duration::from_secs_f64((missing * 60.0 / f64::from(per_minute.get())).min(1e9))
        })
    }
}

#[derive(Debug, Default)]
struct Used {
    running: u32,
    requests: Bucket,
    tokens: Bucket,
}

/// What one key has used. It outlives reloads of the file.
#[derive(Debug, Default)]
pub(crate) struct Meter(Mutex<Used>);

/// One running request of a key. Dropping it ends the request.
#[derive(Debug)]
pub struct Permit {
    /// `None` where there are no keys, and so no limits.
    meter: Option<Arc<Meter>>,
}

impl Permit {
    pub(crate) fn without_key() -> Self {
        Self { meter: None }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(meter) = &self.meter {
            meter.lock().running -= 1;
        }
    }
}

impl Meter {
    fn lock(&self) -> MutexGuard<'_, Used> {
        // Every change under the lock is a single step: what another thread left is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one request, or takes nothing and says why.
    pub(crate) fn admit(
        self: &Arc<Self>,
        limits: &Limits,
        now: Instant,
    ) -> Result<Permit, OverQuota> {
        let mut used = self.lock();
        if let Some(limit) = limits.max_parallel.filter(|limit| used.running >= limit.get()) {
            let retry_after = PARALLEL_RETRY;
            return Err(OverQuota { quota: Quota::Parallel, limit: limit.get(), retry_after });
        }
        if let Some(limit) = limits.tokens_per_minute {
            used.tokens.refill(limit, now);
            if let Some(retry_after) = used.tokens.wait(limit) {
                return Err(OverQuota { quota: Quota::Tokens, limit: limit.get(), retry_after });
            }
        }
        if let Some(limit) = limits.requests_per_minute {
            used.requests.refill(limit, now);
            if let Some(retry_after) = used.requests.wait(limit) {
                return Err(OverQuota { quota: Quota::Requests, limit: limit.get(), retry_after });
            }
            used.requests.level -= 1.0;
        }
        used.running += 1;
        Ok(Permit { meter: Some(Arc::clone(self)) })
    }

    /// Counts tokens that a request has used.
    pub(crate) fn charge(&self, limits: &Limits, tokens: u32, now: Instant) {
        if let Some(limit) = limits.tokens_per_minute {
            let mut used = self.lock();
            used.tokens.refill(limit, now);
            used.tokens.level -= f64::from(tokens);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn limits(requests: u32, tokens: u32, parallel: u32) -> Limits {
        Limits {
            requests_per_minute: NonZeroU32::new(requests),
            tokens_per_minute: NonZeroU32::new(tokens),
            max_parallel: NonZeroU32::new(parallel),
        }
    }

    fn after(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn requests_per_minute_are_a_bucket() {
        let (meter, start) = (Arc::new(Meter::default()), Instant::now());
        let limits = limits(3, 0, 0);
        for _ in 0..3 {
            meter.admit(&limits, start).unwrap();
        }
        let refused = meter.admit(&limits, start).unwrap_err();
        assert_eq!((refused.quota, refused.limit), (Quota::Requests, 3));
        assert_eq!(refused.retry_after_seconds(), 20);
        // A refusal costs nothing: after exactly the announced time there is one, and only one.
        meter.admit(&limits, after(start, 20.0)).unwrap();
        assert_eq!(meter.admit(&limits, after(start, 21.0)).unwrap_err().retry_after_seconds(), 19);
        // However long the rest, it holds no more than one minute's worth.
        for _ in 0..3 {
            meter.admit(&limits, after(start, 10_000.0)).unwrap();
        }
        meter.admit(&limits, after(start, 10_000.0)).unwrap_err();
    }

    #[test]
    fn tokens_may_be_overdrawn_once_and_are_paid_back() {
        let (meter, start) = (Arc::new(Meter::default()), Instant::now());
        let limits = limits(0, 60, 0);
        drop(meter.admit(&limits, start).unwrap());
        meter.charge(&limits, 90, start);
        let refused = meter.admit(&limits, start).unwrap_err();
        assert_eq!((refused.quota, refused.limit), (Quota::Tokens, 60));
        assert_eq!(refused.retry_after_seconds(), 31);
        meter.admit(&limits, after(start, 30.5)).unwrap_err();
        meter.admit(&limits, after(start, 31.0)).unwrap();
    }

    #[test]
    fn a_permit_counts_until_it_is_dropped() {
        let (meter, now) = (Arc::new(Meter::default()), Instant::now());
        let limits = limits(0, 0, 2);
        let first = meter.admit(&limits, now).unwrap();
        let _second = meter.admit(&limits, now).unwrap();
        let refused = meter.admit(&limits, now).unwrap_err();
        assert_eq!((refused.quota, refused.retry_after_seconds()), (Quota::Parallel, 1));
        drop(first);
        meter.admit(&limits, now).unwrap();
    }

    #[test]
    fn a_limit_that_comes_later_begins_full_and_a_lower_one_takes_effect() {
        let (meter, start) = (Arc::new(Meter::default()), Instant::now());
        meter.charge(&limits(0, 0, 0), 1_000, start);
        meter.admit(&limits(0, 10, 0), start).unwrap();
        for _ in 0..100 {
            meter.admit(&limits(100, 0, 0), start).unwrap();
        }
        // Lowered: what has been refilled since counts up to the new limit only.
        let later = after(start, 60.0);
        meter.admit(&limits(2, 0, 0), later).unwrap();
        meter.admit(&limits(2, 0, 0), later).unwrap();
        meter.admit(&limits(2, 0, 0), later).unwrap_err();
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_gives_nothing() {
        let (meter, start) = (Arc::new(Meter::default()), Instant::now());
        let limits = limits(1, 0, 0);
        meter.admit(&limits, after(start, 100.0)).unwrap();
        meter.admit(&limits, start).unwrap_err();
        meter.admit(&limits, after(start, 100.0)).unwrap_err();
        meter.admit(&limits, after(start, 160.0)).unwrap();
    }

    proptest! {
        /// In any stretch of time a bucket lets through at most one minute's worth plus what that
        /// stretch refills, and what it refuses it takes after the time that it announced.
        #[test]
        fn a_bucket_keeps_its_rate(limit in 1_u32..500, gaps in prop::collection::vec(0.0..30.0_f64, 1..200)) {
            let (meter, start) = (Arc::new(Meter::default()), Instant::now());
            let limits = limits(limit, 0, 0);
            let (mut now, mut taken) = (0.0, 0_u32);
            for gap in gaps {
                now += gap;
                match meter.admit(&limits, after(start, now)) {
                    Ok(_) => taken += 1,
                    Err(refused) => {
                        prop_assert_eq!(refused.quota, Quota::Requests);
                        now += refused.retry_after.as_secs_f64() + 1e-6;
                        prop_assert!(meter.admit(&limits, after(start, now)).is_ok());
                        taken += 1;
                    }
                }
                let most = f64::from(limit) * (1.0 + now / 60.0);
                prop_assert!(f64::from(taken) <= most + 1e-3, "{} > {}", taken, most);
            }
        }
    }
}
