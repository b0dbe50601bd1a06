//! A group of worker processes: start, load, watch, end.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use oarlock_rpc::{PlanSender, ResultStream, WorkerClient, WorkerError};
use oarlock_types::{Epoch, LoadProgress, WorkerDescription, WorkerLimits};
use tempfile::TempDir;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, sleep};

use crate::EngineOptions;
use crate::handle::Shared;

/// How long a fresh process may take until its socket is there.
const SOCKET_DEADLINE: Duration = Duration::from_secs(20);
/// How often the engine looks for the socket.
const SOCKET_POLL: Duration = Duration::from_millis(2);

/// Starts a group, telling the engine's status how loading goes.
pub(crate) async fn start_group(
    options: Arc<EngineOptions>,
    epoch: Epoch,
    shared: Shared,
) -> Result<(Group, WorkerDescription), WorkerError> {
    let limits = options.worker_limits(epoch);
    let progress = |so_far| shared.status.send_modify(|status| status.loading = so_far);
    Group::start(&options, limits, progress).await
}

/// One life of the workers. Dropping it kills them.
pub(crate) struct Group {
    child: Child,
    /// The write end of the worker's standard input: it ends when this closes.
    lifeline: Option<ChildStdin>,
    pub(crate) plans: PlanSender,
    pub(crate) results: ResultStream,
    /// The folder of the socket; goes with the group.
    _folder: TempDir,
}

impl Group {
    /// Starts a worker process and has it load the model.
    async fn start(
        options: &EngineOptions,
        limits: WorkerLimits,
        progress: impl FnMut(LoadProgress),
    ) -> Result<(Self, WorkerDescription), WorkerError> {
        // The folder is readable by this user only, so nobody else can talk to the worker.
        let folder = tempfile::Builder::new().prefix("oarlock-").tempdir();
        let folder = folder
            .map_err(|error| failed("cannot make a folder for the worker's socket", &error))?;
        let socket = folder.path().join("worker.sock");
        let mut child = spawn(options, &socket)?;
        // Taken out, since waiting for a child closes a standard input that it still has.
        let lifeline = child.stdin.take();
        wait_for_socket(&mut child, &socket).await?;
        let mut client = WorkerClient::new(&socket);
        let loaded = client.load(&options.model, limits, progress).await;
        let description = match loaded {
            Err(WorkerError::Lost(reason)) => {
                return Err(WorkerError::Lost(epitaph(&mut child, reason).await));
            }
            other => other?,
        };
        let (plans, results) = client.execute().await?;
        Ok((Self { child, lifeline, plans, results, _folder: folder }, description))
    }

    /// The worker's process id, while it runs.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.child.id().into_iter().collect()
    }

    /// Ends the worker and waits for its end. Returns how it ended, for the log.
    pub(crate) async fn end(mut self, reason: String) -> String {
        let reason = epitaph(&mut self.child, reason).await;
        drop(self.lifeline);
        // It may be gone already.
        drop(self.child.kill().await);
        reason
    }
}

fn spawn(options: &EngineOptions, socket: &Path) -> Result<Child, WorkerError> {
    let command = &options.worker;
    Command::new(&command.program)
        .args(&command.arguments)
        .arg("--socket")
        .arg(socket)
        .arg("--engine-pid")
        .arg(std::process::id().to_string())
        // The worker ends when this pipe closes; see its `process` module.
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit())
        // A terminal's Ctrl-C goes to the engine, which drains; the workers must outlive it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(&format!("cannot start {}", command.program.display()), &error))
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

/// Why the worker is lost: how its process ended, if it does so within a moment.
async fn epitaph(child: &mut Child, reason: String) -> String {
    match tokio::time::timeout(Duration::from_millis(200), child.wait()).await {
        Ok(Ok(status)) => format!("{reason}; the worker process ended ({status})"),
        _ => reason,
    }
}

fn failed(what: &str, error: &std::io::Error) -> WorkerError {
    WorkerError::Failed(format!("{what}: {error}"))
}
