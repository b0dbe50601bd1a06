//! `cargo xtask gpu-test`: conformance, reference models and benchmarks on a real CUDA device, and what they
//! gave in `benches/GPU.md`.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context as _, bail};

use crate::step::{show, step, step_command};
use crate::workspace::Workspace;
use crate::{cuda, models};

/// Tells the tests to take the driver that is there, instead of the simulated one.
const REAL: &str = "OARLOCK_TEST_REAL_GPU";

/// How long it may take to load.
const READY: Duration = Duration::from_mins(2);

/// Runs everything; an error where there is no device.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    let device = step("device", device)?;
    step("CUDA toolkit", || cuda::install_toolkit(workspace))?;
    let mut build = workspace.cargo();
    build.args(["build", "--release", "--package", "oarlock-cli", "--features", "cuda"]);
    step_command("release build", &mut build)?;
    let mut build = workspace.cargo();
    step_command("build", build.arg("build").args(cuda::build_options(workspace)))?;
    let mut conformance = workspace.cargo();
    conformance.args(["test", "--package", "oarlock-backend-cuda", "--test", "conformance"]);
    step_command("conformance suite", conformance.env(REAL, "1"))?;
    let mut references = workspace.cargo();
    references.args(["test", "--package", "oarlock-cli", "--features", "cuda", "--test", "e2e"]);
    references.args(["--", "cuda::", "--nocapture", "--test-threads", "1"]);
    step_command("reference models", references.env(REAL, "1"))?;
    let operations = step("operations", || operations(workspace))?;
    let model = step("demo model", || models::demo(&workspace.target_dir))?;
    let serving = step("serving", || serving(workspace, &model))?;
    let mut text = String::from("# Figures of a real GPU\n\nMade by `cargo xtask gpu-test`.\n\n");
    writeln!(text, "Device: {device}\n\n## Operations\n\n{operations}\n## Serving\n\n{serving}")?;
    let path = workspace.root.join("benches/GPU.md");
    fs::write(&path, text).with_context(|| path.display().to_string())?;
    eprintln!("{} is new", path.display());
    Ok(())
}

/// Name, driver and memory of the first device.
fn device() -> anyhow::Result<String> {
    let query =
        ["--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader"];
    let output = Command::new("nvidia-smi").args(query).output();
    let Ok(output) = output else {
        bail!(
            "no NVIDIA device here (nvidia-smi does not run): run this on a machine with one. Everything \
             but speed is tested on simulated devices by `cargo xtask test`"
        );
    };
    if !output.status.success() {
        bail!("nvidia-smi: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().next().context("nvidia-smi names no device")?.to_owned())
}

/// The table of `device_speed`.
fn operations(workspace: &Workspace) -> anyhow::Result<String> {
    let mut cargo = workspace.cargo();
    cargo.args(["run", "--release", "--quiet", "--package", "oarlock-backend-cuda"]);
    output_of(cargo.args(["--example", "device_speed"]))
}

/// What `oarlock bench` says of the demo model on the device.
fn serving(workspace: &Workspace, model: &std::path::Path) -> anyhow::Result<String> {
    let program = workspace.target_dir.join("release/oarlock");
    let port_number = free_port()?;
    let port = port_number.to_string();
    let mut server = Command::new(&program);
    server.args([
        "serve",
        "--served-name",
        "demo",
        "--device",
        "cuda",
        "--kv-cache-tokens",
        "65536",
        "--port",
        &port,
        "--model",
    ]);
    let mut server = server.arg(model).spawn().context("cannot start the server")?;
    let url = format!("http://127.0.0.1:{port}/v1");
    let url = url.as_str();
    let mut bench = Command::new(&program);
    bench.args(["bench", "--url", url, "--model", "demo", "--concurrency", "1,16,64"]);
    bench.args(["--requests", "128", "--input-len", "512", "--output-len", "128"]);
    let outcome = wait_until_ready(&mut server, port_number).and_then(|()| output_of(&mut bench));
    // Nothing is lost with it.
    drop(server.kill());
    drop(server.wait());
    Ok(format!("`{}`\n\n```text\n{}```\n", show(&bench), outcome?))
}

/// A port of the loopback on which nobody listens.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Asks for the model until it is there.
fn wait_until_ready(server: &mut Child, port: u16) -> anyhow::Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < READY {
        if let Some(status) = server.try_wait()? {
            bail!("the server ended with {status}");
        }
        let mut answer = String::new();
        if let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
            stream.write_all(b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
            drop(stream.read_to_string(&mut answer));
        }
        if answer.starts_with("HTTP/1.1 200") {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(200));
    }
    bail!("the server is not ready after {} s", READY.as_secs())
}

fn output_of(command: &mut Command) -> anyhow::Result<String> {
    let shown = show(command);
    eprintln!("$ {shown}");
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` ended with {}", output.status);
    }
    String::from_utf8(output.stdout).context("output that is not UTF-8")
}
