//! The worker's side of the protocol: loads a model once, then executes plans on a thread of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, anyhow};
use futures::stream::{BoxStream, StreamExt as _};
use oarlock_backend::{Backend, BackendLimits};
use oarlock_backend_cpu::CpuBackend;
use oarlock_model::Checkpoint;
use oarlock_rpc::{LoadEvent, LoadStream, ResultStream, WorkerApi, WorkerError};
use oarlock_types::{
    BLOCK_TOKENS, Fingerprint, LoadProgress, StepPlan, StepResult, WorkerDescription, WorkerLimits,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::executor::{Execute, Executor};
use crate::process::CpuOptions;

/// Rows whose logits are computed at once.
const MAX_GATHERED: usize = 32;
/// The CPU backend caches keys and values as f16.
const KV_ELEMENT_BYTES: u64 = 2;
/// Messages that wait for the engine to read them.
const QUEUE: usize = 8;

/// A worker on the CPU backend.
pub(crate) struct CpuWorker {
    options: CpuOptions,
    loaded: Arc<Mutex<Option<Box<dyn Execute>>>>,
}

impl CpuWorker {
    pub(crate) fn new(options: CpuOptions) -> Self {
        Self { options, loaded: Arc::default() }
    }
}

impl WorkerApi for CpuWorker {
    fn load(&self, model: PathBuf, limits: WorkerLimits) -> LoadStream {
        let (events, receiver) = mpsc::channel(QUEUE);
        let (options, loaded) = (self.options, Arc::clone(&self.loaded));
        std::thread::spawn(move || {
            // A progress message that finds the queue full is dropped: the next one says more.
            let progress = |so_far| drop(events.try_send(Ok(LoadEvent::Progress(so_far))));
            let attempt =
                catch_unwind(AssertUnwindSafe(|| load(&model, limits, options, progress)));
            let last =
                match attempt.unwrap_or_else(|_| Err(anyhow!("loading panicked; see the log"))) {
                    Ok((executor, description)) => {
                        *loaded.lock().unwrap_or_else(PoisonError::into_inner) = Some(executor);
                        Ok(LoadEvent::Done(Box::new(description)))
                    }
                    Err(error) => Err(WorkerError::Failed(format!("{error:#}"))),
                };
            // The engine may be gone; then nobody wants to know.
            drop(events.blocking_send(last));
        });
        ReceiverStream::new(receiver).boxed()
    }

    fn execute(&self, plans: BoxStream<'static, Result<StepPlan, WorkerError>>) -> ResultStream {
        let executor = self.loaded.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(executor) = executor else {
            let error =
                WorkerError::Failed("no model is loaded, or it is executing already".to_owned());
            return futures::stream::once(async { Err(error) }).boxed();
        };
        let (to_thread, inbox) = mpsc::channel(QUEUE);
        let (outbox, results) = mpsc::channel(QUEUE);
        tokio::spawn(forward(plans, to_thread));
        std::thread::spawn(move || execute_plans(executor, inbox, &outbox));
        ReceiverStream::new(results).boxed()
    }
}

async fn forward(
    mut plans: BoxStream<'static, Result<StepPlan, WorkerError>>,
    to_thread: mpsc::Sender<Result<StepPlan, WorkerError>>,
) {
    while let Some(plan) = plans.next().await {
        if to_thread.send(plan).await.is_err() {
            return;
        }
    }
}

fn execute_plans(
    mut executor: Box<dyn Execute>,
    mut inbox: mpsc::Receiver<Result<StepPlan, WorkerError>>,
    outbox: &mpsc::Sender<Result<StepResult, WorkerError>>,
) {
    while let Some(plan) = inbox.blocking_recv() {
        let result = plan.and_then(|plan| {
            let executed = catch_unwind(AssertUnwindSafe(|| executor.execute(&plan)));
            let executed = executed
                .map_err(|_| WorkerError::Failed("a step panicked; see the log".to_owned()))?;
            executed.map_err(|error| WorkerError::Failed(error.to_string()))
        });
        let failed = result.is_err();
        if outbox.blocking_send(result).is_err() || failed {
            return;
        }
    }
}

/// Opens, packs and describes a model.
fn load(
    path: &Path,
    limits: WorkerLimits,
    options: CpuOptions,
    mut progress: impl FnMut(LoadProgress),
) -> anyhow::Result<(Box<dyn Execute>, WorkerDescription)> {
    let checkpoint = Checkpoint::open(path)?;
    let card = checkpoint.card()?;
    let limits = resolve(limits, card.context_length);
    check_memory(&checkpoint, limits)?;
    let backend_limits = BackendLimits {
        max_tokens: limits.max_step_tokens as usize,
        max_gathered: MAX_GATHERED,
        max_chunks: limits.num_slots as usize,
        max_positions: limits.max_sequence_tokens as usize,
    };
    let mut backend = CpuBackend::new(options.config(), backend_limits)?;
    // Hashed while it loads; a model that cannot be loaded does not wait for its hash.
    let stop = AtomicBool::new(false);
    let (model, hash) = std::thread::scope(|scope| {
        let hash = scope.spawn(|| checkpoint.hash(&stop));
        let model = oarlock_model::load(
            &checkpoint,
            &mut backend,
            limits.num_blocks as usize,
            &mut progress,
        );
        stop.store(model.is_err(), Ordering::Relaxed);
        (model, hash.join())
    });
    let model = model?;
    let fingerprint = Fingerprint {
        weights: hash.map_err(|_| anyhow!("hashing the weights panicked"))??,
        build: build_id()?,
        instruction_set: backend.instruction_set(),
    };
    let memory_bytes = backend.memory_bytes();
    let executor = Box::new(Executor::new(backend, model, limits));
    Ok((executor, WorkerDescription { card, fingerprint, limits, memory_bytes }))
}

/// Refuses a cache that this machine has no memory for, before the kernel ends the worker over it.
fn check_memory(checkpoint: &Checkpoint, limits: WorkerLimits) -> anyhow::Result<()> {
    let tokens = u64::from(limits.num_blocks) * BLOCK_TOKENS as u64;
    let cache = tokens * checkpoint.kv_elements_per_token()? as u64 * KV_ELEMENT_BYTES;
    let needed = cache.saturating_add(checkpoint.tensor_bytes());
    let available = available_memory().unwrap_or(u64::MAX);
    anyhow::ensure!(
        needed <= available,
        "a KV cache of {tokens} tokens (--kv-cache-tokens) takes {} MiB and the weights {} MiB; this \
         machine has {} MiB of memory available",
        cache >> 20,
        checkpoint.tensor_bytes() >> 20,
        available >> 20,
    );
    Ok(())
}

/// Bytes that Linux could give to a process now; `None` elsewhere.
fn available_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

/// Limits with every 0 resolved: one sequence is bounded by the model and by the cache.
fn resolve(mut limits: WorkerLimits, context_length: u32) -> WorkerLimits {
    let wanted =
        if limits.max_sequence_tokens == 0 { context_length } else { limits.max_sequence_tokens };
    let cache = limits.num_blocks.saturating_mul(BLOCK_TOKENS as u32);
    limits.max_sequence_tokens = wanted.min(context_length).min(cache);
    limits
}

/// Version and hash of this executable: another build may round differently.
fn build_id() -> anyhow::Result<String> {
    let executable = std::env::current_exe().context("cannot find this executable")?;
    let hash = oarlock_model::hash_file(&executable).context("cannot read this executable")?;
    Ok(format!("{}-{}", env!("CARGO_PKG_VERSION"), &hash[..16]))
}
