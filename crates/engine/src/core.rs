//! The engine's one task: commands in, plans to the workers, results back, events out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use oarlock_rpc::WorkerError;
use oarlock_scheduler::{Limits, Scheduler};
use oarlock_types::{
    EngineDescription, EngineLimits, EngineState, Epoch, Event, EventKind, FinishReason, Rejected,
    Request, RequestId, StepId, StepPlan, StepResult, Tick, Usage, WorkerDescription,
};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use crate::EngineOptions;
use crate::group::Group;
use crate::handle::{Command, Shared};
use crate::requests::{EventSender, Requests};

/// Deaths in a row, without a step in between, after which running requests are given up: one of
/// them may be what kills the worker.
const DEATHS_UNTIL_REQUESTS_FAIL: u32 = 3;
/// Deaths in a row after which the engine gives up.
const DEATHS_UNTIL_GIVING_UP: u32 = 6;
/// Longest wait between two starts.
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// Most likely tokens that a request may ask logprobs for.
const MAX_TOP_LOGPROBS: u32 = 20;

/// State of the task.
pub(crate) struct Core {
    options: EngineOptions,
    commands: mpsc::Receiver<Command>,
    cancels: mpsc::UnboundedReceiver<RequestId>,
    shared: Shared,
    origin: Instant,
    epoch: Epoch,
    /// Deaths since the last committed step.
    deaths: u32,
    draining: bool,
    /// All handles are gone; no command can come any more.
    closed: bool,
}

/// What exists once the model's limits are known.
struct Running {
    scheduler: Scheduler,
    requests: Requests,
    description: Arc<EngineDescription>,
    /// Reused from step to step.
    plan: StepPlan,
    events: Vec<Event>,
    orphans: Vec<RequestId>,
    /// Steps sent and not yet answered, with their number of chunks.
    in_flight: VecDeque<(StepId, usize)>,
}

/// Why the loop over steps ended.
enum Ended {
    Drained,
    Lost(String),
}

impl Core {
    pub(crate) fn new(
        options: EngineOptions,
        commands: mpsc::Receiver<Command>,
        cancels: mpsc::UnboundedReceiver<RequestId>,
        shared: Shared,
    ) -> Self {
        let origin = Instant::now();
        Self {
            options,
            commands,
            cancels,
            shared,
            origin,
            epoch: Epoch(0),
            deaths: 0,
            draining: false,
            closed: false,
        }
    }

    pub(crate) async fn run(mut self) {
        let Some((mut group, worker)) = self.first_group().await else { return };
        let mut running = self.first_run(&worker);
        loop {
            self.set_state(if self.draining { EngineState::Draining } else { EngineState::Ready });
            self.shared.status.send_modify(|status| status.worker_pids = group.pids());
            let ended = self.serve(&mut running, &mut group).await;
            let reason = match ended {
                Ended::Drained => {
                    group.end("drained".to_owned()).await;
                    return;
                }
                Ended::Lost(reason) => group.end(reason).await,
            };
            match self.restart(&mut running, reason).await {
                Some(next) => group = next,
                None => return,
            }
        }
    }

    /// The first start: an error is final, since it is the configuration's.
    async fn first_group(&mut self) -> Option<(Group, WorkerDescription)> {
        match self.start_group().await {
            Ok(started) => Some(started),
            Err(error) => {
                self.set_state(EngineState::Failed { reason: error.to_string() });
                None
            }
        }
    }

    async fn start_group(&mut self) -> Result<(Group, WorkerDescription), WorkerError> {
        self.epoch.0 += 1;
        let limits = self.options.worker_limits(self.epoch);
        let status = Arc::clone(&self.shared.status);
        let progress = |so_far| status.send_modify(|status| status.loading = so_far);
        Group::start(&self.options, limits, progress).await
    }

