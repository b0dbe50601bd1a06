//! A server of one's own: `oarlock serve` as a child process that ends with the test.

use std::io::{BufRead as _, BufReader, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{Client, EventStream, Metrics, Response, binary};

/// What the binary prints once its port is open.
const LISTENING: &str = "listening on http://";

/// What it prints before that, where it serves gRPC.
const LISTENING_GRPC: &str = "listening on grpc://";

/// How long to wait for what must happen, on a machine that is busy with other things: nothing is proved by a
/// shorter time.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// How often a condition outside of this process is looked at.
const POLL: Duration = Duration::from_millis(20);

/// A metric that every engine has, whatever its state.
const ENGINE_METRIC: &str = "oarlock_engine_ready";

/// What a server may take to drain before it is killed, when a test is over, and its log to end after it.
const DRAIN: Duration = Duration::from_secs(10);

/// How to start a server.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    model: PathBuf,
    args: Vec<String>,
    env: Vec<(String, String)>,
    timeout: Duration,
}

impl ServerOptions {
    /// Serves this model on a free port of 127.0.0.1, and is ready within [`PATIENCE`].
    pub fn new(model: impl Into<PathBuf>) -> ServerOptions {
        ServerOptions { model: model.into(), args: vec![], env: vec![], timeout: PATIENCE }
    }

    /// More arguments of `oarlock serve`.
    #[must_use]
    pub fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> ServerOptions {
        self.args.extend(args.into_iter().map(str::to_owned));
        self
    }

