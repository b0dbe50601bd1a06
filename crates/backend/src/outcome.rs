//! From a row of logits to its [`crate::RowResult`], as every host backend does it.

use oarlock_sampler::{
    RulesScratch, SampleError, Scratch, SegmentStats, log_sum_exp_of_row, row_max,
    row_max_after_rules, sample, score,
};
use oarlock_types::{SlotError, TokenId, TokenScore};

use crate::record::{LogitRecord, LogitRecordKind, StepRecord};

/// Memory reused from row to row.
#[derive(Debug, Default)]
pub struct OutcomeScratch {
    sampler: Scratch,
    rules: RulesScratch,
    segments: Vec<SegmentStats>,
}

/// Samples or scores one row. Inlined, so that a caller's instruction set reaches the loops.
#[inline]
pub fn row_outcome(
    logits: &[f32],
    step: &StepRecord,
    wanted: &LogitRecord,
    scratch: &mut OutcomeScratch,
) -> Result<(TokenId, Option<TokenScore>), SlotError> {
    match &wanted.kind {
        LogitRecordKind::Sample { params, position, history } => {
            let token = match &params.rules {
                None => sample(logits, params, *position, &mut scratch.sampler),
                Some(rules) => row_max(logits).and_then(|_| {
                    let row = scratch.rules.apply(logits, rules, step.history(*history));
                    row_max_after_rules(row)?;
                    sample(row, params, *position, &mut scratch.sampler)
                }),
            };
            let token = token.map_err(slot_error)?;
            let scored = match params.top_logprobs {
                Some(top) => Some(row_score(logits, token, top, scratch)?),
                None => None,
            };
            Ok((token, scored))
        }
        LogitRecordKind::Score { token, top } => {
            Ok((*token, Some(row_score(logits, *token, *top, scratch)?)))
        }
    }
}

/// Why one row gave no token, as its request hears it.
#[must_use]
pub fn slot_error(error: SampleError) -> SlotError {
    match error {
        SampleError::InvalidLogits => SlotError::InvalidLogits,
        SampleError::NothingAllowed => SlotError::NothingAllowed,
    }
}

#[inline]
fn row_score(
    logits: &[f32],
    token: TokenId,
    top: u8,
    scratch: &mut OutcomeScratch,
) -> Result<TokenScore, SlotError> {
    let log_sum_exp = log_sum_exp_of_row(logits, &mut scratch.segments);
    if !log_sum_exp.is_finite() {
        return Err(SlotError::InvalidLogits);
    }
    Ok(score(logits, token, top, log_sum_exp))
}
