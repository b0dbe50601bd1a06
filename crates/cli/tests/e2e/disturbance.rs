//! How tests disturb a server at the right moment, on a machine where every thread may be late.

use std::thread;
use std::time::Duration;

use oarlock_testkit::{PATIENCE, Server, Signal, send_signal, wait_until};
use serde_json::Value;

/// Of a server whose workers stand still for a test: it is not to take them for stuck.
pub(crate) const PATIENT: &str = "--stall-seconds=120";

/// Tokens that may still come of a sequence whose workers stand still: those of plans in flight, and one more
/// that is on its way.
pub(crate) const ON_THEIR_WAY: usize = 3;

/// Workers that stand still until this is dropped. (Their server must be [`PATIENT`].)
pub(crate) struct Stopped(Vec<u32>);

impl Stopped {
    /// Stops all ranks.
    pub(crate) fn all(server: &Server) -> Self {
        let pids = server.worker_pids();
        assert!(!pids.is_empty(), "no worker to stop: {}", server.log());
        for pid in &pids {
            send_signal(*pid, Signal::STOP);
        }
        Self(pids)
    }

    /// Kills one of them; the others never go on, their engine ends them.
    pub(crate) fn kill(mut self, rank: usize) {
        let pids = std::mem::take(&mut self.0);
        send_signal(pids[rank % pids.len()], Signal::KILL);
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for pid in &self.0 {
            send_signal(*pid, Signal::CONT);
        }
    }
}

/// What `disturb` gives when it came in time, or else what happened: a small model may give its answer while the
/// test's own thread waits for a core.
pub(crate) fn in_its_middle<T>(mut disturb: impl FnMut() -> Result<T, String>) -> T {
    let mut late = Vec::new();
    while late.len() < 10 {
        match disturb() {
            Ok(found) => return found,
            Err(what) => late.push(what),
        }
    }
    panic!("no answer was disturbed in its middle: {late:?}")
}

/// Posts completions at once, and others with them: the workers stand still until the last one is there. Gives
/// the answers to `requests`.
pub(crate) fn post_in_company(server: &Server, requests: &[Value], others: &[Value]) -> Vec<Value> {
    let post = |request: &Value| server.post("/v1/completions", request).ok_json();
    let before = server.metric("oarlock_generation_tokens_total");
    let stopped = Stopped::all(server);
    thread::scope(|scope| {
        for other in others {
            scope.spawn(move || post(other));
        }
        let ours: Vec<_> =
            requests.iter().map(|request| scope.spawn(move || post(request))).collect();
        let all = (others.len() + requests.len()) as f64;
        wait_until("all are there", PATIENCE, || {
            let metrics = server.metrics();
            let count = |state| metrics.sum(&format!("oarlock_num_requests_{state}")).unwrap();
            count("running") + count("waiting") >= all
        });
        let now = server.metric("oarlock_generation_tokens_total");
        assert_eq!(now, before, "nobody was early");
        drop(stopped);
        ours.into_iter().map(|asking| asking.join().unwrap()).collect()
    })
}

/// Waits until no request is left and everything that they had is given back.
pub(crate) fn wait_for_rest(server: &Server) {
    wait_until("everything is given back", Duration::from_secs(15), || {
        let metrics = server.metrics();
        [
            "oarlock_num_requests_running",
            "oarlock_num_requests_waiting",
            "oarlock_num_tokens_waiting",
            "oarlock_kv_blocks_in_use",
        ]
        .iter()
        .all(|name| metrics.sum(name) == Some(0.0))
    });
}
