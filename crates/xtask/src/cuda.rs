//! The CUDA compiler and disassembler from the Python registry, in `target/cuda-toolkit`; and the
//! table of the kernels' resources.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use anyhow::{Context as _, bail};

use crate::step::{self, show};
use crate::workspace::Workspace;

/// What nvcc needs. One release for all: the compiler decides bits.
const COMPILER: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.*",
    "nvidia-cuda-runtime==13.0.*",
    "nvidia-cuda-cccl==13.0.*",
    "nvidia-cuda-crt==13.0.*",
    "nvidia-nvvm==13.0.*",
];
/// What reads its output, for the tests of machine code; only later releases are in the registry.
const DISASSEMBLER: [&str; 2] = ["nvidia-cuda-nvdisasm==13.5.*", "nvidia-cuda-cuobjdump==13.5.*"];

/// Headers of a GEMM that hardware has proved, for the tests of the simulated device.
const CUTLASS: [&str; 1] = ["nvidia-cutlass==4.2.*"];

/// Where the packages put their programs.
const BIN: &str = "nvidia/cu13/bin";

/// Installs the toolkit unless the same one is there.
pub(crate) fn install_toolkit(workspace: &Workspace) -> anyhow::Result<()> {
    let dir = workspace.target_dir.join("cuda-toolkit");
    let marker = dir.join("installed");
    let packages = [COMPILER.as_slice(), DISASSEMBLER.as_slice(), CUTLASS.as_slice()].concat();
    let wanted = packages.join("\n");
    let is_installed = fs::read_to_string(&marker).is_ok_and(|found| found == wanted);
    if is_installed && programs_answer(&dir) {
        eprintln!("{} is there", dir.display());
        return Ok(());
    }
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    let mut pip = pip(&workspace.target_dir)?;
    pip.args(["install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]);
    pip.arg("--target").arg(&dir).args(packages);
    step::run(&mut pip).context("pip could not install the CUDA toolkit")?;
    if !programs_answer(&dir) {
        bail!("nvcc or nvdisasm in {} does not run", dir.join(BIN).display());
    }
    fs::write(&marker, wanted).with_context(|| format!("cannot write {}", marker.display()))?;
    touch(&workspace.root.join("crates/backend-cuda/build.rs"))
}

/// Makes cargo run a build script again: it does not watch for a toolkit that is not there.
fn touch(script: &Path) -> anyhow::Result<()> {
    let file = fs::File::options().append(true).open(script);
    file.and_then(|file| file.set_modified(SystemTime::now()))
        .with_context(|| format!("cannot touch {}", script.display()))
}

/// Options of cargo that build everything, CUDA included where its compiler is installed. All commands take the
/// same, so that nothing is built twice.
pub(crate) fn build_options(workspace: &Workspace) -> &'static [&'static str] {
    if has_toolkit(workspace) {
        &["--workspace", "--all-targets", "--features", FEATURE]
    } else {
        &["--workspace", "--all-targets"]
    }
}

/// Whether there is a compiler for kernels.
pub(crate) fn has_toolkit(workspace: &Workspace) -> bool {
    workspace.target_dir.join("cuda-toolkit").join(BIN).join("nvcc").is_file()
}

/// The only crate with features.
const FEATURE: &str = "oarlock-cli/cuda";

fn programs_answer(dir: &Path) -> bool {
    ["nvcc", "nvdisasm"]
        .into_iter()
        .all(|name| answers(Command::new(dir.join(BIN).join(name)).arg("--version")))
}

fn answers(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// The system's pip, or one in an environment of its own.
fn pip(target_dir: &Path) -> anyhow::Result<Command> {
    let mut python = "python3".into();
    if !answers(Command::new("python3").args(["-m", "pip", "--version"])) {
        let dir = target_dir.join("pip-venv");
        python = dir.join("bin/python");
        if !answers(Command::new(&python).args(["-m", "pip", "--version"])) {
            let mut venv = Command::new("python3");
            venv.args(["-m", "venv", "--clear"]).arg(&dir);
            step::run(&mut venv).context("python3 with pip or with venv is needed")?;
        }
    }
    let mut pip = Command::new(python);
    pip.args(["-m", "pip"]);
    Ok(pip)
}

/// Lines of `kernels/README.md` around the table.
const TABLE_START: &str = "<!-- made by `cargo xtask kernels` -->";
const TABLE_END: &str = "<!-- end of the table -->";

/// Compiles the kernels and puts the table of their resources into `kernels/README.md`.
pub(crate) fn update_kernel_table(workspace: &Workspace) -> anyhow::Result<()> {
    let mut cargo = workspace.cargo();
    cargo.args(["run", "--quiet", "-p", "oarlock-backend-cuda", "--example", "kernel_table"]);
    let shown = show(&cargo);
    eprintln!("$ {shown}");
    let output = cargo.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("`{shown}` ended with {}", output.status);
    }
    let table = String::from_utf8(output.stdout).context("a table that is not UTF-8")?;
    let path = workspace.root.join("kernels/README.md");
    let context = || format!("cannot read or write {}", path.display());
    let text = fs::read_to_string(&path).with_context(context)?;
    let replaced = replace_table(&text, &table).with_context(|| {
        format!("{} has no `{TABLE_START}` before `{TABLE_END}`", path.display())
    })?;
    if replaced == text {
        eprintln!("{} is up to date", path.display());
        return Ok(());
    }
    fs::write(&path, replaced).with_context(context)?;
    eprintln!("{} is new", path.display());
    Ok(())
}

fn replace_table(text: &str, table: &str) -> Option<String> {
    let (before, rest) = text.split_once(TABLE_START)?;
    let (_, after) = rest.split_once(TABLE_END)?;
    Some(format!("{before}{TABLE_START}\n{}\n{TABLE_END}{after}", table.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_replaced_where_it_stands() {
        let text = format!("a\n{TABLE_START}\nold\n{TABLE_END}\nb\n");
        let replaced = replace_table(&text, "| new |\n").expect("both marks");
        assert_eq!(replaced, format!("a\n{TABLE_START}\n| new |\n{TABLE_END}\nb\n"));
        assert_eq!(replace_table(&replaced, "| new |\n").as_ref(), Some(&replaced));
        assert_eq!(replace_table("no marks", "x"), None);
    }
}
