//! Finding the request that kills its workers: those whose plans died run one at a time.
//!
//! A suspect on trial is planned alone, so that a death under it is its own. Once it has come past the
//! point at which the group died it is cleared, gives its place to the next, and goes on with everybody
//! else when all have had their turn.

use oarlock_types::{Event, FinishReason, RequestId, SlotError};

use crate::planner::Draft;
use crate::scheduler::Scheduler;

/// Tokens that a suspect must come past the point of death to be cleared.
const MARGIN: u32 = 4;

/// A request that was computed when the group died.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Suspect {
    request: RequestId,
    /// Tokens that must have been computed for it to be cleared.
    clear_at: u32,
}

/// What a plan may hold.
pub(crate) enum Trial {
    /// Anything.
    Nobody,
    /// Nothing, until what is in flight has committed.
    Wait,
    /// This sequence.
    Of(usize),
}

impl Scheduler {
    /// Suspects everything that plans in flight compute. Call it when the group has died, before
    /// [`Scheduler::reset`]; from then on suspects run one at a time.
    pub fn isolate_in_flight(&mut self) {
        for record in &self.in_flight {
            for chunk in &record.chunks {
                let sequence = self.sequences.get(chunk.sequence);
                let sequence = sequence.filter(|s| s.order.arrival == chunk.arrival);
                let Some(sequence) = sequence else { continue };
                let (request, clear_at) = (sequence.request.id, chunk.end + MARGIN);
                match self.suspects.iter_mut().find(|suspect| suspect.request == request) {
                    Some(suspect) => suspect.clear_at = suspect.clear_at.max(clear_at),
                    None => self.suspects.push_back(Suspect { request, clear_at }),
                }
            }
        }
    }

    /// Whether suspects run one at a time.
    pub fn is_isolating(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// The suspect on trial, if a plan in flight computes it: should the group die now, it is the one.
    pub fn suspect_in_flight(&self) -> Option<RequestId> {
        let suspect = self.suspects.front()?;
        let at = *self.ids.get(&suspect.request)?;
        let arrival = self.sequences[at].order.arrival;
        let mut chunks = self.in_flight.iter().flat_map(|record| &record.chunks).peekable();
        chunks.peek()?;
        chunks
            .all(|chunk| chunk.sequence == at && chunk.arrival == arrival)
            .then_some(suspect.request)
    }

    /// Ends a request with an error of its own; nothing happens if it is not known.
    pub fn fail(&mut self, id: RequestId, error: SlotError, events: &mut Vec<Event>) {
        if let Some(&at) = self.ids.get(&id) {
            self.finish(at, FinishReason::Failed(error), events);
        }
    }

    /// Whose turn it is. Who is cleared gives up its place for the next one.
    pub(crate) fn trial(&mut self, draft: &mut Draft<'_>) -> Trial {
        while let Some(suspect) = self.suspects.front() {
            let at = self.ids.get(&suspect.request).copied();
            if let Some(at) = at.filter(|at| self.sequences[*at].computed < suspect.clear_at) {
                let arrival = self.sequences[at].order.arrival;
                let mut chunks = self.in_flight.iter().flat_map(|record| &record.chunks);
                let is_alone = chunks.all(|c| c.sequence == at && c.arrival == arrival);
                return if is_alone { Trial::Of(at) } else { Trial::Wait };
            }
            self.suspects.pop_front();
            // The last one goes on where it is.
            if !self.suspects.is_empty() {
                while self.running.last().is_some() {
                    self.preempt_last(draft);
                }
            }
        }
        Trial::Nobody
    }

    /// Gives the suspect on trial its tokens.
    pub(crate) fn fill_trial(&mut self, at: usize, draft: &mut Draft<'_>) {
        if self.sequences[at].slot().is_none() {
            // A token of an earlier attempt may be on its way.
            if self.sequences[at].num_in_flight == 0 {
                self.admit_one(at, draft);
            }
        } else if self.plan_chunk(at, 0, draft).is_err() {
            debug_assert!(false, "a sequence that runs alone has all blocks");
        }
    }
}
