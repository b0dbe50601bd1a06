//! Opens, packs and describes a model: what happens between a worker's start and its first plan.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use oarlock_backend::{Backend, BackendLimits};
use oarlock_collective::{Alone, Collective, SharedMemory, Tcp, TcpRendezvous, Transport};
use oarlock_model::{BufferType, Checkpoint, HashCache, Quantization};
use oarlock_types::{
    BLOCK_TOKENS, Fingerprint, GroupLink, LoadOptions, LoadProgress, WorkerDescription,
    WorkerLimits,
};

use crate::executor::{Execute, Executor};
use crate::fault::Fault;
use crate::kind::{BackendKind, Memory};
use crate::trace::TraceFile;
use crate::vitals::Vitals;

/// How long ranks wait for each other before they load: one may have to read its files from a slow disk
/// first. The engine finds those that are gone or stuck by then.
const MEETING: Duration = Duration::from_mins(2);
/// Rows whose logits are computed at once.
const MAX_GATHERED: usize = 32;

/// What a worker is told of loading on its command line.
#[derive(Clone, Debug, Default)]
pub struct LoadSettings {
    /// What decides the numbers.
    pub numbers: Numbers,
    /// Where to write checksums of all that is computed.
    pub trace: Option<PathBuf>,
    /// Where hashes of files are kept.
    pub hashes: Option<HashCache>,
}

/// Meets the other ranks, then opens, packs and describes this rank's part of the model.
pub(crate) fn load<K: BackendKind>(
    options: &LoadOptions,
    kind: &K,
    settings: &LoadSettings,
    rendezvous: Option<TcpRendezvous>,
    vitals: &Vitals,
    mut progress: impl FnMut(LoadProgress),
) -> anyhow::Result<(Box<dyn Execute>, WorkerDescription)> {
    let checkpoint = Checkpoint::open(Path::new(&options.model))?;
    let checkpoint = checkpoint
        .with_buffers(settings.numbers.buffers)
        .with_quantization(settings.numbers.quantization);
    let buffers = checkpoint.buffers();
    if buffers != BufferType::Float32 && options.shard.rank == 0 {
        tracing::info!(
            "buffers (frequencies of rotary embeddings, scales of embeddings) are rounded to {buffers}, as in a \
             model that was cast as a whole; --buffer-dtype float32 takes exact ones"
        );
    }
    // All that can be refused is, before peers are kept waiting.
    checkpoint.check_shard(options.shard)?;
    let card = checkpoint.card()?;
    let limits = resolve(options.limits, card.context_length);
    check_memory(&checkpoint, options, limits, &kind.memory(options.shard)?)?;
    let backend_limits = BackendLimits {
        max_tokens: limits.max_step_tokens as usize,
        max_gathered: MAX_GATHERED,
        max_chunks: limits.num_slots as usize,
        max_positions: limits.max_sequence_tokens as usize,
    };
    let mut backend = kind.make(options.shard, backend_limits)?;
    let fault = Fault::from_environment(options.shard, options.limits.epoch);
    let collective = fault.wrap(meet::<K>(options, rendezvous, vitals)?);
    let total_bytes = checkpoint.shard_bytes(options.shard);
    progress(LoadProgress { loaded_bytes: 0, total_bytes });
    let work = vitals.progress();
    K::follow(&mut backend, work.clone());
    // Hashed while it loads; a model that cannot be loaded does not wait for its hash.
    let stop = AtomicBool::new(!options.hash_weights);
    let hashing = work.clone();
    let advance = move || hashing.advance();
    let (model, hash) = std::thread::scope(|scope| {
        let hash = scope.spawn(|| checkpoint.hash(settings.hashes.as_ref(), &stop, &advance));
        let model = oarlock_model::load(
            &checkpoint,
            &mut backend,
            collective,
            limits.num_blocks as usize,
            &mut |so_far| {
                work.advance();
                progress(so_far);
            },
        );
        stop.fetch_or(model.is_err(), Ordering::Relaxed);
        (model, hash.join())
    });
    let model = model?;
    let hash = hash.map_err(|_| anyhow!("hashing the weights panicked"))?;
    let fingerprint = Fingerprint {
        weights: if options.hash_weights { hash? } else { String::new() },
        build: build_id(settings.hashes.as_ref())?,
        instruction_set: settings.numbers.fingerprint(
            &backend.instruction_set(),
            buffers,
            checkpoint.variant(limits.max_sequence_tokens as usize),
        ),
    };
    let memory_bytes = backend.memory_bytes();
    let mut executor =
        Executor::new(backend, model, limits).with_vitals(work, vitals.step()).with_fault(fault);
    if let Some(path) = &settings.trace {
        let file = TraceFile::open(path).with_context(|| path.display().to_string())?;
        executor = executor.with_trace(file);
    }
    Ok((Box::new(executor), WorkerDescription { card, fingerprint, limits, memory_bytes }))
}

