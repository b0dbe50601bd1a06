//! `cargo xtask lint`: everything that can be said about the code without running it.

use crate::step::{step, step_command};
use crate::tidy;
use crate::workspace::Workspace;

/// Runs the checks in the order of their cost, and stops at the first that fails.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    step_command("format", workspace.cargo().args(["fmt", "--all", "--check"]))?;
    step("tidy", || tidy::run(workspace))?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    step_command("clippy", workspace.cargo().args(clippy))?;
    let mut doc = workspace.cargo();
    doc.args(["doc", "--no-deps", "--workspace"]).env("RUSTDOCFLAGS", "-Dwarnings");
    step_command("documentation", &mut doc)
}
