//! The runs: closed loops of streams, or open loops of arrivals.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::arrivals::ArrivalTimes;
use crate::error::{BenchError, FailureKind};
use crate::measures::Measures;
use crate::options::{Arrivals, Endpoint, Options, Slo};
use crate::progress::{Live, Progress, Stream};
use crate::protocol::Conversation;
use crate::report::{Report, RunReport};
use crate::target::Target;
use crate::workload::{Material, Turn, Workload};

/// Conversations in flight at most, whatever was asked for: a machine has about as many ports.
const MAX_IN_FLIGHT: usize = 16_384;
/// The number of the run whose requests are not measured.
const WARMUP: u64 = u64::MAX;
/// How exact timers are: an arrival that is noticed this much later was noticed in time.
const TIMER_RESOLUTION: Duration = Duration::from_millis(2);
/// Requests that were never sent are counted up to here.
const MAX_NEVER_SENT: usize = 1_000_000;
/// Rest after a connection that could not be opened: a dead server need not be asked a million times.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);
/// Requests where neither a number nor a duration is given.
const REQUESTS_PER_STREAM: u64 = 8;
const MIN_REQUESTS: u64 = 32;

/// Measures a server. When `cancel` fires, requests under way are dropped, and the report is of those
/// that had ended.
///
/// # Errors
/// The server cannot be reached or refuses everything, before anything was measured. Failures later
/// are counted in the report.
pub async fn run(
    options: &Options,
    live: &Live,
    cancel: &CancellationToken,
) -> Result<Report, BenchError> {
    let target = tokio::select! {
        target = Target::prepare(options) => Arc::new(target?),
        () = cancel.cancelled() => return Err(BenchError::Interrupted),
    };
    let workload = Arc::new(Workload::new(options, target.material.clone()));
    let mut runs = Vec::new();
    if options.warmup > 0 {
        let streams = options.concurrency.iter().copied().max().unwrap_or(1).min(options.warmup);
        let loops = Loop { concurrency: Some(streams), arrivals: None };
        let only = Options {
            requests: Some(options.warmup.into()),
            duration: None,
            slo: Slo::default(),
            ..options.clone()
        };
        run_once(&only, &target, &workload, live, cancel, (WARMUP, loops)).await;
    }
    for (number, loops) in (0..).zip(loops(options)) {
        if cancel.is_cancelled() {
            break;
        }
        runs.push(run_once(options, &target, &workload, live, cancel, (number, loops)).await);
    }
    Ok(report(options, &target, runs, cancel.is_cancelled()))
}

/// How one run keeps the server busy.
#[derive(Clone, Copy, Debug)]
struct Loop {
    concurrency: Option<u32>,
    arrivals: Option<Arrivals>,
}

fn loops(options: &Options) -> Vec<Loop> {
    let arrivals = options.arrivals;
    if options.concurrency.is_empty() {
        let concurrency = if arrivals.is_some() { None } else { Some(1) };
        return vec![Loop { concurrency, arrivals }];
    }
    options.concurrency.iter().map(|limit| Loop { concurrency: Some(*limit), arrivals }).collect()
}

/// What the conversations of one run share.
struct Run {
    number: u64,
    target: Arc<Target>,
    workload: Arc<Workload>,
    endpoint: Endpoint,
    slo: Slo,
    progress: Arc<Progress>,
    measures: Mutex<Measures>,
    cancel: CancellationToken,
    /// The next conversation, and how many there are.
    next: AtomicU64,
    num_conversations: u64,
    /// Requests, where their number is known: the last conversation may be shorter than the others.
    num_requests: Option<u64>,
    turns: u64,
    deadline: Option<Instant>,
}

