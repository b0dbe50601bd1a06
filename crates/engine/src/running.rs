//! What an engine keeps once its model's limits are known: the scheduler and the owners of requests.

use std::collections::VecDeque;

use oarlock_scheduler::{Limits, Scheduler};
use oarlock_types::{
    EngineStatus, Epoch, Event, EventKind, Fingerprint, FinishReason, Histogram, Rejected, Request,
    RequestId, STEP_TIME_BOUNDS_US, STEP_TOKENS_BOUNDS, SlotError, StepPlan, StepResult, Tick,
    Usage,
};
use tokio::sync::{oneshot, watch};

use crate::requests::{EventSender, Requests};

/// The scheduler and everything that its events and plans need.
pub(crate) struct Running {
    pub(crate) scheduler: Scheduler,
    /// The first group's; another one would change bits.
    pub(crate) fingerprint: Fingerprint,
    /// The plan that [`Self::next_plan`] made; reused from step to step.
    pub(crate) plan: StepPlan,
    /// Time of steps on the workers, since the engine started.
    step_time_us: Histogram,
    /// Tokens of these steps.
    step_tokens: Histogram,
    /// Tokens of the plans in flight, the oldest first.
    tokens_in_flight: VecDeque<u64>,
    requests: Requests,
    events: Vec<Event>,
    orphans: Vec<RequestId>,
}

impl Running {
    pub(crate) fn new(limits: Limits, epoch: Epoch, fingerprint: Fingerprint) -> Self {
        Self {
            scheduler: Scheduler::new(limits, epoch),
            fingerprint,
            plan: StepPlan::default(),
            step_time_us: Histogram::default(),
            step_tokens: Histogram::default(),
            tokens_in_flight: VecDeque::new(),
            requests: Requests::default(),
            events: Vec::new(),
            orphans: Vec::new(),
        }
    }

