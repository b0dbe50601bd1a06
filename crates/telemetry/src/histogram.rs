//! Histograms whose observations take no lock, and those that an engine counted itself.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use oarlock_types::{HISTOGRAM_BUCKETS, Histogram as Counted};
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::family::MetricConstructor;
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Upper bounds of the buckets, and how many of their units are one of the metric's.
#[derive(Debug, PartialEq)]
pub(crate) struct Scale {
    pub(crate) bounds: &'static [u64],
    pub(crate) units: f64,
}

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;

/// Durations, counted in nanoseconds and written in seconds: from a token to a long answer.
pub(crate) static SECONDS: Scale = Scale {
    bounds: &[
        MS,
        5 * MS / 2,
        5 * MS,
        10 * MS,
        25 * MS,
        50 * MS,
        100 * MS,
        250 * MS,
        500 * MS,
        SECOND,
        5 * SECOND / 2,
        5 * SECOND,
        10 * SECOND,
        30 * SECOND,
        60 * SECOND,
        300 * SECOND,
        1_800 * SECOND,
    ],
    units: 1e9,
};

/// Numbers of tokens of one request.
pub(crate) static TOKENS: Scale = Scale {
    bounds: &[
        1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000,
        200_000, 500_000, 1_000_000,
    ],
    units: 1.0,
};

/// Small numbers: choices, preemptions.
pub(crate) static SMALL: Scale = Scale { bounds: &[0, 1, 2, 5, 10, 20, 50, 100], units: 1.0 };

/// Makes the histograms of a family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OfScale(pub(crate) &'static Scale);

impl MetricConstructor<AtomicHistogram> for OfScale {
    fn new_metric(&self) -> AtomicHistogram {
        AtomicHistogram::new(self.0)
    }
}

/// A histogram that many threads may add to at once: a few atomic additions per value. A scrape may
/// see the count of a value before its sum.
#[derive(Clone)]
pub(crate) struct AtomicHistogram(Arc<Inner>);

struct Inner {
    scale: &'static Scale,
    /// One per bound, and one above them; not summed up.
    counts: Vec<AtomicU64>,
    sum: AtomicU64,
}

impl AtomicHistogram {
    pub(crate) fn new(scale: &'static Scale) -> Self {
        let counts = (0..=scale.bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Inner { scale, counts, sum: AtomicU64::new(0) }))
    }

    /// Adds a value in the scale's units.
    pub(crate) fn observe(&self, value: u64) {
        let bucket = self.0.scale.bounds.partition_point(|bound| *bound < value);
        self.0.counts[bucket].fetch_add(1, Ordering::Relaxed);
        // Wraps after centuries.
        self.0.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// Adds a duration to a histogram of the scale [`SECONDS`].
    pub(crate) fn observe_duration(&self, duration: Duration) {
        self.observe(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }
}

impl fmt::Debug for AtomicHistogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AtomicHistogram").field("counts", &self.0.counts).finish_non_exhaustive()
    }
}

/// Writes counts by bucket as Prometheus has them; the library sums them up.
fn encode(
    mut encoder: MetricEncoder,
    counts: &[u64],
    bounds: &[u64],
    units: f64,
    sum: u64,
) -> fmt::Result {
    let bounds = bounds.iter().map(|bound| *bound as f64 / units).chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds.zip(counts.iter().copied()).collect();
    let total = counts.iter().sum();
    encoder.encode_histogram::<NoLabelSet>(sum as f64 / units, total, &buckets, None)
}

impl EncodeMetric for AtomicHistogram {
    fn encode(&self, encoder: MetricEncoder) -> fmt::Result {
        let counts: Vec<u64> =
            self.0.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let Scale { bounds, units } = *self.0.scale;
        encode(encoder, &counts, bounds, units, self.0.sum.load(Ordering::Relaxed))
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for AtomicHistogram {
    const TYPE: MetricType = MetricType::Histogram;
}

/// A histogram as an engine's status brings it.
#[derive(Clone, Debug)]
pub(crate) struct EngineHistogram {
    pub(crate) counted: Counted,
    pub(crate) bounds: &'static [u64; HISTOGRAM_BUCKETS - 1],
    pub(crate) units: f64,
}

impl EngineHistogram {
    pub(crate) fn encode(&self, encoder: MetricEncoder) -> fmt::Result {
        encode(encoder, &self.counted.counts, self.bounds, self.units, self.counted.sum)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::exposition::Format;

    fn written(metric: impl prometheus_client::registry::Metric) -> String {
        let mut registry = Registry::default();
        registry.register("h", "Help", metric);
        Format::OpenMetrics.encode(&[&registry])
    }

    #[test]
    fn bounds_rise() {
        for scale in [&SECONDS, &TOKENS, &SMALL] {
            assert!(scale.bounds.is_sorted_by(|a, b| a < b), "{scale:?}");
        }
    }

    #[test]
    fn values_fall_into_the_first_bucket_that_holds_them() {
        let histogram = AtomicHistogram::new(&SECONDS);
        histogram.observe_duration(Duration::from_millis(1));
        histogram.observe_duration(Duration::from_micros(1001));
        histogram.observe_duration(Duration::from_hours(2));
        let text = written(histogram);
        for line in [
            r#"h_bucket{le="0.001"} 1"#,
            r#"h_bucket{le="0.0025"} 2"#,
            r#"h_bucket{le="1800.0"} 2"#,
            r#"h_bucket{le="+Inf"} 3"#,
            "h_count 3",
            "h_sum 7200.002001",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
    }
}
