//! End to end: the real binary with the demo model, through its processes, its sockets and its API.
//!
//! One test binary, and one server for all that only asks questions. Tests that need a server of
//! their own take turns, so that two cores are not shared by several models.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod api;
mod bench;
mod contract;
#[cfg(feature = "cuda")]
mod cuda;
mod determinism;
mod disturbance;
mod families;
mod gemma;
mod inspect;
mod keys;
mod lifecycle;
mod limits;
mod metrics;
mod netns;
mod options;
mod python;
mod ranks;
mod reference;
mod requests;
mod slow_clients;
mod storm;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use oarlock_testkit::{Server, ServerOptions, demo_model};

/// A question to a running server.
type Scenario = (&'static str, fn(&Server));

/// Everything that one ordinary server can answer, one after the other. All run, even after a
/// failure; the test names those that failed.
#[test]
fn questions_to_one_server() {
    let Some((_turn, model)) = turn() else { return };
    let server = Server::start(&ServerOptions::new(model).args([
        "--served-name",
        "demo",
        "--grpc-port",
        "0",
    ]))
    .unwrap();
    let scenarios: Vec<Scenario> =
        [reference::SCENARIOS, api::SCENARIOS, python::SCENARIOS].concat();
    let mut failed = Vec::new();
    for (name, scenario) in scenarios {
        eprintln!("scenario {name}");
        if catch_unwind(AssertUnwindSafe(|| scenario(&server))).is_err() {
            failed.push(name);
        }
    }
    assert!(failed.is_empty(), "failed: {failed:?}");
}

/// The demo model and the right to start a server; `None` where the model is not here.
fn turn() -> Option<(MutexGuard<'static, ()>, PathBuf)> {
    let model = demo_model()?;
    Some((alone(), model))
}

/// The right to start a server that should not share two cores with another large one.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
