//! `cargo xtask simgpu -- COMMAND`: a command that finds simulated GPUs.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, bail};

use crate::step::{show, step_command};
use crate::workspace::Workspace;

/// Builds the simulated driver and becomes the command; returns only with an error.
pub(crate) fn run(workspace: &Workspace, command: &[String]) -> anyhow::Result<()> {
    let Some((program, arguments)) = command.split_first() else {
        bail!(
            "which command? For example: cargo xtask simgpu -- target/debug/oarlock serve --device cuda"
        );
    };
    let mut build = workspace.cargo();
    step_command("build", build.args(["build", "--package", "oarlock-simgpu"]))?;
    let folder = link(&workspace.target_dir.join("debug/liboarlock_simgpu.so"), workspace)?;
    let mut paths = vec![folder];
    paths.extend(env::split_paths(&env::var_os("LD_LIBRARY_PATH").unwrap_or_default()));
    let mut command = Command::new(program);
    command.args(arguments).env("LD_LIBRARY_PATH", env::join_paths(paths)?);
    eprintln!("$ {}", show(&command));
    Err(command.exec()).with_context(|| format!("cannot start {program}"))
}

/// A folder in which the library has the names that programs look for.
fn link(library: &Path, workspace: &Workspace) -> anyhow::Result<PathBuf> {
    let folder = workspace.target_dir.join("simgpu");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    for name in ["libcuda.so", "libcuda.so.1"] {
        let link = folder.join(name);
        if fs::symlink_metadata(&link).is_ok() {
            fs::remove_file(&link).with_context(|| link.display().to_string())?;
        }
        std::os::unix::fs::symlink(library, &link).with_context(|| link.display().to_string())?;
    }
    Ok(folder)
}
