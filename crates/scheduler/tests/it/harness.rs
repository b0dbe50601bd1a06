//! A scheduler, its worker and its clients in one, driven step by step.

use std::collections::VecDeque;

use oarlock_scheduler::{Limits, Scheduler};
use oarlock_types::{
    Chunk, Epoch, Event, EventKind, Rejected, Request, RequestId, SlotError, StepPlan, StepResult,
    Tick,
};

use crate::client::Clients;
use crate::worker::{VOCAB_SIZE, Worker};

pub(crate) struct Harness {
    pub(crate) scheduler: Scheduler,
    worker: Worker,
    pub(crate) clients: Clients,
    limits: Limits,
    epoch: Epoch,
    pub(crate) now: Tick,
    /// Results that the scheduler has not seen.
    results: VecDeque<StepResult>,
    plan: StepPlan,
    events: Vec<Event>,
    /// Every plan so far.
    pub(crate) plans: Vec<StepPlan>,
    /// Commits since something was last generated, ended or changed from outside.
    num_quiet: u32,
    /// The first running sequence and its progress, and commits since one of them changed.
    first: Option<(RequestId, [u32; 3])>,
    num_stalled: u32,
}

/// Room for everything: 64 blocks, 8 slots, 512 tokens a step.
pub(crate) fn roomy() -> Limits {
    Limits {
        num_blocks: 64,
        max_seqs: 8,
        max_queued: 100,
        step_tokens: 512,
        vocab_size: VOCAB_SIZE,
        ..Limits::default()
    }
}

impl Harness {
    pub(crate) fn new(limits: Limits) -> Self {
        let epoch = Epoch(1);
        Self {
            scheduler: Scheduler::new(limits, epoch),
            worker: Worker::new(limits, epoch),
            clients: Clients::default(),
            limits,
            epoch,
            now: Tick(0),
            results: VecDeque::new(),
            plan: StepPlan::default(),
            events: Vec::new(),
            plans: Vec::new(),
            num_quiet: 0,
            first: None,
            num_stalled: 0,
        }
    }

    /// Submits a request. Its sampling's `choice` becomes its id, so that plans tell whose they are.
    pub(crate) fn submit(&mut self, mut request: Request) -> Result<(), Rejected> {
        request.sampling.choice = request.id.0 as u32;
        self.num_quiet = 0;
        let outcome = self.scheduler.submit(request.clone(), self.now);
        if outcome.is_ok() {
            self.clients.add(request, &self.scheduler);
        }
        self.settle();
        outcome
    }

    pub(crate) fn cancel(&mut self, id: RequestId) {
        self.num_quiet = 0;
        self.scheduler.cancel(id, &mut self.events);
        self.settle();
    }

    /// Plans and executes one step; `None` if there was nothing to do.
    pub(crate) fn plan(&mut self) -> Option<&StepPlan> {
        self.plan_failing(|_| false)
    }

    /// The same; the chunks that `fails` picks fail.
    pub(crate) fn plan_failing(&mut self, fails: impl Fn(&Chunk) -> bool) -> Option<&StepPlan> {
        self.scheduler.plan(self.now, &mut self.plan, &mut self.events);
        self.scheduler.check_plan(&self.plan);
        let planned = !self.plan.is_empty();
        if planned {
            let result = self.worker.execute(&self.plan, fails);
            self.results.push_back(result);
            self.plans.push(self.plan.clone());
        }
        self.settle();
        if planned { self.plans.last() } else { None }
    }

    /// Gives the scheduler the oldest result, if there is one.
    pub(crate) fn commit(&mut self) -> bool {
        let Some(result) = self.results.pop_front() else { return false };
        self.scheduler.commit(&result, self.now, &mut self.events);
        self.worker.committed();
        self.check_first();
        self.check_progress();
        self.settle();
        true
    }

    /// The first in the order gets on with each plan, unless it waits for blocks.
    fn check_first(&mut self) {
        let first = self.scheduler.progress_of_first();
        let stalls = first.is_some() && first == self.first;
        self.num_stalled = if stalls { self.num_stalled + 1 } else { 0 };
        self.first = first;
        assert!(self.num_stalled <= self.limits.max_plans_in_flight + 2, "{first:?} stands still");
    }

    /// And so all do in the end: the first in the order computes at least a token with every plan, unless it
    /// waits for blocks, and generates one when all are computed. Another one can take its place as
    /// first only if that arrived earlier, which each of those that live does once at most.
    fn check_progress(&mut self) {
        let progress =
            |kind: &EventKind| matches!(kind, EventKind::Token(_) | EventKind::Finished { .. });
        if self.events.iter().any(|event| progress(&event.kind)) {
            self.num_quiet = 0;
            return;
        }
        self.num_quiet += 1;
        let stats = self.scheduler.stats();
        let num_live = stats.num_running + stats.num_waiting;
        let bound = (num_live + 1) * (3 * self.scheduler.max_sequence_tokens() + 64);
        assert!(self.num_quiet <= bound, "nothing gets on");
    }

    /// Plans as far as possible, as an engine does, and commits the oldest plan.
    pub(crate) fn step(&mut self) {
        while self.plan().is_some() {}
        self.commit();
    }

    /// The group dies and another takes its place.
    pub(crate) fn reset(&mut self) {
        self.epoch.0 += 1;
        self.num_quiet = 0;
        self.scheduler.reset(self.epoch, self.now);
        self.worker = Worker::new(self.limits, self.epoch);
        self.results.clear();
        self.settle();
    }

    /// The group dies of what was in flight: what dies again is suspected, and whoever was on trial is the
    /// one, or who died too often.
    pub(crate) fn die(&mut self) -> Option<RequestId> {
        let alone = self.scheduler.suspect_in_flight();
        if self.scheduler.mark_in_flight() && alone.is_none() {
            self.scheduler.isolate_repeated();
        }
        let culprit = alone.or_else(|| self.scheduler.worn_out());
        self.reset();
        if let Some(id) = culprit {
            self.scheduler.fail(id, SlotError::KillsWorkers, &mut self.events);
            self.settle();
        }
        culprit
    }

    /// Steps until all is done. Panics if that takes unreasonably long.
    pub(crate) fn drain(&mut self) {
        let mut rounds = 0;
        while self.scheduler.has_work() {
            while self.plan().is_some() {}
            self.commit();
            rounds += 1;
            assert!(rounds < 20_000, "no progress");
        }
        assert_eq!(self.clients.unfinished().count(), 0, "requests without an end");
        let stats = self.scheduler.stats();
        assert_eq!(stats.blocks_in_use, 0, "blocks were lost");
        let load = (stats.num_running, stats.num_waiting, stats.waiting_tokens);
        assert_eq!(load, (0, 0, 0), "a queue is not empty");
        assert_eq!(stats.preemptions, self.clients.num_preemptions, "preemptions that users see");
    }

    fn settle(&mut self) {
        self.clients.take(&mut self.events);
        self.scheduler.check_invariants();
    }
}
