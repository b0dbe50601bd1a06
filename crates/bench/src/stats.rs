//! Samples of one quantity, and what is reported of them.

use serde::Serialize;

use crate::random::Random;

/// Samples that are kept at most: 8 MiB per quantity. Up to here percentiles are exact; beyond, they
/// are those of a uniform sample of this size.
const MAX_KEPT: usize = 1 << 20;

/// Mean and percentiles of a quantity.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Arithmetic mean over all values.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// The largest value.
    pub max: f64,
    /// How many values there were.
    pub count: u64,
}

/// Values with a bound on memory (reservoir sampling, Vitter's Algorithm R, 1985).
#[derive(Clone, Debug)]
pub(crate) struct Samples {
    kept: Vec<f64>,
    max_kept: usize,
    count: u64,
    sum: f64,
    max: f64,
    random: Random,
}

impl Default for Samples {
    fn default() -> Self {
        Self::with_bound(MAX_KEPT)
    }
}

impl Samples {
    fn with_bound(max_kept: usize) -> Self {
        let random = Random::new(&[max_kept as u64]);
        Self { kept: Vec::new(), max_kept, count: 0, sum: 0.0, max: f64::NEG_INFINITY, random }
    }

    pub(crate) fn push(&mut self, value: f64) {
        self.count += 1;
        self.sum += value;
        self.max = self.max.max(value);
        if self.kept.len() < self.max_kept {
            self.kept.push(value);
        } else if let Some(place) = self.kept.get_mut(self.random.below(self.count) as usize) {
            *place = value;
        }
    }

    /// `None` where there is no value.
    pub(crate) fn summary(&self) -> Option<Summary> {
        if self.count == 0 {
            return None;
        }
        let mut sorted = self.kept.clone();
        sorted.sort_by(f64::total_cmp);
        Some(Summary {
            mean: self.sum / self.count as f64,
            p50: percentile(&sorted, 50.0),
            p90: percentile(&sorted, 90.0),
            p99: percentile(&sorted, 99.0),
            max: self.max,
            count: self.count,
        })
    }
}

/// The percentile of ascending values, interpolated between the two nearest as NumPy does by default
/// (Hyndman and Fan's type 7), so that figures compare with those of vLLM's benchmark.
fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let position = percent / 100.0 * (sorted.len() - 1) as f64;
    let (low, high) = (position.floor() as usize, position.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * position.fract()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn percentiles_are_numpys() {
        // numpy.percentile([1, 2, 4, 8, 16], [0, 25, 50, 90, 99, 100])
        let values = [1.0, 2.0, 4.0, 8.0, 16.0];
        for (percent, expected) in
            [(0.0, 1.0), (25.0, 2.0), (50.0, 4.0), (90.0, 12.8), (99.0, 15.68), (100.0, 16.0)]
        {
            assert!((percentile(&values, percent) - expected).abs() < 1e-9, "{percent}");
        }
        assert_eq!(percentile(&[3.0], 99.0), 3.0);
    }

    #[test]
    fn a_summary_is_of_all_values_in_any_order() {
        let mut samples = Samples::default();
        assert_eq!(samples.summary(), None);
        for value in [5.0, 1.0, 3.0, 2.0, 4.0] {
            samples.push(value);
        }
        let summary = samples.summary().expect("values");
        assert_eq!((summary.mean, summary.p50, summary.max, summary.count), (3.0, 3.0, 5.0, 5));
    }

    #[test]
    fn memory_is_bounded_and_the_sample_stays_fair() {
        let mut samples = Samples::with_bound(2_000);
        for value in 0..100_000_u32 {
            samples.push(f64::from(value));
        }
        assert_eq!(samples.kept.len(), 2_000);
        let summary = samples.summary().expect("values");
        assert_eq!((summary.mean, summary.max, summary.count), (49_999.5, 99_999.0, 100_000));
        // Four standard errors of the median of 2,000 uniform values: 4,472 of 100,000.
        assert!((summary.p50 - 50_000.0).abs() < 4_472.0, "{}", summary.p50);
    }

    proptest! {
        #[test]
        fn percentiles_rise_and_stay_inside(
            mut values in prop::collection::vec(-1e6_f64..1e6, 1..200), a in 0.0..100.0, b in 0.0..100.0,
        ) {
            values.sort_by(f64::total_cmp);
            let (low, high) = (f64::min(a, b), f64::max(a, b));
            let (low, high) = (percentile(&values, low), percentile(&values, high));
            prop_assert!(low <= high + 1e-6);
            prop_assert!(values[0] <= low && high <= values[values.len() - 1] + 1e-6);
        }
    }
}
