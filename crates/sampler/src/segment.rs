//! Log-sum-exp over fixed segments of the vocabulary.

use crate::math::{exp, ln};

/// Tokens of one segment. The last one of a vocabulary may be shorter.
pub const SEGMENT: usize = 1024;

/// Independent sums inside a segment: a token adds to the lane of its index modulo this.
pub const LANES: usize = 16;

/// What one segment adds to the log-sum-exp of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SegmentStats {
    /// Greatest logit.
    pub max: f32,
    /// Sum of `exp(logit - max)`; 0 where `max` is negative infinity; NaN if a logit is a NaN or
    /// positive infinity.
    pub sum: f32,
}

/// Statistics of one segment: each of [`LANES`] lanes sums its tokens in order, then lanes 8, 4, 2
/// and 1 apart are joined. A short segment behaves as if padded with negative infinity.
///
/// # Panics
/// If there are more than [`SEGMENT`] logits.
#[inline]
pub fn segment_stats(logits: &[f32]) -> SegmentStats {
    assert!(logits.len() <= SEGMENT, "a segment has at most {SEGMENT} logits");
    let (max, nan) = max_and_nan(logits);
    if nan {
        return SegmentStats { max, sum: f32::NAN };
    }
    if max == f32::NEG_INFINITY {
        return SegmentStats { max, sum: 0.0 };
    }
    let mut lanes = [0.0_f32; LANES];
    let mut whole = logits.chunks_exact(LANES);
    for chunk in &mut whole {
        for (lane, logit) in lanes.iter_mut().zip(chunk) {
            *lane += exp(logit - max);
        }
    }
    for (lane, logit) in lanes.iter_mut().zip(whole.remainder()) {
        *lane += exp(logit - max);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    SegmentStats { max, sum: lanes[0] }
}

/// Greatest logit, NaNs aside, and whether there is a NaN.
#[inline]
pub(crate) fn max_and_nan(logits: &[f32]) -> (f32, bool) {
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut nan = [false; LANES];
    let mut whole = logits.chunks_exact(LANES);
    for chunk in &mut whole {
        for i in 0..LANES {
            max[i] = if chunk[i] > max[i] { chunk[i] } else { max[i] };
            nan[i] |= chunk[i].is_nan();
        }
    }
    for (i, &logit) in whole.remainder().iter().enumerate() {
        max[i] = if logit > max[i] { logit } else { max[i] };
        nan[i] |= logit.is_nan();
    }
    let greatest = max.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
    (greatest, nan.contains(&true))
}

/// Log-sum-exp of a row from the statistics of its segments, joined in order in f64: with M the
/// greatest maximum, `M + ln(Σ sum · exp(max - M))`, rounded to f32 at the end.
///
/// NaN if a segment's sum is; negative infinity if there is no finite logit.
pub fn log_sum_exp(segments: &[SegmentStats]) -> f32 {
    let mut max = f32::NEG_INFINITY;
    for segment in segments {
        max = if segment.max > max { segment.max } else { max };
    }
    let mut total = 0.0_f64;
    for segment in segments {
        if segment.max == f32::NEG_INFINITY {
            total += f64::from(segment.sum);
        } else {
            total += f64::from(segment.sum) * f64::from(exp(segment.max - max));
        }
    }
    if total == 0.0 {
        return f32::NEG_INFINITY;
    }
    (f64::from(max) + ln(total)) as f32
}

/// Log-sum-exp of a whole row; `segments` is memory to reuse.
#[inline]
pub fn log_sum_exp_of_row(logits: &[f32], segments: &mut Vec<SegmentStats>) -> f32 {
    segments.clear();
    segments.extend(logits.chunks(SEGMENT).map(segment_stats));
    log_sum_exp(segments)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox4x32_10;

    fn row(len: usize, spread: f32) -> Vec<f32> {
        (0..len)
            .map(|i| (philox4x32_10([i as u32, 0, 0, 0], [5, 5])[0] as f32 / 2e9 - 1.0) * spread)
            .collect()
    }

    #[test]
    fn agrees_with_f64() {
        for (len, spread) in [(1, 1.0), (15, 3.0), (1024, 10.0), (1025, 30.0), (151_936, 12.0)] {
            let logits = row(len, spread);
            let max = logits.iter().copied().fold(f32::MIN, f32::max);
            let want = f64::from(max)
                + logits.iter().map(|&l| (f64::from(l) - f64::from(max)).exp()).sum::<f64>().ln();
            let got = log_sum_exp_of_row(&logits, &mut Vec::new());
            assert!((f64::from(got) - want).abs() < 4e-6 * want.abs().max(1.0), "{got} {want}");
        }
    }

    #[test]
    fn padding_a_segment_changes_nothing() {
        let mut logits = row(700, 8.0);
        let short = segment_stats(&logits);
        logits.resize(SEGMENT, f32::NEG_INFINITY);
        assert_eq!(segment_stats(&logits), short);
    }

    #[test]
    fn segments_may_be_computed_in_any_order() {
        let logits = row(10_000, 8.0);
        let forward: Vec<_> = logits.chunks(SEGMENT).map(segment_stats).collect();
        let mut backward: Vec<_> = logits.chunks(SEGMENT).rev().map(segment_stats).collect();
        backward.reverse();
        assert_eq!(log_sum_exp(&forward).to_bits(), log_sum_exp(&backward).to_bits());
    }

    #[test]
    fn infinities_and_nan() {
        let mut logits = vec![f32::NEG_INFINITY; 3000];
        let mut segments = Vec::new();
        assert_eq!(log_sum_exp_of_row(&logits, &mut segments), f32::NEG_INFINITY);
        logits[2000] = 1.5;
        assert_eq!(log_sum_exp_of_row(&logits, &mut segments), 1.5);
        logits[10] = f32::NAN;
        assert!(log_sum_exp_of_row(&logits, &mut segments).is_nan());
        logits[10] = f32::INFINITY;
        assert!(log_sum_exp_of_row(&logits, &mut segments).is_nan());
    }
}
