//! From a row of logits to its [`crate::RowResult`], as every host backend does it.

use oarlock_sampler::{Scratch, SegmentStats, log_sum_exp_of_row, sample, score};
use oarlock_types::{SlotError, TokenId, TokenScore};

use crate::record::{LogitRecord, LogitRecordKind};

/// Memory reused from row to row.
#[derive(Debug, Default)]
pub struct OutcomeScratch {
    sampler: Scratch,
    segments: Vec<SegmentStats>,
}

/// Samples or scores one row. Inlined, so that a caller's instruction set reaches the loops.
#[inline]
pub fn row_outcome(
    logits: &[f32],
    wanted: &LogitRecord,
    scratch: &mut OutcomeScratch,
) -> Result<(TokenId, Option<TokenScore>), SlotError> {
    match &wanted.kind {
        LogitRecordKind::Sample { params, position } => {
            let token = sample(logits, params, *position, &mut scratch.sampler)
                .map_err(|_| SlotError::InvalidLogits)?;
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
