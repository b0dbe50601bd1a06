//! Rows of logits to results: the sampler's functions, with the loops over the vocabulary in lanes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use oarlock_backend::{LogitRecord, LogitRecordKind, RowResult, StepRecord, slot_error};
use oarlock_sampler::{
    RulesScratch, SEGMENT, SampleError, Scratch, SegmentStats, WEIGHT_BITS, choose, greedy,
    log_sum_exp, row_max, row_max_after_rules, score,
};
use oarlock_types::{SamplingParams, SlotError, TokenId, TokenScore};

use crate::isa::{Isa, multiversion};
use crate::lanes::{LANES, Lanes, exp, load_partial, sum_lanes};
use crate::threads::panic_message;

/// Memory of one thread, reused from row to row.
#[derive(Debug, Default)]
pub(crate) struct SampleScratch {
    sampler: Scratch,
    rules: RulesScratch,
    weights: Vec<u64>,
    segments: Vec<SegmentStats>,
}

impl SampleScratch {
    /// Makes room for rows of up to `vocabulary` logits: a thread that draws its first token late must
    /// not allocate then.
    pub(crate) fn reserve(&mut self, vocabulary: usize) {
        self.sampler.reserve(vocabulary);
        self.rules.reserve(vocabulary);
        self.weights.reserve(vocabulary);
        self.segments.reserve(vocabulary.div_ceil(SEGMENT));
    }
}

/// Samples or scores one row. A panic fails this row alone.
pub(crate) fn sample_row(
    isa: Isa,
    logits: &[f32],
    step: &StepRecord,
    wanted: &LogitRecord,
    scratch: &mut SampleScratch,
    result: &mut RowResult,
) {
    result.outcome =
        match catch_unwind(AssertUnwindSafe(|| outcome(isa, logits, step, wanted, scratch))) {
            Ok(outcome) => outcome,
            Err(panic) => {
                *scratch = SampleScratch::default();
                Err(SlotError::Panicked(panic_message(&*panic)))
            }
        };
}

fn outcome(
    isa: Isa,
    logits: &[f32],
    step: &StepRecord,
    wanted: &LogitRecord,
    scratch: &mut SampleScratch,
) -> Result<(TokenId, Option<TokenScore>), SlotError> {
    match &wanted.kind {
        LogitRecordKind::Sample { params, position, history } => {
            let SampleScratch { sampler, rules: rules_scratch, weights, .. } = &mut *scratch;
            let mut draw = |row: &[f32]| draw(isa, row, params, *position, weights, sampler);
            let token = match &params.rules {
                None => draw(logits),
                Some(rules) => row_max(logits).and_then(|_| {
                    let row = rules_scratch.apply(logits, rules, step.history(*history));
                    row_max_after_rules(row)?;
                    draw(row)
                }),
            };
            let token = token.map_err(slot_error)?;
            let scored = params
                .top_logprobs
                .map(|top| row_score(isa, logits, token, top, scratch))
                .transpose()?;
            Ok((token, scored))
        }
        LogitRecordKind::Score { token, top } => {
            Ok((*token, Some(row_score(isa, logits, *token, *top, scratch)?)))
        }
    }
}

/// As `oarlock_sampler::sample`: a temperature of NaN counts as 0, and 0 is greedy.
fn draw(
    isa: Isa,
    logits: &[f32],
    params: &SamplingParams,
    position: u32,
    row: &mut Vec<u64>,
    scratch: &mut Scratch,
) -> Result<TokenId, SampleError> {
    if params.temperature.is_nan() || params.temperature <= 0.0 {
        return greedy(logits);
    }
    let max = row_max(logits)?;
    row.resize(logits.len(), 0);
    weights(isa, logits, max, params.temperature, row);
    choose(row, params, position, scratch)
}

fn row_score(
    isa: Isa,
    logits: &[f32],
    token: TokenId,
    top: u8,
    scratch: &mut SampleScratch,
) -> Result<TokenScore, SlotError> {
    scratch.segments.clear();
    scratch.segments.extend(logits.chunks(SEGMENT).map(|segment| segment_stats(isa, segment)));
    let log_sum_exp = log_sum_exp(&scratch.segments);
    if !log_sum_exp.is_finite() {
        return Err(SlotError::InvalidLogits);
    }
    Ok(score(logits, token, top, log_sum_exp))
}