    /// An environment variable of the server.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> ServerOptions {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Another limit on the time until it is ready.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> ServerOptions {
        self.timeout = timeout;
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new(binary());
        command.arg("serve").arg("--model").arg(&self.model);
        command.args(["--host", "127.0.0.1", "--port", "0"]).args(&self.args);
        // Tests are about one device, whatever the machine has.
        if !self.args.iter().any(|word| word.starts_with("--device")) {
            command.args(["--device", "cpu"]);
        }
        // Hashes that are believed are not to come from other servers of this user.
        if !self.args.iter().any(|word| word.starts_with("--cache")) {
            command.arg("--cache").arg(std::env::temp_dir().join("oarlock-tests"));
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// A running server. Dropping it stops it; when the test is failing, its log is shown.
pub struct Server {
    child: Child,
    address: SocketAddr,
    log: Arc<Log>,
}

impl Server {
    /// Starts a server and waits until it is ready.
    ///
    /// Where it is not ready in time, or exits, that is an error with all it printed.
    pub fn start(options: &ServerOptions) -> anyhow::Result<Server> {
        Server::start_command(options.command(), options.timeout)
    }

    fn start_command(mut command: Command, timeout: Duration) -> anyhow::Result<Server> {
        let deadline = Instant::now() + timeout;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start the server")?;
        let log = Arc::new(Log::default());
        if let Some(stdout) = child.stdout.take() {
            log.follow(stdout);
        }
        if let Some(stderr) = child.stderr.take() {
            log.follow(stderr);
        }
        // From here on, leaving early stops the child.
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Server { child, address: unknown, log };
        match server.wait_until_ready(deadline) {
            Ok(()) => Ok(server),
            Err(error) => {
                let _ = server.child.kill();
                let _ = server.child.wait();
                server.log.wait_for_end();
                Err(anyhow!("{error:#}; the server printed:\n{}", server.log()))
            }
        }
    }

    fn wait_until_ready(&mut self, deadline: Instant) -> anyhow::Result<()> {
        self.address = self.log.wait_for_address(deadline)?;
        loop {
            match self.get_ready() {
                Ok(200) => return Ok(()),
                answer if Instant::now() >= deadline => {
                    bail!("the server is not ready in time (/ready: {answer:?})")
                }
                _ => {}
            }
            if let Some(status) = self.child.try_wait().context("cannot look at the server")? {
                bail!("the server ended with {status} before it was ready");
            }
            thread::sleep(POLL);
        }
    }

    fn get_ready(&self) -> anyhow::Result<u16> {
        let client = self.client().with_timeout(Duration::from_secs(5));
        Ok(client.get("/ready")?.status)
    }

    /// Its address, for example `http://127.0.0.1:41234`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Host and port of its gRPC API. Panics where it was started without `--grpc-port`.
    pub fn grpc_address(&self) -> String {
        let log = self.log();
        let mut lines = log.lines().filter_map(|line| line.split_once(LISTENING_GRPC));
        lines.next().expect("a server with --grpc-port says where it listens").1.trim().to_owned()
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// GET. Panics where there is no answer.
    pub fn get(&self, path: &str) -> Response {
        self.client().get(path).unwrap_or_else(|error| panic!("GET {path}: {error:#}"))
    }

    /// POST of a JSON body. Panics where there is no answer.
    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.client().post(path, body).unwrap_or_else(|error| panic!("POST {path}: {error:#}"))
    }

    /// POST of a JSON body that is answered with events. Panics where it is not.
    pub fn stream(&self, path: &str, body: &Value) -> EventStream {
        self.client().stream(path, body).unwrap_or_else(|error| panic!("POST {path}: {error:#}"))
    }

    /// A scrape of `/metrics` that the engine took part in: one that is busy for seconds is left out, which may
    /// happen, and not again and again. Panics where it does.
    pub fn metrics(&self) -> Metrics {
        for _ in 0..3 {
            let metrics = Metrics::parse(self.get("/metrics").text());
            if metrics.sum(ENGINE_METRIC).is_some() {
                return metrics;
            }
            eprintln!("/metrics has no {ENGINE_METRIC}");
        }
        panic!("the engine is in no scrape")
    }

    /// The sum over all label sets of a metric. Panics where there is none of that name.
    pub fn metric(&self, name: &str) -> f64 {
        self.metrics().sum(name).unwrap_or_else(|| panic!("/metrics has no {name}"))
    }

    /// Process id of the server (the parent of the workers).
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Process ids of the workers by rank, as `oarlock_worker_info{rank="0",pid="123"} 1` tells them.
    pub fn worker_pids(&self) -> Vec<u32> {
        let metrics = self.metrics();
        let number = |text: &str| -> u32 { text.parse().expect("a number") };
        let ranks = metrics.labels("oarlock_worker_info", "rank");
        let pids = metrics.labels("oarlock_worker_info", "pid");
        let mut workers: Vec<_> =
            ranks.into_iter().map(number).zip(pids.into_iter().map(number)).collect();
        workers.sort_unstable();
        workers.into_iter().map(|(_, pid)| pid).collect()
    }

    /// What it has printed so far, on both streams.
    pub fn log(&self) -> String {
        self.log.lock().lines.join("\n")
    }

    /// Waits until it has printed `text`: what it does may be seen before what it says. Panics where it does not.
    pub fn wait_for_log(&self, text: &str) {
        let waits = |state: &mut LogState| !state.has(text) && state.open_streams > 0;
        let waited = self.log.changed.wait_timeout_while(self.log.lock(), PATIENCE, waits);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        assert!(state.has(text), "not in the log: {text}\n{}", state.lines.join("\n"));
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        send_signal(self.pid(), signal);
    }

    /// Waits for its end; `None` where it still runs after `timeout`.
    pub fn wait_for_exit(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            thread::sleep(POLL);
        }
    }

    /// Asks it to drain, and waits for its end. Panics where that takes longer than `timeout`.
    pub fn stop(mut self, timeout: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        let status = self.wait_for_exit(timeout);
        status.unwrap_or_else(|| panic!("it still runs {timeout:?} after SIGTERM"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.wait_for_exit(Duration::ZERO).is_none() {
            self.signal(Signal::TERM);
            // A failing test must not wait for a server that may be stuck.
            let drain = if thread::panicking() { Duration::from_secs(1) } else { DRAIN };
            if self.wait_for_exit(drain).is_none() {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
        if thread::panicking() {
            eprintln!("---- log of the server {} ----\n{}\n----", self.url(), self.log());
        }
    }
}

/// Sends a signal to a process; one that is gone already is no error.
pub fn send_signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    match kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("cannot send {signal:?} to {pid:?}: {error}"),
    }
}

/// Waits until `condition` holds; panics with `what` where it does not within `timeout`.
///
/// For what another process does in its own time. What can be waited for by reading is read.
pub fn wait_until(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + timeout;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {timeout:?}: {what}");
        thread::sleep(POLL);
    }
}

/// The lines that a child printed, filled by threads that end with it.
#[derive(Default)]
struct Log {
    state: Mutex<LogState>,
    changed: Condvar,
}

#[derive(Default)]
struct LogState {
    lines: Vec<String>,
    address: Option<SocketAddr>,
    open_streams: usize,
}

impl LogState {
    fn has(&self, text: &str) -> bool {
        self.lines.iter().any(|line| line.contains(text))
    }
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn follow(self: &Arc<Self>, stream: impl Read + Send + 'static) {
        self.lock().open_streams += 1;
        let log = Arc::clone(self);
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                log.push(String::from_utf8_lossy(&line).into_owned());
            }
            log.lock().open_streams -= 1;
            log.changed.notify_all();
        });
    }

    fn push(&self, line: String) {
        let mut state = self.lock();
        if let Some((_, rest)) = line.split_once(LISTENING) {
            let address = rest.split_whitespace().next().unwrap_or_default();
            state.address = state.address.or(address.trim_end_matches('/').parse().ok());
        }
        state.lines.push(line);
        drop(state);
        self.changed.notify_all();
    }

    /// Blocks until the child, which is gone, closed its streams; one that it left to another process may stay open.
    fn wait_for_end(&self) {
        let is_open = |state: &mut LogState| state.open_streams > 0;
        drop(self.changed.wait_timeout_while(self.lock(), DRAIN, is_open));
    }

    /// Blocks until the line with the address came, the child closed its streams, or it is late.
    fn wait_for_address(&self, deadline: Instant) -> anyhow::Result<SocketAddr> {
        let waits = |state: &mut LogState| state.address.is_none() && state.open_streams > 0;
        let timeout = deadline.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout_while(self.lock(), timeout, waits);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match state.address {
            Some(address) => Ok(address),
            None if state.open_streams == 0 => bail!("the server ended without `{LISTENING}…`"),
            None => bail!("the server did not say `{LISTENING}…` in time"),
        }
    }
}

#[cfg(test)]
mod tests;