async fn run_once(
    options: &Options,
    target: &Arc<Target>,
    workload: &Arc<Workload>,
    live: &Live,
    cancel: &CancellationToken,
    (number, loops): (u64, Loop),
) -> RunReport {
    let turns = u64::from(options.turns.max(1));
    let streams = u64::from(loops.concurrency.unwrap_or(1));
    let requests = match (options.requests, options.duration) {
        (Some(requests), _) => Some(requests),
        (None, Some(_)) => None,
        (None, None) => {
            let requests = (streams * turns * REQUESTS_PER_STREAM).max(MIN_REQUESTS);
            Some(requests.next_multiple_of(turns))
        }
    };
    let num_conversations = requests.map_or(u64::MAX, |requests| requests.div_ceil(turns));
    let label = match (number, loops.concurrency, loops.arrivals) {
        (WARMUP, ..) => "warming up".to_owned(),
        (_, _, Some(_)) => "arrivals".to_owned(),
        (_, concurrency, None) => format!("concurrency {}", concurrency.unwrap_or(1)),
    };
    let num_streams = if loops.arrivals.is_some() { 1 } else { streams.min(num_conversations) };
    let progress = Arc::new(Progress::new(label, requests, options.duration, num_streams));
    live.begin(&progress);
    let began = Instant::now();
    let run = Arc::new(Run {
        number,
        target: Arc::clone(target),
        workload: Arc::clone(workload),
        endpoint: options.endpoint,
        slo: options.slo,
        progress: Arc::clone(&progress),
        measures: Mutex::default(),
        cancel: cancel.clone(),
        next: AtomicU64::new(0),
        num_conversations,
        num_requests: requests,
        turns,
        deadline: options.duration.map(|duration| began + duration),
    });
    match loops.arrivals {
        None => run.closed_loop(loops.concurrency.unwrap_or(1)).await,
        Some(arrivals) => run.open_loop(arrivals, options.seed, loops.concurrency, began).await,
    }
    let conditions = RunReport {
        concurrency: loops.concurrency,
        arrivals: loops.arrivals.map(Into::into),
        ..RunReport::default()
    };
    let steady = if loops.arrivals.is_none() { progress.steady_outputs_per_s() } else { None };
    run.measures().report(began, &options.slo, steady, &conditions)
}

