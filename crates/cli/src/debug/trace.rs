//! Computes one sequence on an engine of its own, with its real workers, and prints their checksums.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use oarlock_engine::{Engine, EngineOptions, WorkerCommand};
use oarlock_rpc::EngineApi as _;
use oarlock_types::{
    CacheSalt, EventKind, FinishReason, Priority, Request, RequestId, SamplingParams, StopCriteria,
    TenantId, TokenId,
};
use serde_json::json;

use super::TraceArguments;
use super::compare;

/// No step of a traced run is quick.
const STALL: Duration = Duration::from_mins(1);

pub(super) fn run(arguments: &TraceArguments) -> anyhow::Result<()> {
    let model = crate::model_path(&arguments.model, arguments.cache.clone())?;
    let temporary = tempfile::tempdir()?;
    let folder = match &arguments.keep {
        None => temporary.path().to_owned(),
        Some(folder) => {
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
            let is_empty = folder.read_dir()?.next().is_none();
            anyhow::ensure!(is_empty, "--keep {}: the folder is not empty", folder.display());
            folder.canonicalize()?
        }
    };
    let options = options(arguments, model, &folder)?;
    tokio::runtime::Runtime::new()?.block_on(generate(options, arguments))?;
    print(&folder, arguments.json)
}

fn options(
    arguments: &TraceArguments,
    model: PathBuf,
    folder: &Path,
) -> anyhow::Result<EngineOptions> {
    arguments.compute.instruction_set()?;
    let mut words = vec!["worker".into()];
    words.extend(arguments.compute.to_arguments(arguments.tensor_parallel)?);
    let num_tokens = arguments.tokens.len() as u32 + arguments.max_tokens;
    Ok(EngineOptions {
        served_name: "trace".to_owned(),
        model,
        worker: WorkerCommand {
            program: std::env::current_exe().context("cannot find this executable")?,
            arguments: words,
            launcher: Vec::new(),
        },
        max_seqs: 1,
        max_queued: 1,
        max_queued_tokens: u64::MAX,
        kv_cache_tokens: num_tokens + 16,
        step_tokens: arguments.tokens.len().max(1) as u32,
        chunk_tokens: arguments.chunk_tokens,
        max_sequence_tokens: 0,
        tensor_parallel: arguments.tensor_parallel,
        collective: arguments.collective.into(),
        stall: STALL,
        max_plans_in_flight: 1,
        trace: Some(folder.to_owned()),
    })
}

async fn generate(options: EngineOptions, arguments: &TraceArguments) -> anyhow::Result<()> {
    let engine = Engine::start(options);
    engine.ready().await.context("the model cannot be served")?;
    let request = Request {
        id: RequestId(0),
        tokens: arguments.tokens.iter().copied().map(TokenId).collect(),
        num_prompt: arguments.tokens.len() as u32,
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        stop: StopCriteria { max_tokens: arguments.max_tokens, stop_token_ids: Vec::new() },
        prompt_logprobs: None,
        priority: Priority::default(),
        tenant: TenantId(0),
        salt: CacheSalt(0),
        deadline: None,
        group: None,
    };
    let mut events = engine.handle().generate(request).await?;
    while let Some(event) = events.next().await {
        if let EventKind::Finished { reason, .. } = event? {
            let is_good = matches!(reason, FinishReason::Stop | FinishReason::Length);
            anyhow::ensure!(is_good, "the sequence ended early: {reason:?}");
        }
    }
    engine.drain().await;
    Ok(())
}

fn print(folder: &Path, as_json: bool) -> anyhow::Result<()> {
    let (records, _) = compare::read(folder)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    if !as_json {
        writeln!(out, "position layer operation part checksum")?;
    }
    for (place, checksum) in records {
        let (position, part, operation) = (place.position, place.part, place.operation());
        let checksum = format!("{checksum:016x}");
        if as_json {
            let record = json!({
                "position": position, "layer": place.layer(), "operation": operation,
                "part": part, "checksum": checksum,
            });
            writeln!(out, "{record}")?;
        } else {
            let layer = place.layer().map_or_else(|| "-".to_owned(), |layer| layer.to_string());
            writeln!(out, "{position} {layer} {operation} {part} {checksum}")?;
        }
    }
    out.flush()?;
    Ok(())
}
