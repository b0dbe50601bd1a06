//! When requests arrive in an open loop: intervals of a gamma process, Poisson at burstiness 1.

use std::time::Duration;

use crate::options::Arrivals;
use crate::random::Random;

/// Salt of the stream of intervals, so that it shares no numbers with prompts.
const STREAM: u64 = 0x4152_5249_5645;

/// Endless times of arrival, counted from the start of a run, never falling.
#[derive(Clone, Debug)]
pub(crate) struct ArrivalTimes {
    random: Random,
    arrivals: Arrivals,
    now_s: f64,
}

impl ArrivalTimes {
    pub(crate) fn new(arrivals: Arrivals, seed: u64, run: u64) -> Self {
        Self { random: Random::new(&[STREAM, seed, run]), arrivals, now_s: 0.0 }
    }
}

impl Iterator for ArrivalTimes {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let Arrivals { requests_per_s, burstiness } = self.arrivals;
        if requests_per_s.is_finite() {
            // Shape b and scale 1 / (rate · b): the mean is 1 / rate for every burstiness.
            self.now_s += self.random.gamma(burstiness) / (requests_per_s * burstiness);
        }
        // Centuries are as good as never, and fit.
        Some(Duration::from_secs_f64(self.now_s.min(1e10)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean and squared coefficient of variation of the first `n` intervals.
    fn intervals(rate: f64, burstiness: f64, n: usize) -> (f64, f64) {
        let arrivals = Arrivals { requests_per_s: rate, burstiness };
        let times: Vec<f64> =
            ArrivalTimes::new(arrivals, 3, 0).take(n + 1).map(|time| time.as_secs_f64()).collect();
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.iter().all(|gap| *gap >= 0.0));
        let mean = gaps.iter().sum::<f64>() / n as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / n as f64;
        (mean, variance / (mean * mean))
    }

    #[test]
    fn intervals_have_the_rate_and_the_burstiness() {
        // The squared coefficient of variation of a gamma distribution is 1 / shape.
        for (rate, burstiness) in [(5.0, 1.0), (200.0, 1.0), (5.0, 0.5), (5.0, 4.0)] {
            let (mean, variation) = intervals(rate, burstiness, 50_000);
            assert!((mean * rate - 1.0).abs() < 0.03, "{rate} {burstiness}: mean {mean}");
            assert!((variation * burstiness - 1.0).abs() < 0.08, "{burstiness}: {variation}");
        }
    }

    #[test]
    fn arrivals_of_a_poisson_process_per_second_vary_as_they_should() {
        let arrivals = Arrivals { requests_per_s: 10.0, burstiness: 1.0 };
        let mut counts = vec![0_u32; 2_000];
        for time in ArrivalTimes::new(arrivals, 9, 1) {
            let Some(count) = counts.get_mut(time.as_secs() as usize) else { break };
            *count += 1;
        }
        let mean = f64::from(counts.iter().sum::<u32>()) / 2_000.0;
        let variance =
            counts.iter().map(|count| (f64::from(*count) - mean).powi(2)).sum::<f64>() / 2_000.0;
        // The index of dispersion of a Poisson process is 1, here within four standard errors.
        assert!((mean - 10.0).abs() < 0.3, "{mean}");
        assert!((variance / mean - 1.0).abs() < 0.13, "{}", variance / mean);
    }

    #[test]
    fn an_infinite_rate_sends_all_at_once_and_a_seed_repeats_itself() {
        let all = Arrivals { requests_per_s: f64::INFINITY, burstiness: 1.0 };
        assert!(ArrivalTimes::new(all, 1, 0).take(100).all(|time| time.is_zero()));
        let arrivals = Arrivals { requests_per_s: 3.0, burstiness: 0.7 };
        let times =
            |seed, run| -> Vec<_> { ArrivalTimes::new(arrivals, seed, run).take(50).collect() };
        assert_eq!(times(1, 0), times(1, 0));
        assert_ne!(times(1, 0), times(2, 0));
        assert_ne!(times(1, 0), times(1, 1));
    }
}
