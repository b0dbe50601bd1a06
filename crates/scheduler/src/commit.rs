//! Taking a step's result.

use oarlock_types::{
    Event, EventKind, FinishReason, SampledToken, SlotError, SlotResult, StepId, StepResult, Tick,
};

use crate::scheduler::Scheduler;
use crate::spare::ChunkRecord;

/// Why a result cannot be that of the oldest plan in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResultError {
    /// No plan is in flight.
    #[error("no plan is in flight")]
    NothingInFlight,
    /// Another step has to commit first.
    #[error("the result is of step {got}, but step {want} is the next")]
    WrongStep {
        /// The oldest step in flight.
        want: StepId,
        /// The step of the result.
        got: StepId,
    },
    /// There is not one entry for each chunk, in the plan's order.
    #[error("the entries of step {step} do not match the chunks of its plan")]
    WrongSlots {
        /// The step.
        step: StepId,
    },
}

impl Scheduler {
    /// Whether a result is that of the oldest plan in flight. A worker that sends another is broken.
    pub fn check_result(&self, result: &StepResult) -> Result<(), ResultError> {
        let record = self.in_flight.front().ok_or(ResultError::NothingInFlight)?;
        if record.step != result.step {
            return Err(ResultError::WrongStep { want: record.step, got: result.step });
        }
        let slots = record.chunks.iter().map(|chunk| chunk.slot);
        if !slots.eq(result.slots.iter().map(|entry| entry.slot)) {
            return Err(ResultError::WrongSlots { step: record.step });
        }
        Ok(())
    }

    /// Takes the result of the oldest plan in flight. Results of requests that are gone are dropped;
    /// those of preempted ones are kept.
    ///
    /// # Panics
    /// If [`Scheduler::check_result`] gives an error.
    pub fn commit(&mut self, result: &StepResult, now: Tick, events: &mut Vec<Event>) {
        if let Err(error) = self.check_result(result) {
            panic!("{error}");
        }
        self.advance_drain(now);
        let Some(record) = self.in_flight.pop_front() else { return };
        for (chunk, entry) in record.chunks.iter().zip(&result.slots) {
            self.commit_chunk(chunk, entry, events);
        }
        // After the registration of blocks, so that those released by now go into the cache.
        self.pool.committed(record.step);
        self.counters.steps += 1;
        self.pass_marks();
        self.spare.put_record(record);
    }

    fn commit_chunk(&mut self, chunk: &ChunkRecord, entry: &SlotResult, events: &mut Vec<Event>) {
        let Some(sequence) = self.sequences.find(chunk.sequence, chunk.arrival) else { return };
        sequence.num_in_flight -= 1;
        sequence.num_sampling -= u32::from(chunk.sample);
        let sampled = match &entry.outcome {
            Ok(sampled) => sampled,
            Err(error) => {
                let reason = FinishReason::Failed(error.clone());
                return self.finish(chunk.sequence, reason, events);
            }
        };
        if sequence.attempt == chunk.attempt {
            sequence.computed = chunk.end;
            self.pool.register(&mut sequence.table, &sequence.tokens[..chunk.end as usize]);
        }
        let prompt_end = chunk.end.min(sequence.request.num_prompt);
        let num_new = prompt_end.saturating_sub(sequence.num_prompt_counted);
        sequence.num_prompt_counted += num_new;
        self.counters.prompt_tokens += u64::from(num_new);
        if chunk.score_start < chunk.score_end {
            sequence.num_scored = chunk.score_end;
            let first = chunk.score_start + 1;
            let kind = EventKind::PromptScores { first, scores: entry.prompt_scores.clone() };
            events.push(Event { request: sequence.request.id, kind });
        }
        if chunk.sample {
            self.append(chunk.sequence, sampled.as_ref(), events);
        } else if sequence.is_prompt_only() && chunk.end >= sequence.request.num_prompt {
            self.finish(chunk.sequence, FinishReason::Length, events);
        }
    }

    /// Appends a sampled token, and ends the sequence if that completes it.
    fn append(&mut self, at: usize, sampled: Option<&SampledToken>, events: &mut Vec<Event>) {
        let known = sampled.filter(|sampled| sampled.token.0 < self.limits.vocab_size);
        let Some(sampled) = known else {
            let reason = FinishReason::Failed(SlotError::InvalidLogits);
            return self.finish(at, reason, events);
        };
        let sequence = &mut self.sequences[at];
        sequence.tokens.push(sampled.token);
        self.promises.update(sequence);
        if sequence.slot().is_none() {
            self.waiting.note_token();
        }
        self.counters.generation_tokens += 1;
        let kind = EventKind::Token(sampled.clone());
        events.push(Event { request: sequence.request.id, kind });
        if let Some(reason) = sequence.finish_reason() {
            self.finish(at, reason, events);
        }
    }
}
