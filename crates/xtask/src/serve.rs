//! `cargo xtask serve`: a release build, then the server in place of this process.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::Context as _;

use crate::cuda;
use crate::step::{show, step_command};
use crate::workspace::Workspace;

/// Builds and becomes `oarlock serve --model demo ARGS`; returns only with an error.
pub(crate) fn run(workspace: &Workspace, args: &[String]) -> anyhow::Result<()> {
    let mut build = workspace.cargo();
    build.args(["build", "--release", "--package", "oarlock-cli"]);
    if cuda::has_toolkit(workspace) {
        build.args(["--features", "cuda"]);
    }
    step_command("build", &mut build)?;
    let mut serve = Command::new(workspace.target_dir.join("release/oarlock"));
    serve.args(["serve", "--model", "demo"]).args(args);
    eprintln!("$ {}", show(&serve));
    // The server gets the terminal's signals itself, and no second process waits for it.
    Err(serve.exec()).context("cannot start target/release/oarlock")
}