/// The way to the other ranks, once all have met.
fn meet<K: BackendKind>(
    options: &LoadOptions,
    rendezvous: Option<TcpRendezvous>,
    vitals: &Vitals,
) -> anyhow::Result<Box<dyn Collective<K::Backend>>> {
    let (shard, epoch) = (options.shard, options.limits.epoch.0);
    let stall = Duration::from_millis(options.stall_ms.into());
    let transport: Box<dyn Transport> = match &options.link {
        GroupLink::Alone => return Ok(Box::new(Alone)),
        GroupLink::SharedMemory(path) => {
            Box::new(SharedMemory::join(Path::new(path), shard, epoch, MEETING, stall)?)
        }
        GroupLink::Tcp { addresses, secret } => {
            let rendezvous = rendezvous.context("the engine never asked this rank to listen")?;
            Box::new(Tcp::connect(rendezvous, shard, addresses, *secret, epoch, MEETING, stall)?)
        }
    };
    vitals.follow(transport.progress(), transport.waiting());
    K::collective(transport)
}

/// Refuses a cache that there is no memory for, before the kernel ends a worker over it. All ranks of the
/// host load at the same time.
fn check_memory(
    checkpoint: &Checkpoint,
    options: &LoadOptions,
    limits: WorkerLimits,
    memory: &Memory,
) -> anyhow::Result<()> {
    let shard = options.shard;
    let ranks = if memory.is_shared { u64::from(options.ranks_on_host) } else { 1 };
    let tokens = u64::from(limits.num_blocks) * BLOCK_TOKENS as u64;
    let elements = checkpoint.kv_elements_per_token(shard) as u64;
    let cache = tokens * elements * memory.kv_element_bytes * ranks;
    let packed = checkpoint.packed_shard_bytes(shard, &memory.packed_kind);
    let weights = packed.saturating_mul(ranks);
    let available = memory.available_bytes.unwrap_or(u64::MAX);
    anyhow::ensure!(
        cache.saturating_add(weights) <= available,
        "a KV cache of {tokens} tokens (--kv-cache-tokens) takes {} MiB and the weights {} MiB; {} has {} \
         MiB of memory available",
        cache >> 20,
        weights >> 20,
        memory.name,
        available >> 20,
    );
    Ok(())
}

/// What decides the numbers beside the model and the device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Numbers {
    /// What is computed at load is rounded to this.
    pub buffers: BufferType,
    /// What linear layers stored as floats are packed as.
    pub quantization: Quantization,
}

impl Numbers {
    /// What decides the bits, for the fingerprint.
    fn fingerprint(
        self,
        instruction_set: &str,
        buffers: BufferType,
        variant: Option<&str>,
    ) -> String {
        let mut all = instruction_set.to_owned();
        if buffers != BufferType::Float32 {
            let _ = write!(all, "-buffers-{buffers}");
        }
        if let Some(variant) = variant {
            let _ = write!(all, "-{variant}");
        }
        if self.quantization != Quantization::None {
            let _ = write!(all, "-{}", self.quantization);
        }
        all
    }
}

/// Limits with every 0 resolved: one sequence is bounded by the model and by the cache.
fn resolve(mut limits: WorkerLimits, context_length: u32) -> WorkerLimits {
    let wanted =
        if limits.max_sequence_tokens == 0 { context_length } else { limits.max_sequence_tokens };
    let cache = limits.num_blocks.saturating_mul(BLOCK_TOKENS as u32);
    if limits.max_sequence_tokens > context_length {
        tracing::warn!(
            "--max-sequence-tokens {wanted}: the model was made for {context_length}, which holds"
        );
    }
    limits.max_sequence_tokens = wanted.min(context_length).min(cache);
    limits
}

/// Version and hash of this executable: another build may round differently.
fn build_id(hashes: Option<&HashCache>) -> anyhow::Result<String> {
    let executable = std::env::current_exe().context("cannot find this executable")?;
    let hash = oarlock_model::hash_file(&executable, hashes);
    let hash = hash.context("cannot read this executable")?;
    Ok(format!("{}-{}", env!("CARGO_PKG_VERSION"), &hash[..16]))
}
