//! Executes step plans on one backend: from slots and positions to rows, and from rows to results.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use oarlock_backend::{
    Backend, ChunkRows, History, LogitKind, LogitRow, Progress, RowResult, StepInput,
};
use oarlock_model::{Decoder, StepError};
use oarlock_types::{
    BLOCK_TOKENS, Chunk, SampledToken, SlotResult, StepId, StepPlan, StepResult, TokenId,
    WorkerLimits,
};
use thiserror::Error;

use crate::fault::Fault;
pub use crate::slots::PlanError;
use crate::slots::Slots;
use crate::trace::TraceFile;

/// Why a step could not be executed at all; the worker must be replaced.
#[derive(Debug, Error)]
pub enum ExecuteError {
    /// The plan contradicts the worker's state.
    #[error("the plan does not fit this worker: {0}")]
    Plan(#[from] PlanError),
    /// The device failed, or another rank.
    #[error(transparent)]
    Step(#[from] StepError),
}

/// Executes plans; hides which backend it runs on.
pub trait Execute: Send {
    /// Executes one plan; rank 0's result has one entry per chunk, those of other ranks have none.
    fn execute(&mut self, plan: &StepPlan) -> Result<StepResult, ExecuteError>;

    /// The result of a step was handed on.
    fn handed_on(&mut self, step: StepId);
}

/// A model on a backend, and the state of all slots.
pub struct Executor<B: Backend> {
    backend: B,
    model: Decoder<B>,
    limits: WorkerLimits,
    slots: Slots,
    next_step: StepId,
    tokens: Vec<TokenId>,
    chunks: Vec<ChunkRows>,
    /// Memory of the logit rows between steps; always empty there.
    logit_rows: Vec<LogitRow<'static>>,
    row_results: Vec<RowResult>,
    progress: Progress,
    current_step: Arc<AtomicU64>,
    trace: Option<TraceFile>,
    fault: Fault,
}

impl<B: Backend> Executor<B> {
    /// An executor with no running sequence. `limits` are those that `backend` and `model` were
    /// planned for.
    pub fn new(backend: B, model: Decoder<B>, limits: WorkerLimits) -> Self {
        let max_blocks = (limits.max_sequence_tokens as usize).div_ceil(BLOCK_TOKENS);
        Self {
            fault: Fault::default(),
            backend,
            model,
            slots: Slots::new(limits.num_slots as usize, max_blocks, limits.num_blocks),
            limits,
            next_step: StepId(1),
            tokens: Vec::new(),
            chunks: Vec::new(),
            logit_rows: Vec::new(),
            row_results: Vec::new(),
            progress: Progress::default(),
            current_step: Arc::default(),
            trace: None,
        }
    }

    /// Writes checksums of all that it computes.
    #[must_use]
    pub fn with_trace(mut self, trace: TraceFile) -> Self {
        self.model.set_tracer(Box::new(trace.clone()));
        Self { trace: Some(trace), ..self }
    }

    /// Ends the process when a test wants that.
    #[must_use]
    pub(crate) fn with_fault(self, fault: Fault) -> Self {
        Self { fault, ..self }
    }

    /// Tells others that it works, and at which step.
    #[must_use]
    pub fn with_vitals(self, progress: Progress, current_step: Arc<AtomicU64>) -> Self {
        Self { progress, current_step, ..self }
    }

    fn apply(&mut self, plan: &StepPlan) -> Result<(), PlanError> {
        if plan.epoch != self.limits.epoch {
            return Err(PlanError::Epoch { plan: plan.epoch.0, own: self.limits.epoch.0 });
        }
        if plan.step != self.next_step {
            return Err(PlanError::Order { plan: plan.step.0, expected: self.next_step.0 });
        }
        self.next_step.0 += 1;
        plan.release.iter().try_for_each(|slot| self.slots.release(*slot))?;
        plan.start.iter().try_for_each(|start| self.slots.start(start))?;
        plan.blocks.iter().try_for_each(|blocks| self.slots.append_blocks(blocks))?;
        plan.chunks.iter().try_for_each(|chunk| self.slots.check(chunk, plan.step))?;
        let (tokens, limit) = (plan.num_tokens(), self.limits.max_step_tokens as usize);
        if tokens > limit {
            return Err(PlanError::TooMany { what: "tokens", count: tokens, limit });
        }
        let (chunks, limit) = (plan.chunks.len(), self.limits.num_slots as usize);
        if chunks > limit {
            return Err(PlanError::TooMany { what: "chunks", count: chunks, limit });
        }
        Ok(())
    }

    /// Fills rows for every chunk of a healthy slot and runs them.
    fn run(&mut self, plan: &StepPlan) -> Result<(), StepError> {
        self.tokens.clear();
        self.chunks.clear();
        if let Some(trace) = &self.trace {
            trace.begin();
        }
        let mut logit_rows = recycle(std::mem::take(&mut self.logit_rows));
        for chunk in &plan.chunks {
            let sequence = self.slots.get(chunk.slot);
            if sequence.failed.is_some() {
                continue;
            }
            let first_row = self.tokens.len() as u32;
            let positions = chunk.start as usize..(chunk.start + chunk.len) as usize;
            if let Some(trace) = &self.trace {
                trace.rows(&sequence.tokens, positions.clone());
            }
            self.tokens.extend_from_slice(&sequence.tokens[positions]);
            self.chunks.push(ChunkRows {
                slot: chunk.slot,
                first_row,
                rows: chunk.len,
                start: chunk.start,
            });
            let row = |position: u32| first_row + (position - chunk.start);
            logit_rows.extend((chunk.score_start..chunk.score_end).map(|position| LogitRow {
                row: row(position),
                kind: LogitKind::Score {
                    token: sequence.tokens[position as usize + 1],
                    top: sequence.prompt_logprobs.unwrap_or(0),
                },
            }));
            if chunk.sample {
                let position = chunk.start + chunk.len;
                let num_prompt = sequence.num_prompt;
                let history = History { tokens: &sequence.tokens, num_prompt };
                let kind = LogitKind::Sample { params: &sequence.sampling, position, history };
                logit_rows.push(LogitRow { row: row(position - 1), kind });
            }
        }
        self.fault.at_tokens(&self.tokens);
        let mut outcome = Ok(());
        self.row_results.clear();
        if !self.tokens.is_empty() {
            let input = StepInput {
                tokens: &self.tokens,
                chunks: &self.chunks,
                block_tables: &self.slots.tables,
                logit_rows: &logit_rows,
            };
            outcome = self.model.step(&mut self.backend, &input, &mut self.row_results);
        }
        self.logit_rows = recycle(logit_rows);
        if let Some(trace) = &self.trace {
            trace.end();
        }
        outcome
    }

    /// Turns row results, in order, into one result per chunk, and appends sampled tokens.
    fn collect(&mut self, plan: &StepPlan) -> Result<Vec<SlotResult>, PlanError> {
        let mut rows = std::mem::take(&mut self.row_results);
        let mut drain = rows.drain(..);
        let mut results = Vec::with_capacity(plan.chunks.len());
        for chunk in &plan.chunks {
            results.push(self.chunk_result(chunk, &mut drain)?);
        }
        drop(drain);
        self.row_results = rows;
        Ok(results)
    }

    fn chunk_result(
        &mut self,
        chunk: &Chunk,
        rows: &mut impl Iterator<Item = RowResult>,
    ) -> Result<SlotResult, PlanError> {
        let slot = chunk.slot;
        let sequence = self.slots.running_mut(slot)?;
        if let Some(error) = &sequence.failed {
            return Ok(SlotResult { slot, outcome: Err(error.clone()), prompt_scores: Vec::new() });
        }
        let mut result = SlotResult { slot, outcome: Ok(None), prompt_scores: Vec::new() };
        let mut next = || rows.next().expect("a backend gives one result per logit row");
        for _ in chunk.score_start..chunk.score_end {
            match next().outcome {
                Ok((_, score)) => result.prompt_scores.push(score.unwrap_or_default()),
                Err(error) => result.outcome = Err(error),
            }
        }
        if chunk.sample {
            match next().outcome {
                Ok((token, score)) if result.outcome.is_ok() => {
                    sequence.tokens.push(token);
                    result.outcome = Ok(Some(SampledToken { token, score }));
                }
                Ok(_) => {}
                Err(error) => result.outcome = Err(error),
            }
        }
        sequence.failed = result.outcome.as_ref().err().cloned();
        Ok(result)
    }
}

impl<B: Backend> Execute for Executor<B> {
    fn execute(&mut self, plan: &StepPlan) -> Result<StepResult, ExecuteError> {
        let begin = Instant::now();
        self.current_step.store(plan.step.0, Ordering::Relaxed);
        self.progress.advance();
        self.fault.before(plan);
        self.apply(plan)?;
        self.run(plan)?;
        let mut slots = self.collect(plan)?;
        if self.model.shard().rank > 0 {
            // Rank 0 reports for all; this one says that it has come as far.
            slots.clear();
        }
        self.progress.advance();
        Ok(StepResult { step: plan.step, slots, elapsed_us: begin.elapsed().as_micros() as u64 })
    }

    fn handed_on(&mut self, step: StepId) {
        self.fault.after(step);
    }
}

/// An empty vector with the same memory and another lifetime.
fn recycle<'a>(mut rows: Vec<LogitRow<'_>>) -> Vec<LogitRow<'a>> {
    rows.clear();
    rows.into_iter().map(|_| unreachable!("the vector is empty")).collect()
}
