//! The Python environment of the end-to-end tests, in `target/test-venv`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::step;

/// What is installed. The client must keep working across its releases, so only the major is held.
const REQUIREMENTS: [&str; 5] = [
    "openai>=3,<4",
    "grpcio>=1,<2",
    "grpcio-reflection>=1,<2",
    "grpcio-health-checking>=1,<2",
    "prometheus-client>=0.20,<1",
];
/// What shows that they are there.
const IMPORTS: &str = "import openai, grpc_reflection, grpc_health, prometheus_client";

/// Makes the environment where it is missing or has other requirements; its interpreter.
pub(crate) fn ensure(target_dir: &Path) -> anyhow::Result<PathBuf> {
    let dir = target_dir.join("test-venv");
    let python = dir.join("bin/python");
    let marker = dir.join("installed");
    let wanted = REQUIREMENTS.join("\n");
    let is_installed = fs::read_to_string(&marker).is_ok_and(|found| found == wanted);
    // A checkout that moved, or a Python that was upgraded, leaves a dead link.
    if is_installed && answers(Command::new(&python).args(["-c", IMPORTS])) {
        eprintln!("{} is there", dir.display());
        return Ok(python);
    }
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    check_python()?;
    install(&dir, &python)?;
    fs::write(&marker, wanted).with_context(|| format!("cannot write {}", marker.display()))?;
    Ok(python)
}

fn answers(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

fn check_python() -> anyhow::Result<()> {
    if !answers(Command::new("python3").arg("--version")) {
        bail!("python3 does not run: install it (Debian: apt install python3 python3-venv)");
    }
    if !answers(Command::new("python3").args(["-c", "import venv"])) {
        bail!("python3 has no venv module: install it (Debian: apt install python3-venv)");
    }
    Ok(())
}

fn install(dir: &Path, python: &Path) -> anyhow::Result<()> {
    let quiet = ["--quiet", "--disable-pip-version-check", "--no-input"];
    if answers(Command::new("python3").args(["-c", "import ensurepip"])) {
        step::run(Command::new("python3").args(["-m", "venv"]).arg(dir))?;
        let mut pip = Command::new(python);
        pip.args(["-m", "pip", "install"]).args(quiet).args(REQUIREMENTS);
        return step::run(&mut pip).context("pip could not install the test packages");
    }
    // Debian without python3-venv: the environment has no pip, so the system's fills it.
    if !answers(Command::new("python3").args(["-m", "pip", "--version"])) {
        bail!("python3 has neither ensurepip nor pip: apt install python3-venv (or python3-pip)");
    }
    step::run(Command::new("python3").args(["-m", "venv", "--without-pip"]).arg(dir))?;
    let code = "import sysconfig; print(sysconfig.get_path('purelib'))";
    let output = Command::new(python).args(["-c", code]).output();
    let output = output.with_context(|| format!("cannot start {}", python.display()))?;
    let site_packages = String::from_utf8(output.stdout).context("a path that is not UTF-8")?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install"]).args(quiet);
    pip.args(["--target", site_packages.trim()]).args(REQUIREMENTS);
    step::run(&mut pip).context("pip could not install the test packages")
}
