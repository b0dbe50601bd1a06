//! The engine's one task: commands in, plans to the workers, results back, events out.

use std::sync::Arc;
use std::time::Duration;

use oarlock_rpc::WorkerError;
use oarlock_scheduler::Limits;
use oarlock_types::{
    EngineDescription, EngineLimits, EngineState, Epoch, RequestId, StepResult, WorkerDescription,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tracing::{error, info, warn};

use crate::EngineOptions;
use crate::deaths::{Death, Deaths, Verdict};
use crate::group::{Group, start_group};
use crate::handle::{Command, Shared};
use crate::running::Running;

/// How often deadlines are looked at while no step does it.
const DEADLINE_POLL: Duration = Duration::from_millis(100);
/// Most likely tokens that a request may ask logprobs for.
const MAX_TOP_LOGPROBS: u32 = 20;

/// State of the task.
pub(crate) struct Core {
    options: Arc<EngineOptions>,
    commands: mpsc::Receiver<Command>,
    cancels: mpsc::UnboundedReceiver<RequestId>,
    shared: Shared,
    epoch: Epoch,
    deaths: Deaths,
    draining: bool,
    /// All handles are gone; no command can come any more.
    closed: bool,
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
        Self {
            options: Arc::new(options),
            commands,
            cancels,
            shared,
            epoch: Epoch(1),
            deaths: Deaths::default(),
            draining: false,
            closed: false,
        }
    }

    pub(crate) async fn run(mut self) {
        // The first start: an error is final, since it is the configuration's.
        let started = start_group(Arc::clone(&self.options), self.epoch, self.shared.clone()).await;
        let (mut group, worker) = match started {
            Ok(started) => started,
            Err(error) => return self.set_state(EngineState::Failed { reason: error.to_string() }),
        };
        let mut running = self.first_run(&worker);
        loop {
            let state = if self.draining { EngineState::Draining } else { EngineState::Ready };
            self.shared.status.send_modify(|status| {
                status.worker_pids = group.pids();
                status.state = state;
            });
            let ended = self.serve(&mut running, &mut group).await;
            let reason = match ended {
                Ended::Drained => {
                    group.end("drained".to_owned()).await;
                    return;
                }
                Ended::Lost(reason) => reason,
            };
            match self.restart(&mut running, group, reason).await {
                Some(next) => group = next,
                None => return,
            }
        }
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
            max_queued_tokens: self.options.max_queued_tokens,
            max_plans_in_flight: self.options.max_plans_in_flight,
        };
        let running = Running::new(limits, self.epoch, worker.fingerprint.clone());
        let description = Arc::new(EngineDescription {
            served_name: self.options.served_name.clone(),
            card: worker.card.clone(),
            fingerprint: worker.fingerprint.clone(),
            limits: EngineLimits {
                max_sequence_tokens: running.scheduler.max_sequence_tokens(),
                max_seqs: worker.limits.num_slots,
                max_queued: self.options.max_queued,
                max_top_logprobs: MAX_TOP_LOGPROBS,
                max_queued_tokens: self.options.max_queued_tokens,
            },
        });
        info!(
            model = %description.card.name,
            memory_mib = worker.memory_bytes >> 20,
            context = description.limits.max_sequence_tokens,
            kv_cache_blocks = worker.limits.num_blocks,
            instruction_set = %worker.fingerprint.instruction_set,
            "model loaded"
        );
        self.shared.description.send_replace(Some(description));
        running
    }

    /// Steps until the group is lost or everything is drained.
    async fn serve(&mut self, running: &mut Running, group: &mut Group) -> Ended {
        let mut deadlines = interval(DEADLINE_POLL);
        deadlines.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Err(error) = self.advance(running, group) {
                return Ended::Lost(error.to_string());
            }
            if self.draining && running.is_idle() {
                return Ended::Drained;
            }
            tokio::select! {
                // Results first: the device must not wait for a burst of new requests.
                biased;
                result = group.next_result() => {
                    let committed = result.and_then(|result| self.commit(running, &result));
                    if let Err(reason) = committed {
                        return Ended::Lost(reason);
                    }
                }
                command = self.commands.recv(), if !self.closed => self.handle(running, command),
                Some(id) = self.cancels.recv() => running.cancel(id),
                _ = deadlines.tick(), if !running.is_idle() => running.expire(self.shared.now()),
            }
        }
    }

    /// Sends the next plans, if there is anything to do, and tells what happened. The workers come
    /// first: they must not wait for the owners of a full batch.
    fn advance(&mut self, running: &mut Running, group: &mut Group) -> Result<(), WorkerError> {
        self.take_waiting(running);
        while running.next_plan(self.shared.now()) {
            group.send(&running.plan)?;
        }
        running.tell(&self.shared.status);
        Ok(())
    }

    /// Takes everything that already waits, so that one step's plan sees all of it. Requests come
    /// before cancels, so that a cancel finds its request.
    fn take_waiting(&mut self, running: &mut Running) {
        while let Ok(command) = self.commands.try_recv() {
            self.handle(running, Some(command));
        }
        while let Ok(id) = self.cancels.try_recv() {
            running.cancel(id);
        }
    }

    fn handle(&mut self, running: &mut Running, command: Option<Command>) {
        match command {
            Some(Command::Submit { request, events, reply }) => {
                running.submit(*request, events, reply, self.draining, self.shared.now());
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

    fn commit(&mut self, running: &mut Running, result: &StepResult) -> Result<(), String> {
        running.commit(result, self.shared.now())?;
        self.deaths.committed(running.scheduler.is_suspicious());
        Ok(())
    }

    /// Replaces a group that is lost, and meanwhile goes on taking and cancelling requests.
    /// `None`: everything is drained, or the engine gave up.
    async fn restart(
        &mut self,
        running: &mut Running,
        lost: Group,
        reason: String,
    ) -> Option<Group> {
        let verdict = self.judge(running);
        self.begin_epoch(running, &reason);
        if let Verdict::Fail(request) = verdict {
            running.fail(request);
        }
        // Its memory and its devices are the next one's.
        let mut reason = self.serve_while(running, lost.end(reason)).await?;
        let deaths_in_a_row = self.deaths.in_a_row();
        warn!(deaths_in_a_row, ?verdict, "workers lost: {reason}; starting others");
        if verdict == Verdict::GiveUp {
            return self.give_up(running, reason);
        }
        loop {
            self.set_state(EngineState::Restarting { reason: reason.clone() });
            let start = start_group(Arc::clone(&self.options), self.epoch, self.shared.clone());
            let backoff = self.deaths.backoff();
            let start = async move {
                sleep(backoff).await;
                start.await
            };
            match self.serve_while(running, start).await? {
                Err(error) => reason = error.to_string(),
                Ok((_, worker)) if worker.fingerprint != running.fingerprint => {
                    let reason =
                        "the weight file or the program changed while serving; restart the server";
                    return self.give_up(running, reason.to_owned());
                }
                Ok((group, _)) => {
                    self.deaths.started();
                    return Some(group);
                }
            }
            if !self.deaths.start_failed(Instant::now()) {
                return self.give_up(running, reason);
            }
            warn!("workers could not be started: {reason}; trying again");
            self.begin_epoch(running, &reason);
        }
    }

    /// What the death of the group says about the requests that it computed.
    fn judge(&mut self, running: &mut Running) -> Verdict {
        let alone = running.scheduler.suspect_in_flight();
        let is_repeated = running.scheduler.mark_in_flight();
        let culprit = alone.or_else(|| running.scheduler.worn_out());
        let verdict = self.deaths.died(Death { culprit, is_repeated }, Instant::now());
        if verdict == Verdict::Isolate {
            running.scheduler.isolate_repeated();
        }
        verdict
    }

    /// What ran waits for another group; nobody takes this engine for ready any more.
    fn begin_epoch(&mut self, running: &mut Running, reason: &str) {
        self.epoch.0 += 1;
        running.reset(self.epoch, self.shared.now());
        self.shared.status.send_modify(|status| {
            status.state = EngineState::Restarting { reason: reason.to_owned() };
            status.stats.worker_restarts += 1;
            status.worker_pids.clear();
        });
    }

    /// Takes and cancels requests until `start` is done. `None`: everything is drained before that.
    async fn serve_while<T>(
        &mut self,
        running: &mut Running,
        start: impl Future<Output = T>,
    ) -> Option<T> {
        let mut deadlines = interval(DEADLINE_POLL);
        tokio::pin!(start);
        loop {
            running.tell(&self.shared.status);
            if self.draining && running.is_idle() {
                return None;
            }
            tokio::select! {
                outcome = &mut start => return Some(outcome),
                command = self.commands.recv(), if !self.closed => self.handle(running, command),
                Some(id) = self.cancels.recv() => running.cancel(id),
                _ = deadlines.tick() => running.expire(self.shared.now()),
            }
        }
    }

    fn give_up(&self, running: &mut Running, reason: String) -> Option<Group> {
        error!("giving up: {reason}");
        running.fail_all(&self.shared.status);
        self.set_state(EngineState::Failed { reason });
        None
    }

    fn set_state(&self, state: EngineState) {
        self.shared.status.send_modify(|status| status.state = state);
    }
}