    fn first_run(&mut self, worker: &WorkerDescription) -> Running {
        let limits = Limits {
            num_blocks: worker.limits.num_blocks,
            max_seqs: worker.limits.num_slots,
            max_queued: self.options.max_queued,
            step_tokens: worker.limits.max_step_tokens,
            max_chunk_tokens: self.options.chunk_tokens,
            max_sequence_tokens: worker.limits.max_sequence_tokens,
            vocab_size: worker.card.vocab_size,
            ..Limits::default()
        };
        let scheduler = Scheduler::new(limits, self.epoch);
        let description = Arc::new(EngineDescription {
            served_name: self.options.served_name.clone(),
            card: worker.card.clone(),
            fingerprint: worker.fingerprint.clone(),
            limits: EngineLimits {
                max_sequence_tokens: scheduler.max_sequence_tokens(),
                max_seqs: worker.limits.num_slots,
                max_queued: self.options.max_queued,
                max_top_logprobs: MAX_TOP_LOGPROBS,
            },
        });
        self.shared.description.send_replace(Some(Arc::clone(&description)));
        info!(
            model = %description.card.name,
            memory_mib = worker.memory_bytes >> 20,
            context = worker.limits.max_sequence_tokens,
            kv_cache_blocks = worker.limits.num_blocks,
            instruction_set = %worker.fingerprint.instruction_set,
            "model loaded"
        );
        Running {
            scheduler,
            requests: Requests::default(),
            description,
            plan: StepPlan::default(),
            events: Vec::new(),
            orphans: Vec::new(),
            in_flight: VecDeque::new(),
        }
    }

    /// Steps until the group is lost or everything is drained.
    async fn serve(&mut self, running: &mut Running, group: &mut Group) -> Ended {
        loop {
            if let Err(error) = self.advance(running, group) {
                return Ended::Lost(error.to_string());
            }
            if self.draining && running.requests.is_empty() && running.in_flight.is_empty() {
                return Ended::Drained;
            }
            tokio::select! {
                // Results first: the device must not wait for a burst of new requests.
                biased;
                result = group.results.next() => match result {
                    Some(Ok(result)) => {
                        if let Err(reason) = self.commit(running, &result) {
                            return Ended::Lost(reason);
                        }
                    }
                    Some(Err(error)) => return Ended::Lost(error.to_string()),
                    None => return Ended::Lost("it closed the stream of results".to_owned()),
                },
                Some(id) = self.cancels.recv() => running.cancel(id),
                command = self.commands.recv(), if !self.closed => self.handle(running, command),
            }
        }
    }

    /// Delivers events and sends the next plan, if there is anything to do.
    fn advance(&mut self, running: &mut Running, group: &Group) -> Result<(), WorkerError> {
        self.take_waiting(running);
        running.deliver();
        while running.in_flight.len() < running.scheduler.max_plans_in_flight() {
            running.scheduler.plan(self.now(), &mut running.plan, &mut running.events);
            running.deliver();
            if running.plan.is_empty() {
                break;
            }
            group.plans.send(&running.plan)?;
            running.in_flight.push_back((running.plan.step, running.plan.chunks.len()));
        }
        let mut stats = running.scheduler.stats();
        self.shared.status.send_modify(|status| {
            stats.worker_restarts = status.stats.worker_restarts;
            status.stats = stats;
        });
        Ok(())
    }

    /// Takes everything that already waits, so that one step's plan sees all of it.
    fn take_waiting(&mut self, running: &mut Running) {
        while let Ok(id) = self.cancels.try_recv() {
            running.cancel(id);
        }
        while let Ok(command) = self.commands.try_recv() {
            self.handle(running, Some(command));
        }
    }

    fn handle(&mut self, running: &mut Running, command: Option<Command>) {
        match command {
            Some(Command::Submit { request, events, reply }) => {
                self.submit(running, *request, events, reply);
            }
            Some(Command::Drain) => {
                self.draining = true;
                self.set_state(EngineState::Draining);
            }
            // All handles gone is a way of saying the same.
            None => {
                self.closed = true;
                self.draining = true;
                self.set_state(EngineState::Draining);
            }
        }
    }

