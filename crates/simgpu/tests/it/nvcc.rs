//! Finds nvcc and compiles the sources of this folder to PTX.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Repository's root, seen from this crate.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true")
}

/// The compiler: `OARLOCK_NVCC`, the toolkit in `target/`, `CUDA_HOME`, or `PATH`.
fn nvcc() -> Option<PathBuf> {
    let given = std::env::var_os("OARLOCK_NVCC").map(PathBuf::from);
    let installed = root().join("target/cuda-toolkit/nvidia/cu13/bin/nvcc");
    let home = std::env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/nvcc"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|folder| folder.join("nvcc"));
    given.into_iter().chain([installed]).chain(home).chain(in_path).find(|nvcc| nvcc.is_file())
}

/// CUTLASS's headers: `OARLOCK_CUTLASS`, or installed beside the toolkit.
pub(crate) fn cutlass() -> Option<PathBuf> {
    let given = std::env::var_os("OARLOCK_CUTLASS").map(PathBuf::from);
    let installed = root().join("target/cuda-toolkit/cutlass_library/source/include");
    let found =
        given.into_iter().chain([installed]).find(|include| include.join("cutlass").is_dir());
    if found.is_none() {
        missing("CUTLASS's headers");
    }
    found
}

/// Without a tool a test is skipped aloud, in CI it fails.
fn missing(what: &str) {
    assert!(!is_ci(), "{what} not found: run `cargo xtask cuda-toolkit`");
    println!("skipped: {what} not found (`cargo xtask cuda-toolkit` installs them)");
}

/// PTX of a source in `tests/kernels`, or none without a compiler.
pub(crate) fn compile(source: &str, arguments: &[&str]) -> Option<String> {
    let Some(nvcc) = nvcc() else {
        missing("nvcc");
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out.ptx");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels").join(source);
    let has_arch = arguments.iter().any(|argument| argument.starts_with("-arch"));
    let done = Command::new(nvcc)
        .args(["-fmad=false", "-std=c++17", "-ptx", "-w", "--expt-relaxed-constexpr"])
        .args((!has_arch).then_some("-arch=sm_80"))
        .args(arguments)
        .arg(source)
        .arg("-o")
        .arg(&output)
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Some(std::fs::read_to_string(output).unwrap())
}
