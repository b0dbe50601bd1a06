//! `cargo xtask lint`: everything that can be said about the code without running it.

use crate::cuda;
use crate::step::{step, step_command};
use crate::tidy;
use crate::workspace::Workspace;

/// Runs the checks in the order of their cost, and stops at the first that fails.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    step_command("format", workspace.cargo().args(["fmt", "--all", "--check"]))?;
    step("tidy", || tidy::run(workspace))?;
    if std::env::var_os("CI").is_some() {
        step("CUDA toolkit", || cuda::install_toolkit(workspace))?;
    }
    let mut clippy = workspace.cargo();
    clippy.arg("clippy").args(cuda::build_options(workspace)).args(["--", "-D", "warnings"]);
    step_command("clippy", &mut clippy)?;
    let mut doc = workspace.cargo();
    doc.args(["doc", "--no-deps", "--workspace"]).env("RUSTDOCFLAGS", "-Dwarnings");
    step_command("documentation", &mut doc)
}
