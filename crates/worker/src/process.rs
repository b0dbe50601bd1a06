//! The life of a worker process: bound to its engine, serving one socket.

use std::io::Read as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::kind::BackendKind;
use crate::load::LoadSettings;
use crate::service::Worker;

/// What a worker process is told on its command line.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// The socket to serve, in a folder that only the engine's user may enter.
    pub socket: PathBuf,
    /// Process id of the engine; the worker ends with it.
    pub engine_pid: u32,
    /// How it loads.
    pub load: LoadSettings,
    /// The address at which other ranks reach this one; `None` lets the worker choose.
    pub collective_host: Option<IpAddr>,
}

/// Runs a worker on this kind of backend until its engine goes.
pub async fn run<K: BackendKind>(options: WorkerOptions, kind: K) -> anyhow::Result<()> {
    end_with(options.engine_pid)?;
    // A supervisor's SIGTERM to the whole service is for the engine, which drains; its workers must
    // outlive that. Listening for the signals is what takes their effect away.
    let _ignored = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let listener = listen(&options.socket)
        .with_context(|| format!("cannot listen on {}", options.socket.display()))?;
    let worker = Arc::new(Worker::new(kind, options));
    oarlock_rpc::serve_worker(worker, listener, std::future::pending()).await?;
    Ok(())
}

/// Listens under a name of its own first: the engine connects as soon as it sees the socket, and a
/// bound socket that does not listen yet would refuse it.
fn listen(socket: &Path) -> std::io::Result<UnixListener> {
    let not_yet = socket.with_extension("new");
    let listener = UnixListener::bind(&not_yet)?;
    std::fs::rename(not_yet, socket)?;
    Ok(listener)
}

/// Makes this process end with its engine, twice: the kernel kills it when the parent dies, even if
/// it is stopped or stuck; and end-of-file on standard input ends it where the kernel has no such
/// signal for it (the engine's thread ended, a debugger in between).
fn end_with(engine_pid: u32) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot ask for a death signal")?;
    // The engine may have died before the call above.
    let parent = getppid().map(|pid| pid.as_raw_nonzero().get().cast_unsigned());
    if parent != Some(engine_pid) {
        anyhow::bail!("the engine (process {engine_pid}) is gone");
    }
    std::thread::spawn(|| {
        let mut byte = [0];
        while matches!(std::io::stdin().read(&mut byte), Ok(1..)) {}
        std::process::exit(0);
    });
    Ok(())
}
