//! A scheduler, its worker and its clients in one, driven step by step.

use std::collections::VecDeque;

use oarlock_scheduler::{Limits, Scheduler};
use oarlock_types::{
    Chunk, Epoch, Event, Rejected, Request, RequestId, StepPlan, StepResult, Tick,
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
        }
    }

    pub(crate) fn submit(&mut self, request: Request) -> Result<(), Rejected> {
        let outcome = self.scheduler.submit(request.clone(), self.now);
        if outcome.is_ok() {
            self.clients.add(request, &self.scheduler);
        }
        self.settle();
        outcome
    }

    pub(crate) fn cancel(&mut self, id: RequestId) {
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
        self.settle();
        true
    }

    pub(crate) fn step(&mut self) {
        self.plan();
        self.commit();
    }

    /// The group dies and another takes its place.
    pub(crate) fn reset(&mut self) {
        self.epoch.0 += 1;
        self.scheduler.reset(self.epoch, self.now);
        self.worker = Worker::new(self.limits, self.epoch);
        self.results.clear();
        self.settle();
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
        assert_eq!(self.scheduler.stats().blocks_in_use, 0, "blocks were lost");
    }

    fn settle(&mut self) {
        self.clients.take(&mut self.events);
        self.scheduler.check_invariants();
    }
}
