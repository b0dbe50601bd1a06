//! Finding the request that kills its workers: those whose plans died again run one at a time.
//!
//! Every request that is computed when a group dies is marked with how far it must come to be free of
//! suspicion. One that is computed when a later group dies, and has not come so far, becomes a suspect.
//!
//! A suspect on trial is planned alone, so that a death under it is its own. Once it has come past the
//! point at which the group died it is cleared, gives its place to the next, and goes on with everybody
//! else when all have had their turn.

use std::collections::BTreeMap;

use oarlock_types::{Event, FinishReason, RequestId, SlotError};

use crate::planner::Draft;
use crate::scheduler::Scheduler;

/// Tokens that a suspect must come past the point of death to be cleared.
const MARGIN: u32 = 4;
/// Deaths that one request may live through. A fault that shows only in company has no culprit that could
/// be found alone; without a limit it would never end.
const MAX_DEATHS: u32 = 10;

/// A request that was computed when a group died, for as long as it lives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    request: RequestId,
    /// Tokens that must have been computed since for the death not to be its own.
    clear_at: u32,
    /// Groups that died while they computed it.
    deaths: u32,
    has_passed: bool,
    /// Another group died before it had passed.
    is_repeated: bool,
}

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
    /// Marks everything that plans in flight compute. Call it when the group has died, before
    /// [`Scheduler::reset`]. Returns whether one of them was computed when an earlier group died, too,
    /// and has not come past that point since: then [`Scheduler::isolate_repeated`] finds out.
    pub fn mark_in_flight(&mut self) -> bool {
        let mut computed: BTreeMap<RequestId, u32> = BTreeMap::new();
        for chunk in self.in_flight.iter().flat_map(|record| &record.chunks) {
            let sequence = self.sequences.get(chunk.sequence);
            if let Some(sequence) = sequence.filter(|s| s.order.arrival == chunk.arrival) {
                let clear_at = computed.entry(sequence.request.id).or_default();
                *clear_at = (*clear_at).max(chunk.end + MARGIN);
            }
        }
        self.marks.retain(|mark| self.ids.contains_key(&mark.request));
        self.marks.iter_mut().for_each(|mark| mark.is_repeated = false);
        for (request, clear_at) in computed {
            let Some(mark) = self.marks.iter_mut().find(|mark| mark.request == request) else {
                let (deaths, has_passed, is_repeated) = (1, false, false);
                self.marks.push(Mark { request, clear_at, deaths, has_passed, is_repeated });
                continue;
            };
            mark.deaths += 1;
            mark.is_repeated = !mark.has_passed;
            mark.clear_at = if mark.has_passed { clear_at } else { clear_at.max(mark.clear_at) };
            mark.has_passed = false;
        }
        self.marks.iter().any(|mark| mark.is_repeated)
    }

    /// From now on, those that died with two groups run one at a time. Call it after
    /// [`Scheduler::mark_in_flight`].
    pub fn isolate_repeated(&mut self) {
        for mark in self.marks.iter().filter(|mark| mark.is_repeated) {
            let Mark { request, clear_at, .. } = *mark;
            match self.suspects.iter_mut().find(|suspect| suspect.request == request) {
                Some(suspect) => suspect.clear_at = suspect.clear_at.max(clear_at),
                None => self.suspects.push_back(Suspect { request, clear_at }),
            }
        }
    }

    /// A request that has lived through more deaths than one may.
    pub fn worn_out(&self) -> Option<RequestId> {
        let is_over =
            |mark: &&Mark| mark.deaths > MAX_DEATHS && self.ids.contains_key(&mark.request);
        self.marks.iter().find(is_over).map(|mark| mark.request)
    }

    /// Whether suspects run one at a time.
    pub fn is_isolating(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// Whether a request that died with a group has yet to come past the point where it did.
    pub fn is_suspicious(&self) -> bool {
        let is_open = |mark: &Mark| !mark.has_passed && self.ids.contains_key(&mark.request);
        self.is_isolating() || self.marks.iter().any(is_open)
    }

    /// Frees those from suspicion that have come far enough.
    pub(crate) fn pass_marks(&mut self) {
        for mark in self.marks.iter_mut().filter(|mark| !mark.has_passed) {
            let computed = self.ids.get(&mark.request).map(|at| self.sequences[*at].computed);
            mark.has_passed = computed.is_none_or(|computed| computed >= mark.clear_at);
        }
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