    /// Nothing runs, waits or is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.requests.is_empty() && self.scheduler.plans_in_flight() == 0
    }

    pub(crate) fn submit(
        &mut self,
        request: Request,
        owner: EventSender,
        reply: oneshot::Sender<Result<(), Rejected>>,
        draining: bool,
        now: Tick,
    ) {
        // A submitter that is gone may have sent its cancel before this request was read.
        if reply.is_closed() {
            return;
        }
        let id = request.id;
        let outcome =
            if draining { Err(Rejected::Draining) } else { self.scheduler.submit(request, now) };
        if outcome.is_ok() {
            self.requests.insert(id, owner);
        }
        if reply.send(outcome).is_err() {
            self.cancel(id);
        }
    }

    pub(crate) fn cancel(&mut self, id: RequestId) {
        self.scheduler.cancel(id, &mut self.events);
    }

    pub(crate) fn expire(&mut self, now: Tick) {
        self.scheduler.expire(now, &mut self.events);
    }

    /// Makes the next plan. `false`: there is nothing to do now.
    pub(crate) fn next_plan(&mut self, now: Tick) -> bool {
        self.scheduler.plan(now, &mut self.plan, &mut self.events);
        if self.plan.is_empty() {
            return false;
        }
        self.tokens_in_flight.push_back(self.plan.num_tokens() as u64);
        true
    }

    /// Takes a worker's result; the error says why it cannot be one.
    pub(crate) fn commit(&mut self, result: &StepResult, now: Tick) -> Result<(), String> {
        self.scheduler.check_result(result).map_err(|error| error.to_string())?;
        self.scheduler.commit(result, now, &mut self.events);
        let num_tokens = self.tokens_in_flight.pop_front().unwrap_or(0);
        // A plan that only releases slots says nothing about computing.
        if num_tokens > 0 {
            self.step_time_us.observe(&STEP_TIME_BOUNDS_US, result.elapsed_us);
            self.step_tokens.observe(&STEP_TOKENS_BOUNDS, num_tokens);
        }
        Ok(())
    }

    /// The group is gone: what ran waits again, with its tokens.
    pub(crate) fn reset(&mut self, epoch: Epoch, now: Tick) {
        self.scheduler.reset(epoch, now);
        self.tokens_in_flight.clear();
    }

    /// Publishes the counts and delivers events, in this order: who has its answer finds it counted,
    /// and its blocks given back unless a plan in flight still names them. (An owner that is found
    /// gone has sent its cancel, or is about to: that brings the next counts.)
    pub(crate) fn tell(&mut self, status: &watch::Sender<EngineStatus>) {
        self.publish(status);
        self.deliver();
    }

    /// Lets everybody see the counts as they are now.
    fn publish(&self, status: &watch::Sender<EngineStatus>) {
        let mut stats = self.scheduler.stats();
        status.send_modify(|status| {
            stats.worker_restarts = status.stats.worker_restarts;
            status.stats = stats;
            status.step_time_us = self.step_time_us;
            status.step_tokens = self.step_tokens;
        });
    }

    /// Hands events to their owners, and cancels requests whose owner is gone.
    fn deliver(&mut self) {
        self.requests.deliver(&mut self.events, &mut self.orphans);
        while let Some(id) = self.orphans.pop() {
            self.scheduler.cancel(id, &mut self.events);
        }
        // Cancelling gave final events, for owners that are gone.
        self.requests.deliver(&mut self.events, &mut self.orphans);
        self.orphans.clear();
    }

    /// Ends a request that kills the workers; its owner hears of it from the next [`Self::tell`].
    pub(crate) fn fail(&mut self, request: RequestId) {
        self.scheduler.fail(request, SlotError::KillsWorkers, &mut self.events);
    }

    /// Ends every request with an error of the engine's, and tells of it.
    pub(crate) fn fail_all(&mut self, status: &watch::Sender<EngineStatus>) {
        self.deliver();
        let ids = self.requests.ids();
        for &id in &ids {
            self.scheduler.cancel(id, &mut self.events);
        }
        // Not a cancel is what their owners hear of.
        self.events.clear();
        self.events.extend(ids.into_iter().map(|request| {
            let kind =
                EventKind::Finished { reason: FinishReason::EngineLost, usage: Usage::default() };
            Event { request, kind }
        }));
        self.tell(status);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::task::{Context, Poll, Wake, Waker};

    use oarlock_types::{
        CacheSalt, Priority, SampledToken, SamplingParams, SlotResult, StopCriteria, TenantId,
        TokenId,
    };
    use tokio::sync::mpsc;

    use super::*;

    fn running() -> Running {
        let limits = Limits {
            num_blocks: 64,
            max_seqs: 4,
            max_queued: 8,
            step_tokens: 64,
            vocab_size: 100,
            max_plans_in_flight: 2,
            ..Limits::default()
        };
        Running::new(limits, Epoch(1), Fingerprint::default())
    }

    fn request(id: u64, num_prompt: u32, max_tokens: u32) -> Request {
        Request {
            id: RequestId(id),
            tokens: (0..num_prompt).map(TokenId).collect(),
            num_prompt,
            sampling: SamplingParams::default(),
            stop: StopCriteria { max_tokens, stop_token_ids: vec![TokenId(99)] },
            prompt_logprobs: None,
            priority: Priority::default(),
            tenant: TenantId(1),
            salt: CacheSalt(1),
            deadline: None,
            group: None,
        }
    }

    /// What a worker answers that samples `token` everywhere.
    fn result(plan: &StepPlan, token: u32) -> StepResult {
        let answer = SampledToken { token: TokenId(token), score: None };
        let slots = plan.chunks.iter().map(|chunk| SlotResult {
            slot: chunk.slot,
            outcome: Ok(chunk.sample.then(|| answer.clone())),
            prompt_scores: Vec::new(),
        });
        StepResult { step: plan.step, slots: slots.collect(), elapsed_us: 300 }
    }

    /// Plans until nothing more can be in flight.
    fn plans(running: &mut Running) -> Vec<StepPlan> {
        let mut plans = Vec::new();
        while running.next_plan(Tick(0)) {
            plans.push(running.plan.clone());
        }
        plans
    }

    fn submit(running: &mut Running, request: Request) -> mpsc::UnboundedReceiver<EventKind> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let (reply, mut outcome) = oneshot::channel();
        running.submit(request, sender, reply, false, Tick(0));
        assert_eq!(outcome.try_recv(), Ok(Ok(())));
        receiver
    }

    #[test]
    fn two_plans_are_in_flight_and_what_comes_after_a_stop_is_dropped() {
        let mut running = running();
        let mut events = submit(&mut running, request(1, 20, 50));
        let in_flight = plans(&mut running);
        let chunks: Vec<_> =
            in_flight.iter().map(|plan| (plan.chunks[0].start, plan.chunks[0].len)).collect();
        assert_eq!(chunks, [(0, 20), (20, 1)]);
        running.commit(&result(&in_flight[0], 99), Tick(1)).expect("the oldest plan's result");
        running.deliver();
        assert_eq!(running.requests.ids(), []);
        assert!(!running.is_idle(), "a plan is in flight");
        running.commit(&result(&in_flight[1], 7), Tick(2)).expect("the other one's");
        running.deliver();
        assert!(running.is_idle());
        let mut kinds = Vec::new();
        while let Ok(kind) = events.try_recv() {
            kinds.push(kind);
        }
        assert!(
            matches!(
                &kinds[..],
                [
                    EventKind::Started { .. },
                    EventKind::Token(_),
                    EventKind::Finished {
                        reason: FinishReason::Stop,
                        usage: Usage { completion_tokens: 1, .. }
                    },
                ]
            ),
            "{kinds:?}"
        );
        // Each step has its own number of tokens.
        assert_eq!((running.step_tokens.counts[5], running.step_tokens.counts[0]), (1, 1));
        assert_eq!((running.step_tokens.sum, running.step_time_us.sum), (21, 600));
        assert_eq!(running.step_time_us.counts[1], 2);
    }

    #[test]
    fn a_reset_with_plans_in_flight_forgets_their_results() {
        let mut running = running();
        let _events = submit(&mut running, request(1, 20, 3));
        let old = plans(&mut running);
        assert_eq!(old.len(), 2);
        running.reset(Epoch(2), Tick(5));
        assert!(running.commit(&result(&old[0], 1), Tick(6)).is_err(), "nothing is in flight");
        let new = plans(&mut running);
        assert_eq!((new[0].epoch, new[0].step.0, new[0].num_tokens()), (Epoch(2), 1, 20));
        running.commit(&result(&new[0], 1), Tick(7)).expect("the new group's first");
        assert_eq!(running.step_tokens.sum, 20);
        // The owner goes while a plan is in flight.
        running.cancel(RequestId(1));
        running.deliver();
        running.commit(&result(&new[1], 1), Tick(8)).expect("in order");
        let last = plans(&mut running);
        assert_eq!((last.len(), last[0].release.len(), last[0].chunks.len()), (1, 1, 0));
        running.commit(&result(&last[0], 1), Tick(9)).expect("slots were released");
        assert!(running.is_idle() && !running.scheduler.has_work());
        assert_eq!(running.step_tokens.sum, 21);
    }

    /// Reads the counts at the very moment when its request has news.
    struct Reader {
        status: watch::Receiver<EngineStatus>,
        seen: Mutex<Vec<(u64, u32, u32)>>,
    }

    impl Wake for Reader {
        fn wake(self: Arc<Self>) {
            let stats = self.status.borrow().stats;
            let counts = (stats.generation_tokens, stats.num_running, stats.blocks_in_use);
            self.seen.lock().expect("no panic").push(counts);
        }
    }

    #[test]
    fn who_has_its_answer_finds_it_counted() {
        let mut running = running();
        let status = watch::Sender::new(EngineStatus::default());
        let reader = Arc::new(Reader { status: status.subscribe(), seen: Mutex::default() });
        let mut events = submit(&mut running, request(1, 20, 2));
        let waker = Waker::from(Arc::clone(&reader));
        let mut read = || {
            let mut context = Context::from_waker(&waker);
            while matches!(events.poll_recv(&mut context), Poll::Ready(Some(_))) {}
            std::mem::take(&mut *reader.seen.lock().expect("no panic"))
        };
        assert_eq!(read(), []);
        let in_flight = plans(&mut running);
        running.tell(&status);
        assert_eq!(read(), [(0, 1, 2)], "it has begun");
        running.commit(&result(&in_flight[0], 7), Tick(1)).expect("the oldest plan's result");
        running.tell(&status);
        assert_eq!(read(), [(1, 1, 2)], "its first token");
        running.commit(&result(&in_flight[1], 7), Tick(2)).expect("the other one's");
        running.tell(&status);
        assert_eq!(read(), [(2, 0, 0)], "its last token, and nothing is held any more");
    }
}