    fn submit(
        &mut self,
        running: &mut Running,
        mut request: Request,
        events: EventSender,
        reply: oneshot::Sender<Result<(), Rejected>>,
    ) {
        let id = request.id;
        let now = self.now();
        request.deadline = request.deadline.map(|left| Tick(now.0.saturating_add(left.0)));
        let outcome = if self.draining {
            Err(Rejected::Draining)
        } else {
            running.scheduler.submit(request, now)
        };
        if outcome.is_ok() {
            running.requests.insert(id, events);
        }
        // A submitter that is gone also dropped its guard, which cancels.
        let _ = reply.send(outcome);
    }

    fn commit(&mut self, running: &mut Running, result: &StepResult) -> Result<(), String> {
        let Some((step, num_chunks)) = running.in_flight.pop_front() else {
            return Err("it sent a result that nobody asked for".to_owned());
        };
        if step != result.step || num_chunks != result.slots.len() {
            return Err(format!("its result of step {} does not fit plan {step}", result.step));
        }
        running.scheduler.check_result(result).map_err(|error| error.to_string())?;
        self.deaths = 0;
        running.scheduler.commit(result, self.now(), &mut running.events);
        Ok(())
    }

    /// Starts a new group after a loss. `None`: the engine gave up.
    async fn restart(&mut self, running: &mut Running, mut reason: String) -> Option<Group> {
        running.in_flight.clear();
        loop {
            self.deaths += 1;
            warn!(deaths = self.deaths, "worker lost: {reason}; starting another");
            self.set_state(EngineState::Restarting { reason: reason.clone() });
            self.shared.status.send_modify(|status| {
                status.stats.worker_restarts += 1;
                status.worker_pids.clear();
            });
            if self.deaths >= DEATHS_UNTIL_REQUESTS_FAIL {
                running.fail_all();
            }
            if self.deaths >= DEATHS_UNTIL_GIVING_UP {
                return self.give_up(reason);
            }
            if self.deaths > 1 {
                tokio::time::sleep(MAX_BACKOFF.min(Duration::from_millis(250 << self.deaths)))
                    .await;
            }
            match self.start_group().await {
                Err(error) => reason = error.to_string(),
                Ok((_, worker)) if worker.fingerprint != running.description.fingerprint => {
                    return self.give_up(
                        "the weight file or the program changed while serving; restart the server"
                            .to_owned(),
                    );
                }
                Ok((group, _)) => {
                    running.scheduler.reset(self.epoch, self.now());
                    return Some(group);
                }
            }
        }
    }

    fn give_up(&self, reason: String) -> Option<Group> {
        error!("giving up: {reason}");
        self.set_state(EngineState::Failed { reason });
        None
    }

    fn set_state(&self, state: EngineState) {
        self.shared.status.send_modify(|status| status.state = state);
    }

    fn now(&self) -> Tick {
        Tick(self.origin.elapsed().as_micros() as u64)
    }
}

impl Running {
    fn cancel(&mut self, id: RequestId) {
        self.scheduler.cancel(id, &mut self.events);
    }

    fn deliver(&mut self) {
        self.requests.deliver(&mut self.events, &mut self.orphans);
        while let Some(id) = self.orphans.pop() {
            self.scheduler.cancel(id, &mut self.events);
        }
        // Cancelling gave final events, for owners that are gone.
        self.requests.deliver(&mut self.events, &mut self.orphans);
        self.orphans.clear();
    }

    /// Ends every request with an error of the engine's.
    fn fail_all(&mut self) {
        let ids = self.requests.ids();
        for &id in &ids {
            let kind =
                EventKind::Finished { reason: FinishReason::EngineLost, usage: Usage::default() };
            self.events.push(Event { request: id, kind });
        }
        self.requests.deliver(&mut self.events, &mut self.orphans);
        for id in ids {
            self.scheduler.cancel(id, &mut self.events);
        }
        self.events.clear();
    }
}