impl Run {
    /// The number of the next conversation; `None` once no further one shall start.
    fn next(&self) -> Option<u64> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        let is_over = index >= self.num_conversations || self.is_late();
        if is_over {
            self.progress.last_started();
            return None;
        }
        Some(index)
    }

    fn is_late(&self) -> bool {
        self.cancel.is_cancelled()
            || self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// So many streams, each with one request after the other.
    async fn closed_loop(self: &Arc<Self>, streams: u32) {
        let mut tasks = JoinSet::new();
        for _ in 0..streams {
            let run = Arc::clone(self);
            let mut stream = Stream::new(&self.progress);
            tasks.spawn(async move {
                while let Some(index) = run.next() {
                    run.play(index, None, &mut stream).await;
                }
            });
        }
        while tasks.join_next().await.is_some() {}
    }

    /// Conversations that start when their time has come, at most `limit` at once.
    async fn open_loop(
        self: &Arc<Self>,
        arrivals: Arrivals,
        seed: u64,
        limit: Option<u32>,
        began: Instant,
    ) {
        let limit = limit.map_or(MAX_IN_FLIGHT, |limit| limit as usize).min(MAX_IN_FLIGHT);
        let permits = Arc::new(Semaphore::new(limit));
        let mut tasks = JoinSet::new();
        let times = ArrivalTimes::new(arrivals, seed, self.number);
        let mut arrivals = (0..self.num_conversations)
            // Centuries from now: never.
            .zip(times.map_while(|time| began.checked_add(time)))
            .take_while(|(_, due)| self.deadline.is_none_or(|deadline| *due < deadline));
        while let Some((index, due)) = arrivals.next() {
            let Some(arrived) = self.arrival(due).await else { break };
            let permit = tokio::select! {
                permit = Arc::clone(&permits).acquire_owned() => Some(permit),
                () = self.over() => None,
            };
            if permit.is_none() || self.is_late() {
                let now = Instant::now();
                let others = arrivals.take_while(|(_, due)| *due <= now).take(MAX_NEVER_SENT);
                self.measures().never_sent(1 + others.count() as u64);
                break;
            }
            let run = Arc::clone(self);
            tasks.spawn(async move {
                run.play(index, Some(arrived), &mut Stream::new(&run.progress)).await;
                drop(permit);
            });
            // Finished ones are taken out, so that the set does not grow.
            while tasks.try_join_next().is_some() {}
        }
        self.progress.last_started();
        while tasks.join_next().await.is_some() {}
    }

    /// Waits until `due`, and says from when on the latencies of what arrives then count; `None` where
    /// the run was cancelled meanwhile.
    ///
    /// That is `due`, also where it was long ago since earlier arrivals waited for a place: a server
    /// that cannot keep up must not be asked less and look quick for it (the "coordinated omission" of
    /// Gil Tene's wrk2). Only what the timer of this machine is late by is not the server's fault.
    async fn arrival(&self, due: Instant) -> Option<Instant> {
        if Instant::now() >= due {
            return Some(due);
        }
        tokio::select! {
            () = tokio::time::sleep_until(due.into()) => {
                Some(Instant::now().min(due + TIMER_RESOLUTION))
            }
            () = self.cancel.cancelled() => None,
        }
    }

    /// Returns once no further request shall start.
    async fn over(&self) {
        let Some(deadline) = self.deadline else { return self.cancel.cancelled().await };
        tokio::select! {
            () = tokio::time::sleep_until(deadline.into()) => {}
            () = self.cancel.cancelled() => {}
        }
    }

    fn measures(&self) -> MutexGuard<'_, Measures> {
        self.measures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The requests of a conversation.
    fn turns(&self, index: u64) -> Vec<Turn> {
        let mut turns = self.workload.conversation(self.number, index);
        if let Some(num_requests) = self.num_requests {
            // Fits: it is at most what the vector has where this is the last one.
            turns.truncate((num_requests - index * self.turns).min(self.turns) as usize);
        }
        turns
    }

    /// One conversation, turn by turn; a failure ends it. `arrived`: when it did, if it did so by
    /// itself; later turns are due when the answer before them has ended.
    async fn play(&self, index: u64, arrived: Option<Instant>, stream: &mut Stream) {
        let mut conversation = Conversation::new(self.endpoint);
        let mut arrived = arrived;
        for (number, turn) in self.turns(index).into_iter().enumerate() {
            if number > 0 && self.is_late() {
                return;
            }
            conversation.ask(turn.piece.clone());
            self.progress.start();
            let arrived = arrived.take();
            let wait = arrived.map(|arrived| arrived.elapsed());
            let due = arrived.unwrap_or_else(Instant::now);
            let outcome = tokio::select! {
                outcome = self.target.ask(&conversation, &turn, due, stream) => outcome,
                () = self.cancel.cancelled() => return,
            };
            self.progress.end(outcome.is_ok());
            let is_down = matches!(&outcome, Err(failure) if failure.kind == FailureKind::Connect);
            {
                let mut measures = self.measures();
                if let Some(wait) = wait {
                    measures.waited(wait);
                }
                match outcome {
                    Ok(answer) => {
                        measures.answered(&answer, &self.slo);
                        conversation.answered(answer.text);
                        continue;
                    }
                    Err(failure) => measures.failed(failure),
                }
            }
            if is_down {
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
            return;
        }
    }
}

fn report(options: &Options, target: &Target, runs: Vec<RunReport>, interrupted: bool) -> Report {
    let mut warnings = Vec::new();
    if options.ignore_eos && !target.dialect.ignore_eos {
        warnings.push(
            "the server does not know ignore_eos: answers may be shorter than asked for".to_owned(),
        );
    }
    if runs.iter().any(|run| run.requests.without_usage > 0) {
        warnings.push(
            "the server does not count tokens: events of the stream are counted instead".to_owned(),
        );
    }
    let prompts = match target.material {
        Material::Tokens(_) => "token ids",
        Material::Words { .. } => "words",
    };
    Report {
        url: target.client.base().to_owned(),
        model: target.model.clone(),
        endpoint: options.endpoint,
        input_len: options.input.to_string(),
        output_len: options.output.to_string(),
        shared_prefix_len: options.shared_prefix_tokens,
        prefix_groups: options.prefix_groups,
        turns: options.turns,
        seed: options.seed,
        temperature: options.temperature,
        prompts,
        ignore_eos: target.dialect.ignore_eos,
        slo: options.slo.is_set().then(|| options.slo.to_string()),
        interrupted,
        warnings,
        runs,
    }
}
