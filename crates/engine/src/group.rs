//! A group of worker processes, one per rank: start, load, watch, end.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use futures::stream::{BoxStream, FuturesUnordered, SelectAll, StreamExt as _};
use oarlock_rpc::{PlanSender, WorkerError};
use oarlock_types::{
    Epoch, Heartbeat, LoadOptions, LoadProgress, Shard, StepId, StepPlan, StepResult,
    WorkerDescription,
};
use tempfile::TempDir;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};

use crate::EngineOptions;
use crate::handle::Shared;
use crate::link::Links;
use crate::liveness::{Liveness, PATIENCE, Stuck};
use crate::rank::RankProcess;

/// Ticks and heartbeats in the time within which a stuck rank must be found. More than [`PATIENCE`], since
/// the last heartbeat, the tick that counts it and the message about it take their own.
const TICKS: u32 = 24;
/// Loading may wait for a slow disk: ticks of a group that loads may be so many seconds in all.
const LOADING_STALL: Duration = Duration::from_mins(2);
/// How long the process of a lost rank may take to end by itself, for the reason to be told.
const EPITAPH: Duration = Duration::from_millis(200);

/// Starts a group, telling the engine's status how loading goes.
pub(crate) async fn start_group(
    options: Arc<EngineOptions>,
    epoch: Epoch,
    shared: Shared,
) -> Result<(Group, WorkerDescription), WorkerError> {
    Group::start(&options, epoch, &shared).await
}

/// What comes from a rank.
enum Signal {
    Beat(Result<Heartbeat, WorkerError>),
    Result(Result<StepResult, WorkerError>),
    /// A stream ended.
    Closed,
}

/// Signals of all ranks, each with its rank.
type Signals = SelectAll<BoxStream<'static, (usize, Signal)>>;

/// One life of the workers. Dropping it kills them.
pub(crate) struct Group {
    ranks: Vec<RankProcess>,
    plans: Vec<PlanSender>,
    signals: Signals,
    liveness: Liveness,
    ticks: Interval,
    stall: Duration,
    /// Plans sent, and by rank how many were answered.
    sent: u64,
    answered: Vec<u64>,
    /// Rank 0's results that other ranks have not reached yet.
    results: VecDeque<StepResult>,
    returned: u64,
    /// The folder of the sockets; goes with the group.
    _folder: TempDir,
}

