//! One rank of a group: its process, and the way to it.

use std::ffi::OsString;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use oarlock_rpc::{WorkerClient, WorkerError};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use crate::EngineOptions;

/// How long a fresh process may take until its socket is there.
const SOCKET_DEADLINE: Duration = Duration::from_secs(20);
/// How long a killed process may take to give back what it has.
const END_DEADLINE: Duration = Duration::from_secs(30);
/// How often the engine looks for the socket.
const SOCKET_POLL: Duration = Duration::from_millis(2);

/// A worker process. Dropping it kills it.
pub(crate) struct RankProcess {
    pub(crate) rank: usize,
    pid: Option<u32>,
    child: Child,
    /// The write end of the worker's standard input: it ends when this closes.
    _lifeline: Option<ChildStdin>,
    pub(crate) client: WorkerClient,
}

impl RankProcess {
    /// Starts a process whose socket is `folder/worker-RANK.sock`, and waits until it listens.
    pub(crate) async fn start(
        options: &EngineOptions,
        rank: usize,
        folder: &Path,
    ) -> Result<Self, WorkerError> {
        let socket = folder.join(format!("worker-{rank}.sock"));
        let mut child = spawn(options, rank, &socket)?;
        // Taken out, since waiting for a child closes a standard input that it still has.
        let lifeline = child.stdin.take();
        wait_for_socket(&mut child, &socket).await?;
        let client = WorkerClient::new(&socket);
        Ok(Self { rank, pid: child.id(), child, _lifeline: lifeline, client })
    }

    /// The process id, while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// How its process ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Ends the process, also one that is stopped, and waits for its end; not for ever, since a process
    /// that waits for a broken disk or device cannot be ended.
    pub(crate) async fn kill(&mut self) {
        // It may be gone already.
        if timeout(END_DEADLINE, self.child.kill()).await.is_err() {
            let seconds = END_DEADLINE.as_secs();
            warn!("{} was killed and has not ended within {seconds} s", self.name());
        }
    }

    /// `rank 1 (process 123)`.
    pub(crate) fn name(&self) -> String {
        match self.pid {
            Some(pid) => format!("rank {} (process {pid})", self.rank),
            None => format!("rank {}", self.rank),
        }
    }
}

fn spawn(options: &EngineOptions, rank: usize, socket: &Path) -> Result<Child, WorkerError> {
    let worker = &options.worker;
    let mut words: Vec<OsString> = Vec::new();
    let launcher = worker.launcher.iter();
    words.extend(launcher.map(|word| word.replace("{rank}", &rank.to_string()).into()));
    words.push(worker.program.clone().into());
    words.extend(worker.arguments.iter().cloned());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).arg("--socket").arg(socket);
    command.arg("--engine-pid").arg(std::process::id().to_string());
    if let Some(folder) = &options.trace {
        command.arg("--trace").arg(folder.join(format!("rank-{rank}.trace")));
    }
    command
        // The worker ends when this pipe closes; see its `process` module.
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        // A terminal's Ctrl-C goes to the engine, which drains; the workers must outlive it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| {
            WorkerError::Failed(format!("cannot start {}: {error}", words[0].to_string_lossy()))
        })
}

async fn wait_for_socket(child: &mut Child, socket: &Path) -> Result<(), WorkerError> {
    let deadline = Instant::now() + SOCKET_DEADLINE;
    while !socket.exists() {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(WorkerError::Failed(format!(
                "the worker ended before it was ready ({status})"
            )));
        }
        if Instant::now() > deadline {
            return Err(WorkerError::Failed(format!(
                "the worker did not listen within {} s",
                SOCKET_DEADLINE.as_secs()
            )));
        }
        sleep(SOCKET_POLL).await;
    }
    Ok(())
}
