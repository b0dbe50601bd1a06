//! `oarlock serve`: gateway, engine and workers on one machine, over the cluster's own protocol.

use std::future::Future;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use oarlock_access::Access;
use oarlock_discovery::{InMemory, Member};
use oarlock_engine::{Engine, EngineHandle, EngineOptions, WorkerCommand};
use oarlock_gateway::{GatewayConfig, Listeners};
use oarlock_rpc::{EngineApi as _, EngineClient};
use oarlock_text::Tokenizer;
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::arguments::{GenerationConfig, ServeArguments};
use crate::{fetch, loading};

/// How long the engine may take once the gateway has no request left.
const DRAIN_AFTER_GATEWAY: Duration = Duration::from_secs(5);

/// Serves `model` until a signal; returns once everything is drained.
pub(crate) async fn serve(arguments: ServeArguments, model: PathBuf) -> anyhow::Result<()> {
    let listener =
        TcpListener::bind((arguments.host, arguments.port)).await.with_context(|| {
            format!("cannot listen on {}:{} (--host, --port)", arguments.host, arguments.port)
        })?;
    let address = listener.local_addr()?;
    let grpc = match arguments.grpc_port {
        None => None,
        Some(port) => Some(TcpListener::bind((arguments.host, port)).await.with_context(|| {
            format!("cannot listen on {}:{port} (--host, --grpc-port)", arguments.host)
        })?),
    };
    let grpc_address = grpc.as_ref().map(TcpListener::local_addr).transpose()?;
    let terminated = terminated()?;
    let config = gateway_config(&arguments)?;
    let engine = Engine::start(engine_options(&arguments, model)?);
    let served_name = served_name(&arguments);
    let display = tokio::spawn(loading::show(engine.handle().watch(), served_name.clone()));

    // The gateway talks to the engine as it would in a cluster: by gRPC, found through discovery.
    let folder = tempfile::Builder::new().prefix("oarlock-").tempdir()?;
    let socket = folder.path().join("engine.sock");
    let (stop_engine_server, stopped) = oneshot::channel::<()>();
    let engine_server = tokio::spawn(oarlock_rpc::serve_engine(
        Arc::new(engine.handle()),
        UnixListener::bind(&socket)?,
        async { drop(stopped.await) },
    ));
    let members = InMemory::default();
    let client = Arc::new(EngineClient::new(&socket));
    members.register(Member { id: "local-0".to_owned(), served_name, engine: client });

    let (stop_gateway, gateway_stopped) = oneshot::channel::<()>();
    let listeners = Listeners { http: listener, grpc };
    let gateway = tokio::spawn(oarlock_gateway::serve(listeners, members.view(), config, async {
        drop(gateway_stopped.await);
    }));
    if let Some(address) = grpc_address {
        announce(&format!("listening on grpc://{address}"))?;
    }
    announce(&format!("listening on http://{address}"))?;

    tokio::pin!(gateway, terminated);
    tokio::select! {
        // A model that cannot be loaded ends the server with one clear message.
        ready = engine.ready() => ready.context("the model cannot be served")?,
        () = &mut terminated => return Ok(()),
    }
    drop(display.await);
    check_tokenizer(&engine.handle()).await?;
    info!("ready");

    tokio::select! {
        () = &mut terminated => {}
        // Whoever supervises this process starts it again, or shows the reason.
        reason = engine.failed() => anyhow::bail!("the engine gave up: {reason}"),
        ended = &mut gateway => {
            ended.context("the gateway panicked")??;
            anyhow::bail!("the gateway ended");
        }
    }
    info!("draining: running requests finish, new ones are refused; a second signal ends at once");
    let _ = stop_gateway.send(());
    gateway.await.context("the gateway panicked")??;
    let drain = tokio::time::timeout(DRAIN_AFTER_GATEWAY, engine.drain());
    if drain.await.is_err() {
        warn!("the engine still had requests");
    }
    let _ = stop_engine_server.send(());
    engine_server.abort();
    Ok(())
}

fn served_name(arguments: &ServeArguments) -> String {
    arguments.served_name.clone().unwrap_or_else(|| arguments.model.default_name())
}

fn gateway_config(arguments: &ServeArguments) -> anyhow::Result<GatewayConfig> {
    arguments.limits.raise_open_files();
    let access = match &arguments.keys {
        Some(path) => Access::load(path).context("--keys")?,
        None => Access::default(),
    };
    if !access.demands_key() && !arguments.host.is_loopback() {
        let host = arguments.host;
        warn!(%host, "everybody who reaches this address may use the server: there are no keys");
    }
    let mut config = GatewayConfig {
        access,
        drain_timeout: Duration::from_secs(arguments.drain_seconds),
        model_defaults: arguments.generation_config == GenerationConfig::Model,
        request: arguments.request_limits.limits(),
        ..GatewayConfig::default()
    };
    arguments.limits.apply(&mut config);
    Ok(config)
}

fn engine_options(arguments: &ServeArguments, model: PathBuf) -> anyhow::Result<EngineOptions> {
    // Checked here, where the person at the terminal sees it at once.
    arguments.compute.instruction_set()?;
    let mut worker_arguments = vec!["worker".into()];
    worker_arguments.extend(arguments.compute.to_arguments(arguments.tensor_parallel)?);
    // Without a home directory there is no cache, and files are hashed at every start.
    if let Ok(cache) = fetch::cache_dir(arguments.cache.clone()) {
        worker_arguments.extend(["--hashes".into(), cache.join("hashes").into()]);
    }
    if let Some(folder) = &arguments.trace {
        std::fs::create_dir_all(folder).with_context(|| format!("--trace {}", folder.display()))?;
    }
    Ok(EngineOptions {
        served_name: served_name(arguments),
        model,
        worker: WorkerCommand {
            program: std::env::current_exe().context("cannot find this executable")?,
            arguments: worker_arguments,
            launcher: arguments.worker_launcher.clone().map_or_else(Vec::new, |words| words.0),
        },
        max_seqs: arguments.max_seqs,
        max_queued: arguments.max_queued,
        max_queued_tokens: arguments.max_queued_tokens,
        kv_cache_tokens: arguments.kv_cache_tokens,
        step_tokens: arguments.step_tokens,
        chunk_tokens: arguments.chunk_tokens,
        max_sequence_tokens: arguments.max_sequence_tokens,
        tensor_parallel: arguments.tensor_parallel,
        collective: arguments.collective.into(),
        stall: Duration::from_secs_f32(arguments.stall_seconds),
        max_plans_in_flight: arguments.max_plans_in_flight,
        trace: arguments.trace.clone(),
    })
}

/// Resolves at the first SIGTERM or SIGINT; a second one ends the process at once.
fn terminated() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            std::process::exit(130);
        });
    })
}

/// A model whose texts cannot be read is refused at start, not at the first request.
async fn check_tokenizer(engine: &EngineHandle) -> anyhow::Result<()> {
    let description = engine.describe().await?;
    let check = move || match &description.card.tokenizer {
        Some(source) => Tokenizer::new(source).map(drop),
        None => Ok(()),
    };
    tokio::task::spawn_blocking(check).await?.context("the model cannot be served")
}

/// A line on standard output, for people and for programs that started this one.
fn announce(line: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{line}")?;
    stdout.flush()?;
    Ok(())
}
