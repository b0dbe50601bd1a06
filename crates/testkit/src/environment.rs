//! What a test finds on its machine: the binary under test, models, Python.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

/// The file that `oarlock fetch demo` keeps in the cache directory.
const DEMO_FILE: &str = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf";

/// The file that `cargo xtask test` keeps in the cache directory.
const GEMMA_FILE: &str = "gemma-3-270m-q4_k_m.gguf";

/// The demo model's file; `None` (after saying so) where it is not on this machine.
///
/// It is where `OARLOCK_DEMO_MODEL` says, as `cargo xtask test` sets it, else in the cache
/// directory. Panics instead of returning `None` under `CI=true`.
pub fn demo_model() -> Option<PathBuf> {
    let from_env = env::var_os("OARLOCK_DEMO_MODEL").map(PathBuf::from);
    let path = from_env.or_else(|| Some(cache_dir()?.join(DEMO_FILE)));
    present("the demo model", path)
}

/// The file of Gemma 3 270M (base); `None` (after saying so) where it is not on this machine.
///
/// It is where `OARLOCK_GEMMA_MODEL` says, as `cargo xtask test` sets it, else in the cache
/// directory. Panics instead of returning `None` under `CI=true`.
pub fn gemma_model() -> Option<PathBuf> {
    let from_env = env::var_os("OARLOCK_GEMMA_MODEL").map(PathBuf::from);
    present("Gemma 3 270M", from_env.or_else(gemma_path))
}

/// Where `cargo xtask test` keeps Gemma 3 270M; `None` where there is no cache directory.
pub fn gemma_path() -> Option<PathBuf> {
    Some(cache_dir()?.join(GEMMA_FILE))
}

/// As the binary chooses it: `OARLOCK_CACHE`, or the user's cache directory.
fn cache_dir() -> Option<PathBuf> {
    let from = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    from("OARLOCK_CACHE")
        .or_else(|| Some(from("XDG_CACHE_HOME")?.join("oarlock")))
        .or_else(|| Some(from("HOME")?.join(".cache/oarlock")))
}

/// The interpreter that has the tests' packages; `None` (after saying so) where there is none.
///
/// It is where `OARLOCK_TEST_PYTHON` says, as `cargo xtask test` sets it, else in the environment
/// that an earlier `cargo xtask test` made. Panics instead of returning `None` under `CI=true`.
pub fn python_path() -> Option<PathBuf> {
    let from_env = env::var_os("OARLOCK_TEST_PYTHON").map(PathBuf::from);
    let path = from_env.or_else(|| Some(profile_dir().parent()?.join("test-venv/bin/python")));
    present("the Python environment of the tests", path)
}

fn present(what: &str, path: Option<PathBuf>) -> Option<PathBuf> {
    if let Some(path) = path.filter(|path| path.is_file()) {
        return Some(path);
    }
    let is_ci = env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false");
    assert!(!is_ci, "{what} is not here, and CI skips no test; run cargo xtask test");
    eprintln!("skipped: {what} is not here; run cargo xtask test");
    None
}

/// Runs a Python program, given as text, with `args` as `sys.argv[1:]`, and waits for its end.
///
/// `None` where [`python_path`] is. The caller looks at the exit status; what the program printed
/// is worth showing when it failed.
pub fn python(script: &str, args: &[&str]) -> Option<Output> {
    let python = python_path()?;
    let mut command = Command::new(&python);
    // Unbuffered, or the last words before a crash are lost; isolated from the user's packages.
    command.args(["-I", "-u", "-c", script]).args(args).stdin(Stdio::null());
    let output = command.output();
    Some(output.unwrap_or_else(|error| panic!("cannot start {}: {error}", python.display())))
}

/// The `oarlock` program of the build that this test belongs to.
///
/// Panics with the remedy where it is not built: `cargo test -p` of one crate does not build it.
pub fn binary() -> PathBuf {
    let path = profile_dir().join("oarlock");
    assert!(
        path.is_file(),
        "{} is not built: run `cargo build -p oarlock-cli` first, or all tests with \
         `cargo xtask test`",
        path.display()
    );
    path
}

/// A folder for `LD_LIBRARY_PATH` in which `libcuda.so` is the simulated one of this build: whatever runs with
/// it finds simulated GPUs.
///
/// Panics with the remedy where it is not built.
pub fn simulated_gpus() -> PathBuf {
    static MAKING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let profile = profile_dir();
    let name = "liboarlock_simgpu.so";
    // As a dependency of a test it is built in one place, by itself in the other.
    let built = |path: &PathBuf| fs::metadata(path).and_then(|file| file.modified()).ok();
    let candidates = [profile.join(name), profile.join("deps").join(name)];
    let newest = candidates.into_iter().filter(|path| path.is_file()).max_by_key(built);
    let Some(library) = newest else {
        panic!(
            "{name} is not built: run `cargo build -p oarlock-simgpu` first, or `cargo xtask test`"
        );
    };
    let folder = profile.join("simulated-gpus");
    fs::create_dir_all(&folder).expect("a folder in the target folder");
    for link in ["libcuda.so", "libcuda.so.1"] {
        let link = folder.join(link);
        if fs::read_link(&link).is_ok_and(|target| target == library) {
            continue;
        }
        // Made aside and renamed, since other test programs look for it at the same time.
        let aside = folder.join(format!("link-{}", std::process::id()));
        drop(fs::remove_file(&aside));
        std::os::unix::fs::symlink(&library, &aside).expect("a link in the target folder");
        fs::rename(&aside, &link).expect("a link in the target folder");
    }
    folder
}

/// `target/debug`: test programs lie in its folder `deps`.
fn profile_dir() -> PathBuf {
    let program = env::current_exe().expect("the system knows the running program");
    let folder = program.parent().expect("a program lies in a folder");
    if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder }.to_owned()
}

/// Resident memory of a process, in bytes; `None` where there is no such process.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"));
    let status = status.ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_a_size_and_a_dead_one_has_none() {
        let resident = resident_bytes(std::process::id()).expect("this process runs");
        assert!((100_000..10_000_000_000).contains(&resident), "{resident}");
        assert_eq!(resident_bytes(u32::MAX), None);
    }

    #[test]
    fn test_programs_lie_beside_the_binary() {
        assert!(profile_dir().join("deps").is_dir());
    }
}