multiversion! {
    /// `oarlock_sampler::weights`, the same bits.
    fn weights = weights_generic(logits: &[f32], max: f32, temperature: f32, out: &mut [u64]);
}

#[inline(always)]
fn weights_generic<L: Lanes>(logits: &[f32], max: f32, temperature: f32, out: &mut [u64]) {
    let (max, temperature) = (L::splat(max), L::splat(temperature));
    for (logits, out) in logits.chunks(LANES).zip(out.chunks_mut(LANES)) {
        let logit = match logits.first_chunk() {
            Some(whole) => L::load(whole),
            None => load_partial(logits, f32::NEG_INFINITY),
        };
        let mut values = [0.0; LANES];
        exp(logit.sub(max).div(temperature)).store(&mut values);
        for (out, value) in out.iter_mut().zip(values) {
            *out = fixed_point(value);
        }
    }
}

/// A float in [0, 1] times 2⁴⁵, truncated; zero for NaN.
#[inline(always)]
fn fixed_point(value: f32) -> u64 {
    let bits = value.to_bits();
    let mantissa = u64::from(bits & 0x007f_ffff | 0x0080_0000);
    let shift = 127_u32.wrapping_sub(bits >> 23).min(63);
    (mantissa << (WEIGHT_BITS - 23)) >> shift
}

multiversion! {
    /// `oarlock_sampler::segment_stats`, the same bits.
    fn segment_stats = segment_stats_generic(logits: &[f32]) -> SegmentStats;
}

#[inline(always)]
fn segment_stats_generic<L: Lanes>(logits: &[f32]) -> SegmentStats {
    let masked = f32::NEG_INFINITY;
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let rest = load_partial::<L>(rest, masked);
    let mut greatest = rest.max(L::splat(masked));
    for chunk in chunks {
        greatest = L::load(chunk).max(greatest);
    }
    let mut values = [0.0; LANES];
    greatest.store(&mut values);
    let max = values.into_iter().fold(masked, |a, b| if b > a { b } else { a });
    if max == masked {
        let sum = if logits.iter().any(|logit| logit.is_nan()) { f32::NAN } else { 0.0 };
        return SegmentStats { max, sum };
    }
    let top = L::splat(max);
    let mut sum = L::splat(0.0);
    for chunk in chunks {
        sum = sum.add(exp(L::load(chunk).sub(top)));
    }
    sum = sum.add(exp(rest.sub(top)));
    SegmentStats { max, sum: sum_lanes(sum) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InstructionSet;
    use oarlock_backend::quant::SplitMix;

    #[test]
    fn the_samplers_bits() {
        let mut random = SplitMix(8);
        for len in [1, 15, 16, 17, 1000, 1024] {
            for bad in [None, Some(f32::NAN), Some(f32::NEG_INFINITY), Some(f32::INFINITY)] {
                let mut logits: Vec<f32> = (0..len).map(|_| random.uniform() * 20.0).collect();
                if let Some(bad) = bad {
                    logits[len / 2] = bad;
                }
                let want = oarlock_sampler::segment_stats(&logits);
                let mut want_weights = vec![0; len];
                oarlock_sampler::weights(&logits, 20.0, 0.7, &mut want_weights);
                for set in InstructionSet::available() {
                    let isa = Isa::new(set).unwrap();
                    let got = segment_stats(isa, &logits);
                    assert_eq!(got.max, want.max, "{set} {len} {bad:?}");
                    assert!(
                        got.sum.to_bits() == want.sum.to_bits()
                            || got.sum.is_nan() && want.sum.is_nan()
                    );
                    let mut got = vec![0; len];
                    weights(isa, &logits, 20.0, 0.7, &mut got);
                    assert_eq!(got, want_weights, "{set} {len} {bad:?}");
                }
            }
        }
    }
}
