//! `cargo xtask soak`: millions of random operations on the scheduler, every invariant checked.

use crate::step::step_command;
use crate::workspace::Workspace;

/// Builds for speed and runs `operations` operations in traces of the seeds from `seed` on.
pub(crate) fn run(workspace: &Workspace, operations: u64, seed: u64) -> anyhow::Result<()> {
    let mut soak = workspace.cargo();
    soak.args(["run", "--release", "--quiet", "--package", "oarlock-scheduler"]);
    soak.args(["--example", "soak", "--", "--operations", &operations.to_string()]);
    soak.args(["--seed", &seed.to_string()]);
    // The scheduler's own assertions are part of what is checked.
    soak.env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true");
    // The types of random traces fill pages of a backtrace.
    soak.env("RUST_BACKTRACE", "0");
    step_command("soak", &mut soak)
}
