//! What an engine keeps once its model's limits are known: the scheduler and the owners of requests.

use oarlock_scheduler::{Limits, Scheduler};
use oarlock_types::{
    Epoch, Event, EventKind, Fingerprint, FinishReason, Rejected, Request, RequestId, StepPlan,
    StepResult, Tick, Usage,
};
use tokio::sync::oneshot;

use crate::requests::{EventSender, Requests};

/// The scheduler and everything that its events and plans need.
pub(crate) struct Running {
    pub(crate) scheduler: Scheduler,
    /// The first group's; another one would change bits.
    pub(crate) fingerprint: Fingerprint,
    /// The plan that [`Self::next_plan`] made; reused from step to step.
    pub(crate) plan: StepPlan,
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
        !self.plan.is_empty()
    }

    /// Takes a worker's result; the error says why it cannot be one.
    pub(crate) fn commit(&mut self, result: &StepResult, now: Tick) -> Result<(), String> {
        self.scheduler.check_result(result).map_err(|error| error.to_string())?;
        self.scheduler.commit(result, now, &mut self.events);
        Ok(())
    }

    /// The group is gone: what ran waits again, with its tokens.
    pub(crate) fn reset(&mut self, epoch: Epoch, now: Tick) {
        self.scheduler.reset(epoch, now);
    }

    /// Hands events to their owners, and cancels requests whose owner is gone.
    pub(crate) fn deliver(&mut self) {
        self.requests.deliver(&mut self.events, &mut self.orphans);
        while let Some(id) = self.orphans.pop() {
            self.scheduler.cancel(id, &mut self.events);
        }
        // Cancelling gave final events, for owners that are gone.
        self.requests.deliver(&mut self.events, &mut self.orphans);
        self.orphans.clear();
    }

    /// Ends every request with an error of the engine's.
    pub(crate) fn fail_all(&mut self) {
        self.deliver();
        let ids = self.requests.ids();
        for &id in &ids {
            let kind =
                EventKind::Finished { reason: FinishReason::EngineLost, usage: Usage::default() };
            self.events.push(Event { request: id, kind });
        }
        self.deliver();
        for id in ids {
            self.scheduler.cancel(id, &mut self.events);
        }
        self.events.clear();
    }
}
