//! The runs: closed loops of streams, or open loops of arrivals.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::arrivals::ArrivalTimes;
use crate::error::{BenchError, FailureKind};
use crate::measures::Measures;
use crate::options::{Arrivals, Endpoint, Options, Slo};
use crate::progress::{Live, Progress};
use crate::protocol::Conversation;
use crate::report::{Report, RunReport};
use crate::target::Target;
use crate::workload::{Material, Workload};

/// Conversations in flight at most, whatever was asked for: a machine has about as many ports.
const MAX_IN_FLIGHT: usize = 16_384;
/// The number of the run whose requests are not measured.
const WARMUP: u64 = u64::MAX;
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
        (None, None) => Some((streams * turns * REQUESTS_PER_STREAM).max(MIN_REQUESTS)),
    };
    let num_conversations = requests.map_or(u64::MAX, |requests| requests.div_ceil(turns));
    let total = requests.map(|_| num_conversations * turns);
    let label = match (number, loops.concurrency, loops.arrivals) {
        (WARMUP, ..) => "warming up".to_owned(),
        (_, _, Some(_)) => "arrivals".to_owned(),
        (_, concurrency, None) => format!("concurrency {}", concurrency.unwrap_or(1)),
    };
    let num_busy = if loops.arrivals.is_some() { 1 } else { streams.min(num_conversations) };
    let progress = Arc::new(Progress::new(label, total, options.duration, num_busy));
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
    let measures = run.measures.lock().unwrap_or_else(PoisonError::into_inner);
    measures.report(began, &options.slo, steady, &conditions)
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
            tasks.spawn(async move {
                while let Some(index) = run.next() {
                    run.play(index).await;
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
        for time in ArrivalTimes::new(arrivals, seed, self.number) {
            // Centuries from now: never.
            let Some(due) = began.checked_add(time) else { break };
            let until = self.deadline.map_or(due, |deadline| due.min(deadline));
            tokio::select! {
                () = tokio::time::sleep_until(until.into()) => {}
                () = self.cancel.cancelled() => {}
            }
            let Some(index) = self.next() else { break };
            let permit = tokio::select! {
                permit = Arc::clone(&permits).acquire_owned() => permit,
                () = self.cancel.cancelled() => break,
            };
            let run = Arc::clone(self);
            tasks.spawn(async move {
                run.play(index).await;
                drop(permit);
            });
            // Finished ones are taken out, so that the set does not grow.
            while tasks.try_join_next().is_some() {}
        }
        while tasks.join_next().await.is_some() {}
    }

    /// One conversation, turn by turn; a failure ends it.
    async fn play(&self, index: u64) {
        let mut conversation = Conversation::new(self.endpoint);
        for (number, turn) in self.workload.conversation(self.number, index).into_iter().enumerate()
        {
            if number > 0 && self.is_late() {
                return;
            }
            conversation.ask(turn.piece.clone());
            self.progress.start();
            let outcome = tokio::select! {
                outcome = self.target.ask(&conversation, &turn, &self.progress) => outcome,
                () = self.cancel.cancelled() => return,
            };
            self.progress.end(outcome.is_ok());
            let is_down = matches!(&outcome, Err(failure) if failure.kind == FailureKind::Connect);
            {
                let mut measures = self.measures.lock().unwrap_or_else(PoisonError::into_inner);
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
