//! Rows of logits to results, through the sampler, compiled for each instruction set.

use std::panic::{AssertUnwindSafe, catch_unwind};

use oarlock_backend::{LogitRecord, OutcomeScratch, RowResult, row_outcome};
use oarlock_types::SlotError;

use crate::isa::{Isa, multiversion};
use crate::lanes::Lanes;
use crate::threads::panic_message;

/// Samples or scores one row. A panic fails this row alone.
pub(crate) fn sample_row(
    isa: Isa,
    logits: &[f32],
    wanted: &LogitRecord,
    scratch: &mut OutcomeScratch,
    result: &mut RowResult,
) {
    if catch_unwind(AssertUnwindSafe(|| outcome(isa, logits, wanted, scratch, result))).is_err_and(
        |panic| {
            result.outcome = Err(SlotError::Panicked(panic_message(&*panic)));
            true
        },
    ) {
        *scratch = OutcomeScratch::default();
    }
}

multiversion! {
    fn outcome = outcome_generic(
        logits: &[f32], wanted: &LogitRecord, scratch: &mut OutcomeScratch, result: &mut RowResult,
    );
}

/// The sampler's loops are plain and inlined: the instruction set of the caller vectorizes them.
#[inline(always)]
fn outcome_generic<L: Lanes>(
    logits: &[f32],
    wanted: &LogitRecord,
    scratch: &mut OutcomeScratch,
    result: &mut RowResult,
) {
    result.outcome = row_outcome(logits, wanted, scratch);
}