impl Group {
    /// Starts the processes of all ranks and has them load the model.
    async fn start(
        options: &EngineOptions,
        epoch: Epoch,
        shared: &Shared,
    ) -> Result<(Self, WorkerDescription), WorkerError> {
        // The folder is readable by this user only, so nobody else can talk to the workers.
        let folder = tempfile::Builder::new().prefix("oarlock-").tempdir().map_err(|error| {
            WorkerError::Failed(format!("cannot make a folder for the workers' sockets: {error}"))
        })?;
        let num_ranks = options.tensor_parallel as usize;
        let start = |rank| RankProcess::start(options, rank, folder.path());
        let started = join_all((0..num_ranks).map(start)).await;
        let mut ranks = Vec::new();
        let mut failure = None;
        for one in started {
            match one {
                Ok(rank) => ranks.push(rank),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        let started = match failure {
            Some(error) => Err(error),
            None => Self::connect(options, epoch, shared, &mut ranks).await,
        };
        match started {
            Ok(Started { plans, signals, ticks, description }) => {
                let group = Self {
                    liveness: Liveness::new(num_ranks, PATIENCE),
                    answered: vec![0; num_ranks],
                    ranks,
                    plans,
                    signals,
                    ticks,
                    stall: options.stall,
                    sent: 0,
                    results: VecDeque::new(),
                    returned: 0,
                    _folder: folder,
                };
                Ok((group, description))
            }
            Err(error) => {
                // The next try would find their memory taken.
                end_all(&mut ranks).await;
                Err(error)
            }
        }
    }

    /// Has the processes meet and load, and opens their streams.
    async fn connect(
        options: &EngineOptions,
        epoch: Epoch,
        shared: &Shared,
        ranks: &mut [RankProcess],
    ) -> Result<Started, WorkerError> {
        let num_ranks = ranks.len();
        let choice = Links::choose(options.collective, ranks, epoch);
        let links = in_time(options.stall, choice).await?;
        let tick = options.stall / TICKS;
        let mut beats = Signals::new();
        for rank in ranks.iter_mut() {
            let number = rank.rank;
            let stream = in_time(options.stall, rank.client.watch(tick)).await?;
            let stream = stream.map(move |beat| (number, Signal::Beat(beat)));
            beats.push(stream.boxed());
        }
        let mut ticks = interval(tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let loaded: Vec<_> = (0..num_ranks).map(|_| AtomicBool::new(false)).collect();
        let load = load_all(options, epoch, ranks, links, (shared, &loaded));
        let still_limit = (LOADING_STALL.as_millis() / tick.as_millis().max(1)) as u32;
        let loading = Liveness::new(num_ranks, still_limit.max(PATIENCE));
        let outcome = tokio::select! {
            outcome = load => outcome,
            reason = watch_loading(&mut beats, &mut ticks, (loading, &loaded), options.stall) => {
                Err(WorkerError::Lost(reason))
            }
        };
        let description = match outcome {
            Err(WorkerError::Lost(reason)) => {
                return Err(WorkerError::Lost(epitaph(ranks, reason).await));
            }
            other => other?,
        };
        let mut plans = Vec::new();
        for rank in ranks {
            let number = rank.rank;
            let (sender, results) = in_time(options.stall, rank.client.execute()).await?;
            plans.push(sender);
            let end = futures::stream::once(async move { (number, Signal::Closed) });
            beats.push(
                results.map(move |result| (number, Signal::Result(result))).chain(end).boxed(),
            );
        }
        Ok(Started { plans, signals: beats, ticks, description })
    }

    /// The workers' process ids by rank, while they run.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.ranks.iter().filter_map(RankProcess::pid).collect()
    }

    /// Sends a plan to every rank.
    pub(crate) fn send(&mut self, plan: &StepPlan) -> Result<(), WorkerError> {
        self.sent += 1;
        self.plans.iter().try_for_each(|rank| rank.send(plan))
    }

    /// The next result, once all ranks have come as far; the error says why the group is lost. May be
    /// dropped and called again.
    pub(crate) async fn next_result(&mut self) -> Result<StepResult, String> {
        loop {
            let reached = self.answered.iter().copied().min().unwrap_or(0);
            if reached > self.returned
                && let Some(result) = self.results.pop_front()
            {
                self.returned += 1;
                return Ok(result);
            }
            tokio::select! {
                signal = self.signals.next() => match signal {
                    Some((rank, signal)) => self.hear(rank, signal)?,
                    None => return Err("all workers closed their streams".to_owned()),
                },
                _ = self.ticks.tick() => {
                    let (sent, answered) = (self.sent, &self.answered);
                    if let Some(stuck) = self.liveness.tick(|rank| answered[rank] < sent) {
                        return Err(describe(stuck, patience(self.stall), patience(self.stall)));
                    }
                }
            }
        }
    }

    fn hear(&mut self, rank: usize, signal: Signal) -> Result<(), String> {
        let said = |error: &dyn std::fmt::Display| {
            if self.ranks.len() == 1 { error.to_string() } else { format!("rank {rank}: {error}") }
        };
        match signal {
            Signal::Beat(Ok(beat)) => self.liveness.beat(rank, beat),
            Signal::Beat(Err(error)) | Signal::Result(Err(error)) => return Err(said(&error)),
            Signal::Closed => return Err(said(&"it closed the stream of results")),
            Signal::Result(Ok(result)) => {
                self.answered[rank] += 1;
                if result.step != StepId(self.answered[rank]) {
                    let due = self.answered[rank];
                    return Err(said(&format!("answered step {}, due was {due}", result.step)));
                }
                if rank == 0 {
                    self.results.push_back(result);
                }
            }
        }
        Ok(())
    }

    /// Ends all workers and waits for their end. Returns how they ended, for the log.
    pub(crate) async fn end(mut self, reason: String) -> String {
        let reason = epitaph(&mut self.ranks, reason).await;
        end_all(&mut self.ranks).await;
        reason
    }
}

/// What a group has once all of its ranks have loaded.
struct Started {
    plans: Vec<PlanSender>,
    signals: Signals,
    ticks: Interval,
    description: WorkerDescription,
}

/// Ends processes and waits for their end.
async fn end_all(ranks: &mut [RankProcess]) {
    join_all(ranks.iter_mut().map(RankProcess::kill)).await;
}

/// The answer to a question that takes a worker no time.
async fn in_time<T>(
    stall: Duration,
    answer: impl Future<Output = Result<T, WorkerError>>,
) -> Result<T, WorkerError> {
    let late = |_| {
        let seconds = stall.as_secs_f32();
        WorkerError::Lost(format!(
            "a worker that had just started did not answer within {seconds} s"
        ))
    };
    timeout(stall, answer).await.map_err(late)?
}

/// Has all ranks load; gives rank 0's description with the memory of all.
async fn load_all(
    options: &EngineOptions,
    epoch: Epoch,
    ranks: &mut [RankProcess],
    links: Links,
    (shared, loaded): (&Shared, &[AtomicBool]),
) -> Result<WorkerDescription, WorkerError> {
    let num_ranks = ranks.len();
    let Links { link, hosts, segment } = links;
    // Its name is of no use any more once every rank has shown progress: all have met then.
    let segment = Mutex::new(segment);
    let so_far = Mutex::new(vec![None::<LoadProgress>; num_ranks]);
    let report = |rank: usize, progress: LoadProgress| {
        let mut all = so_far.lock().unwrap_or_else(PoisonError::into_inner);
        all[rank] = Some(progress);
        if all.iter().all(Option::is_some) {
            drop(segment.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
        let sum = all.iter().flatten().fold(LoadProgress::default(), |sum, one| LoadProgress {
            loaded_bytes: sum.loaded_bytes + one.loaded_bytes,
            total_bytes: sum.total_bytes + one.total_bytes,
        });
        shared.status.send_modify(|status| status.loading = sum);
    };
    let loads = ranks.iter_mut().map(|process| {
        let rank = process.rank;
        let load = LoadOptions {
            model: options.model.to_string_lossy().into_owned(),
            limits: options.worker_limits(epoch),
            shard: Shard { rank: rank as u32, ranks: num_ranks as u32 },
            link: link.clone(),
            stall_ms: u32::try_from(options.stall.as_millis()).unwrap_or(u32::MAX),
            ranks_on_host: hosts.iter().filter(|host| **host == hosts[rank]).count() as u32,
            // Ranks of one host read the same file.
            hash_weights: rank == 0 || hosts[rank] != hosts[0],
        };
        let report = &report;
        async move {
            let outcome = process.client.load(&load, |progress| report(rank, progress)).await;
            loaded[rank].store(true, Ordering::Relaxed);
            (rank, outcome)
        }
    });
    let mut descriptions = first_failure(loads.collect()).await?;
    descriptions.sort_by_key(|(rank, _)| *rank);
    let descriptions: Vec<_> = descriptions.into_iter().map(|(_, one)| one).collect();
    let memory_bytes = descriptions.iter().map(|one| one.memory_bytes).sum();
    let first = &descriptions[0].fingerprint;
    for (rank, one) in descriptions.iter().enumerate() {
        let own = &one.fingerprint;
        let same_weights = own.weights.is_empty() || own.weights == first.weights;
        if !same_weights
            || (&own.build, &own.instruction_set) != (&first.build, &first.instruction_set)
        {
            return Err(WorkerError::Failed(format!(
                "rank {rank} has other weights, another build or another instruction set than rank 0: \
                 {own:?} and {first:?}; give all hosts the same files and --instruction-set"
            )));
        }
    }
    Ok(WorkerDescription { memory_bytes, ..descriptions.into_iter().next().expect("a rank") })
}

/// All outcomes, or the first failure: ranks that wait for the failed one fail later, with less to say.
/// What is said of a rank by itself, in the moment after, is worth more than what others say of it.
async fn first_failure<T>(
    mut all: FuturesUnordered<impl Future<Output = (usize, Result<T, WorkerError>)>>,
) -> Result<Vec<(usize, T)>, WorkerError> {
    let mut good = Vec::new();
    while let Some((rank, outcome)) = all.next().await {
        let error = match outcome {
            Ok(value) => {
                good.push((rank, value));
                continue;
            }
            Err(error @ WorkerError::Lost(_)) => return Err(error),
            Err(error) => error,
        };
        let lost = async {
            while let Some((_, outcome)) = all.next().await {
                if let Err(error @ WorkerError::Lost(_)) = outcome {
                    return Some(error);
                }
            }
            None
        };
        return Err(timeout(EPITAPH, lost).await.ok().flatten().unwrap_or(error));
    }
    Ok(good)
}

/// Resolves when a rank is found stuck while the group loads; those that have loaded only wait.
async fn watch_loading(
    beats: &mut Signals,
    ticks: &mut Interval,
    (mut liveness, loaded): (Liveness, &[AtomicBool]),
    stall: Duration,
) -> String {
    loop {
        tokio::select! {
            beat = beats.next() => match beat {
                Some((rank, Signal::Beat(Ok(beat)))) => liveness.beat(rank, beat),
                // Nobody may wait for the load of another rank then: that may be stopped.
                Some((rank, Signal::Beat(Err(error)))) => return format!("rank {rank}: {error}"),
                _ => futures::future::pending().await,
            },
            _ = ticks.tick() => {
                if let Some(stuck) = liveness.tick(|rank| !loaded[rank].load(Ordering::Relaxed)) {
                    return describe(stuck, patience(stall), LOADING_STALL);
                }
            }
        }
    }
}

/// How long a rank is waited for, so that it is found within `stall`.
fn patience(stall: Duration) -> Duration {
    stall * (PATIENCE + 1) / TICKS
}

fn describe(stuck: Stuck, silent: Duration, still: Duration) -> String {
    let (silent, still) = (silent.as_secs_f32(), still.as_secs_f32());
    match stuck {
        Stuck::Silent { rank } => format!("rank {rank} gave no sign of life for {silent:.1} s"),
        Stuck::Still { rank } => format!("rank {rank} made no progress for {still:.1} s"),
        Stuck::All => format!("all ranks wait for each other since {still:.1} s"),
    }
}

/// Why the group is lost: which processes ended and how, if they do so within a moment.
async fn epitaph(ranks: &mut [RankProcess], reason: String) -> String {
    let is_several = ranks.len() > 1;
    let mut waited = Duration::ZERO;
    loop {
        for rank in ranks.iter_mut() {
            if let Some(status) = rank.ended() {
                let who = if is_several { rank.name() } else { "the worker process".to_owned() };
                return format!("{reason}; {who} ended ({status})");
            }
        }
        if waited >= EPITAPH {
            return reason;
        }
        sleep(EPITAPH / 20).await;
        waited += EPITAPH / 20;
    }
}
