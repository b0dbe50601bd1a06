//! How fast the waiting queue drains, for `Retry-After`.

use oarlock_types::Tick;

/// Length of a window.
const WINDOW_US: u64 = 1_000_000;
/// A new window's weight is 1/16 (and 1/n in the first ones): the past fades within about 16 s.
const WEIGHT: u64 = 16;
/// Windows without a call, at most, that are looked at: after more, nothing is left of the past.
const MAX_MISSED: u64 = 128;
/// Fixed point of rates.
const SCALE: u64 = 1 << 20;
/// No client is told to come back earlier.
pub(crate) const MIN_RETRY_MS: u32 = 1_000;
/// No client is told to come back later.
pub(crate) const MAX_RETRY_MS: u32 = 60_000;

/// Requests, or tokens of requests.
#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    /// In the present window.
    count: u64,
    /// In one window, times [`SCALE`]; an exponentially weighted mean.
    mean: u64,
}

/// Rates at which requests and their tokens leave the queue for the first time.
///
/// Time is cut into windows of one second. At the end of each, `mean += (count − mean) / 16`; the
/// first 16 windows weigh 1/n instead, so that the mean does not begin at 0. Windows in which nothing
/// stayed waiting are left out, since they say how much came and not how much could be done. All in
/// integers, so that it is the same on every machine.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DrainRate {
    /// Begin of the present window; `None` before the first call.
    begin: Option<Tick>,
    /// Whether something stayed waiting in the present window.
    is_backlogged: bool,
    /// Windows that the means are made of, [`WEIGHT`] at most.
    num_windows: u64,
    requests: Rate,
    tokens: Rate,
}

impl DrainRate {
    /// Notes the time, and whether anything waits now.
    pub(crate) fn advance(&mut self, now: Tick, waits: bool) {
        let begin = self.begin.get_or_insert(now);
        let num_over = now.0.saturating_sub(begin.0) / WINDOW_US;
        begin.0 += num_over * WINDOW_US;
        if num_over > 0 {
            self.close_window();
            self.is_backlogged = waits;
            for _ in 1..num_over.min(MAX_MISSED) {
                self.close_window();
                self.is_backlogged = waits;
            }
        }
        self.is_backlogged |= waits;
    }

    fn close_window(&mut self) {
        if self.is_backlogged {
            self.num_windows = WEIGHT.min(self.num_windows + 1);
        }
        for rate in [&mut self.requests, &mut self.tokens] {
            let count = u128::from(std::mem::take(&mut rate.count)) * u128::from(SCALE);
            if self.is_backlogged {
                let n = u128::from(self.num_windows);
                let mean = (u128::from(rate.mean) * (n - 1) + count) / n;
                rate.mean = u64::try_from(mean).unwrap_or(u64::MAX);
            }
        }
        self.is_backlogged = false;
    }

    /// Notes a request with this many tokens that left the queue for the first time.
    pub(crate) fn note(&mut self, num_tokens: u32) {
        self.requests.count += 1;
        self.tokens.count += u64::from(num_tokens);
    }

    /// Milliseconds until this many more requests have left.
    pub(crate) fn until_requests(&self, excess: u64) -> u32 {
        self.until(self.requests, excess)
    }

    /// Milliseconds until requests with this many more tokens have left.
    pub(crate) fn until_tokens(&self, excess: u64) -> u32 {
        self.until(self.tokens, excess)
    }

    /// `excess / rate`, within the bounds; the lower one while no rate is known.
    fn until(&self, rate: Rate, excess: u64) -> u32 {
        if self.num_windows == 0 {
            return MIN_RETRY_MS;
        }
        if rate.mean == 0 {
            return MAX_RETRY_MS;
        }
        let scaled = u128::from(excess) * u128::from(SCALE * WINDOW_US / 1000);
        let milliseconds = scaled / u128::from(rate.mean);
        milliseconds.clamp(MIN_RETRY_MS.into(), MAX_RETRY_MS.into()) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(n: u64) -> Tick {
        Tick(n * WINDOW_US)
    }

    #[test]
    fn the_wait_is_the_excess_over_the_rate() {
        let mut drain = DrainRate::default();
        drain.advance(second(0), true);
        assert_eq!(drain.until_requests(100), MIN_RETRY_MS, "nothing is known yet");
        for n in 1..40 {
            for _ in 0..4 {
                drain.note(500);
            }
            drain.advance(second(n), true);
        }
        assert_eq!(drain.until_requests(10), 2_500);
        assert_eq!(drain.until_tokens(20_000), 10_000);
        assert_eq!(drain.until_requests(1), MIN_RETRY_MS);
        assert_eq!(drain.until_requests(1_000_000), MAX_RETRY_MS);
        assert_eq!(drain.until_tokens(u64::MAX), MAX_RETRY_MS);
    }

    #[test]
    fn a_queue_that_stands_still_is_noticed_and_an_empty_one_says_nothing() {
        let mut drain = DrainRate::default();
        drain.advance(second(0), true);
        for n in 1..=16 {
            drain.note(100);
            drain.note(100);
            drain.advance(second(n), n < 16);
        }
        let before = drain.until_requests(8);
        assert_eq!(before, 4_000);
        // An hour without anything waiting.
        drain.advance(second(3_616), false);
        assert_eq!(drain.until_requests(8), before);
        drain.advance(second(3_617), true);
        drain.advance(second(3_625), true);
        assert!(drain.until_requests(8) > before);
        drain.advance(second(4_000), true);
        assert_eq!(drain.until_requests(8), MAX_RETRY_MS);
    }
}
