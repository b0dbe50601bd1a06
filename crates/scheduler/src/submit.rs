//! Taking requests in: what is refused, and how much may wait.

use oarlock_types::{Priority, Rejected, Request, Tick};

use crate::groups::shared_tokens;
use crate::queue::Order;
use crate::scheduler::Scheduler;
use crate::sequence::Sequence;

/// A tenant of which nothing waits may exceed the bounds of a full queue by this fraction of them.
const NEWCOMERS_SHARE: u64 = 8;

impl Scheduler {
    /// Takes a request into the waiting queue.
    ///
    /// It is refused as too long if its prompt with one generated token (or without, if none is
    /// wanted) exceeds [`Scheduler::max_sequence_tokens`]; if only `max_tokens` would, it will
    /// finish with [`FinishReason::Length`] there.
    ///
    /// It is refused for a full queue if those that wait in its class and above, itself included,
    /// exceed [`Limits::max_queued`] or [`Limits::max_queued_tokens`] as described there; the answer
    /// says when there should be room, by `excess / rate`, where the rate is an exponentially
    /// weighted mean of what left the queue in each second (see `drain.rs`).
    ///
    /// # Panics
    /// If `num_prompt` exceeds the number of tokens.
    ///
    /// [`FinishReason::Length`]: oarlock_types::FinishReason::Length
    /// [`Limits::max_queued`]: crate::Limits::max_queued
    /// [`Limits::max_queued_tokens`]: crate::Limits::max_queued_tokens
    pub fn submit(&mut self, request: Request, now: Tick) -> Result<(), Rejected> {
        self.advance_drain(now);
        let checked = self.check(&request).and_then(|()| self.check_room(&request));
        let charge = match checked {
            Ok(charge) => charge,
            Err(reason) => {
                let is_full =
                    matches!(reason, Rejected::QueueFull { .. } | Rejected::QueueTokensFull { .. });
                self.counters.rejected += 1;
                self.counters.rejected_queue_full += u64::from(is_full);
                return Err(reason);
            }
        };
        let order = Order { priority: request.priority, arrival: self.num_arrivals };
        self.num_arrivals += 1;
        if let Some(deadline) = request.deadline {
            self.next_deadline =
                Some(self.next_deadline.map_or(deadline, |next| next.min(deadline)));
        }
        let goal = request.num_prompt.saturating_add(request.stop.max_tokens);
        let goal = goal.min(self.max_sequence_tokens());
        let id = request.id;
        let tenant = self.waiting.enter(request.priority, request.tenant);
        let at = self.sequences.insert(Sequence::new(request, order, tenant, goal));
        self.ids.insert(id, at);
        self.waiting.push(&mut self.sequences, at, charge);
        self.groups.join(&mut self.sequences, at);
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<(), Rejected> {
        let num_tokens = request.tokens.len() as u32;
        assert!(request.num_prompt <= num_tokens, "a prompt longer than the tokens");
        if request.num_prompt == 0 {
            return Err(Rejected::EmptyPrompt);
        }
        if self.ids.contains_key(&request.id) {
            return Err(Rejected::DuplicateId);
        }
        let limit = self.max_sequence_tokens();
        let tokens =
            num_tokens.max(request.num_prompt.saturating_add(request.stop.max_tokens.min(1)));
        if tokens > limit {
            return Err(Rejected::TooLong { tokens, limit });
        }
        if let Some(&token) = request.tokens.iter().find(|token| token.0 >= self.limits.vocab_size)
        {
            return Err(Rejected::UnknownToken { token });
        }
        Ok(())
    }

    /// Whether the queue has room for a request; returns the tokens that count for it there.
    fn check_room(&self, request: &Request) -> Result<u32, Rejected> {
        let num_tokens = request.tokens.len() as u32;
        let group = self.groups.find(&self.sequences, request);
        let charge = match group {
            // What the first of its group computes is not computed again for it.
            Some(_) if request.prompt_logprobs.is_none() => {
                num_tokens - shared_tokens(request.num_prompt)
            }
            _ => num_tokens,
        };
        let (num_queued, queued_tokens) = self.waiting.queued_up_to(request.priority);
        let is_newcomer = self.is_newcomer(request, group);
        let limit = self.limits.max_queued;
        let bound = self.queue_bound();
        let extra = if is_newcomer { self.newcomers_bound() } else { 0 };
        if num_queued >= bound + extra {
            let retry_after_ms = self.drain.until_requests(num_queued + 1 - bound);
            return Err(Rejected::QueueFull { limit, retry_after_ms });
        }
        let limit = self.limits.max_queued_tokens;
        let after = queued_tokens.saturating_add(u64::from(charge));
        let may_exceed = num_queued == 0
            || is_newcomer && queued_tokens < limit.saturating_add(limit / NEWCOMERS_SHARE);
        if after > limit && !may_exceed {
            let retry_after_ms = self.drain.until_tokens(after - limit);
            return Err(Rejected::QueueTokensFull { limit, retry_after_ms });
        }
        Ok(charge)
    }

    /// Requests that may wait in a class and above: as many as configured, and those that the next
    /// plan can start.
    pub(crate) fn queue_bound(&self) -> u64 {
        let num_free = self.free_slots.len() + self.released_slots.len();
        u64::from(self.limits.max_queued) + num_free as u64
    }

    /// Requests beyond [`Self::queue_bound`], for tenants of which nothing else waits: those that keep
    /// the queue full would otherwise keep everybody else out.
    pub(crate) fn newcomers_bound(&self) -> u64 {
        (u64::from(self.limits.max_queued) / NEWCOMERS_SHARE).max(1)
    }

    /// Whether nothing waits of a request's tenant in its class but the group that it joins.
    fn is_newcomer(&self, request: &Request, group: Option<usize>) -> bool {
        let tenant = self.waiting.tenants.find(request.priority, request.tenant);
        let first = tenant.and_then(|tenant| tenant.first);
        first.is_none_or(|first| group.is_some() && self.sequences[first].group == group)
    }

    /// Checks that no class has more waiting than may.
    ///
    /// # Panics
    /// If one has.
    pub(crate) fn check_queue_bounds(&self) {
        let most = u64::from(self.limits.max_queued) + u64::from(self.limits.max_seqs);
        for class in (0..=u8::MAX).map(Priority) {
            let num_queued = u64::from(self.waiting.tenants.class(class).num_queued);
            assert!(num_queued <= most + self.newcomers_bound(), "too many wait in a class");
        }
    }
}
