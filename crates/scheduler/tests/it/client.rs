//! The other side of the scheduler: what each request's owner must be told, and is.

use std::collections::BTreeMap;

use oarlock_scheduler::Scheduler;
use oarlock_types::{Event, EventKind, FinishReason, Request, RequestId, TokenId};

use crate::worker::{logprob, next_token};

/// What one request's owner has seen.
pub(crate) struct Watch {
    request: Request,
    /// Why and with which tokens it ends if nothing disturbs it.
    expected: (FinishReason, Vec<TokenId>),
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) cached_tokens: Option<u32>,
    num_scores: u32,
    pub(crate) finished: Option<FinishReason>,
}

/// All requests ever submitted, checked event by event.
#[derive(Default)]
pub(crate) struct Clients {
    pub(crate) watches: BTreeMap<RequestId, Watch>,
    /// Preemptions of those that are over, as their owners were told.
    pub(crate) num_preemptions: u64,
}

/// Runs the fake model alone.
fn expected(request: &Request, limit: u32) -> (FinishReason, Vec<TokenId>) {
    let num_prompt = request.num_prompt as usize;
    let goal = (request.num_prompt.saturating_add(request.stop.max_tokens)).min(limit) as usize;
    let mut tokens = request.tokens.clone();
    loop {
        let generated = &tokens[num_prompt..];
        if generated.last().is_some_and(|last| request.stop.stop_token_ids.contains(last)) {
            return (FinishReason::Stop, tokens);
        }
        if tokens.len() >= goal {
            return (FinishReason::Length, tokens);
        }
        tokens.push(next_token(request.sampling.seed, &tokens));
    }
}

impl Clients {
    pub(crate) fn add(&mut self, request: Request, scheduler: &Scheduler) {
        let watch = Watch {
            expected: expected(&request, scheduler.max_sequence_tokens()),
            tokens: request.tokens.clone(),
            cached_tokens: None,
            num_scores: 0,
            finished: None,
            request,
        };
        self.watches.insert(watch.request.id, watch);
    }

    /// Checks and forgets the events.
    pub(crate) fn take(&mut self, events: &mut Vec<Event>) {
        for event in events.drain(..) {
            if let EventKind::Finished { usage, .. } = &event.kind {
                self.num_preemptions += u64::from(usage.preemptions);
            }
            let watch = self.watches.get_mut(&event.request).expect("an event of a known request");
            watch.take(event.kind);
        }
    }

    pub(crate) fn unfinished(&self) -> impl Iterator<Item = RequestId> + '_ {
        self.watches.iter().filter(|(_, watch)| watch.finished.is_none()).map(|(&id, _)| id)
    }
}

impl Watch {
    fn take(&mut self, kind: EventKind) {
        assert!(self.finished.is_none(), "an event after the last");
        match kind {
            EventKind::Started { cached_tokens } => {
                assert!(self.cached_tokens.is_none(), "started twice");
                assert!(cached_tokens <= self.request.num_prompt);
                assert!(cached_tokens == 0 || self.request.prompt_logprobs.is_none());
                self.cached_tokens = Some(cached_tokens);
            }
            EventKind::PromptScores { first, scores } => {
                assert_eq!(first, self.num_scores + 1, "scores come once and in order");
                for (at, score) in (first as usize..).zip(&scores) {
                    let want = logprob(self.request.sampling.seed, &self.request.tokens[..=at]);
                    assert_eq!(score.logprob, want);
                }
                self.num_scores += scores.len() as u32;
            }
            EventKind::Token(sampled) => {
                assert!(self.cached_tokens.is_some(), "a token before the start");
                self.check_scores_are_complete();
                self.tokens.push(sampled.token);
                assert!(self.expected.1.starts_with(&self.tokens), "not the model's tokens");
            }
            EventKind::Finished { reason, usage } => {
                if matches!(reason, FinishReason::Stop | FinishReason::Length) {
                    assert_eq!((&reason, &self.tokens), (&self.expected.0, &self.expected.1));
                    self.check_scores_are_complete();
                }
                assert_eq!(usage.prompt_tokens, self.request.num_prompt);
                assert_eq!(usage.cached_tokens, self.cached_tokens.unwrap_or(0));
                let num_generated = self.tokens.len() as u32 - self.request.num_prompt;
                assert_eq!(usage.completion_tokens, num_generated);
                self.finished = Some(reason);
            }
        }
    }

    fn check_scores_are_complete(&self) {
        let moved = self.request.tokens.len() > self.request.num_prompt as usize;
        if self.request.prompt_logprobs.is_some() && !moved {
            assert_eq!(self.num_scores, self.request.num_prompt - 1, "scores are missing");
        }
    }
}
