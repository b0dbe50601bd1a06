//! Hashes of files that did not change since they were taken, so that a server that starts again, or a worker that
//! takes the place of one that died, need not read its weights a second time.
//!
//! A file is known by its device and inode, and unchanged while size, time of modification and time of change are
//! what they were; programs can set the second, not the third. As git does with its index, a hash is not kept of what
//! was changed so shortly before that a later change could leave the times as they are. Whoever writes weights
//! through a mapping that stays open for longer, or on a file system that has no such times, must take another name.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Smaller files are hashed as fast as their entry is found.
const SMALLEST: u64 = 64 << 20;
/// Age at which a file's times tell it from every later state. File systems count in steps of up to two seconds, and
/// a page that was written through a mapping changes them again only after the kernel has put it on the disk, which it
/// does within 35 seconds.
const SETTLED: Duration = Duration::from_mins(1);
/// Entries at most; the oldest go.
const MAX_ENTRIES: usize = 1024;
const ENDING: &str = "hash";

/// A folder with an entry for each file whose hash is known. Whatever is wrong with it, files are hashed.
#[derive(Clone, Debug)]
pub struct HashCache {
    folder: PathBuf,
    smallest: u64,
    settled: Duration,
}

impl HashCache {
    /// A cache in this folder, which is made when the first hash is kept.
    #[must_use]
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, smallest: SMALLEST, settled: SETTLED }
    }

    /// The hash of `file`, taken with `hash` where it is not known.
    pub(crate) fn hash_of(
        &self,
        file: &File,
        hash: impl FnOnce() -> io::Result<String>,
    ) -> io::Result<String> {
        let before = file.metadata()?;
        if before.len() < self.smallest {
            return hash();
        }
        let (entry, state) = (self.entry(&before), state(&before));
        if let Some(known) = known(&entry, &state) {
            return Ok(known);
        }
        let now = SystemTime::now();
        let taken = hash()?;
        let is_unchanged = file.metadata().is_ok_and(|after| self::state(&after) == state);
        if is_unchanged && self.is_settled(&before, now) {
            // A cache that cannot be written is none.
            let _ = self.keep(&entry, &format!("{state} {taken}\n"));
        }
        Ok(taken)
    }

    /// Whether a file was last changed long enough before `now`.
    fn is_settled(&self, file: &Metadata, now: SystemTime) -> bool {
        let newest = (file.mtime(), file.mtime_nsec()).max((file.ctime(), file.ctime_nsec()));
        let (Ok(seconds), Ok(nanoseconds)) = (newest.0.try_into(), newest.1.try_into()) else {
            return false;
        };
        let newest = UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds));
        newest.is_some_and(|newest| now.duration_since(newest).is_ok_and(|age| age >= self.settled))
    }

    fn entry(&self, file: &Metadata) -> PathBuf {
        self.folder.join(format!("{:x}-{:x}.{ENDING}", file.dev(), file.ino()))
    }

    /// Puts an entry in its place at once, so that no reader sees half of it.
    fn keep(&self, entry: &Path, line: &str) -> io::Result<()> {
        // Nobody else is to say what a hash is.
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let partial = entry.with_extension(std::process::id().to_string());
        fs::write(&partial, line)?;
        fs::rename(&partial, entry)?;
        self.forget_oldest();
        Ok(())
    }

    /// Removes entries that are too many. Another process may do so at the same time.
    fn forget_oldest(&self) {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut entries: Vec<_> = entries
            .filter(|entry| is_entry(&entry.file_name().to_string_lossy()))
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        let surplus = entries.len().saturating_sub(MAX_ENTRIES);
        entries.sort();
        for (_, path) in &entries[..surplus] {
            let _ = fs::remove_file(path);
        }
    }
}

/// Whether a file of this name is one of a cache: of the user's own files in the folder, none is touched.
fn is_entry(name: &str) -> bool {
    let numbers = name.strip_suffix(ENDING).and_then(|name| name.strip_suffix('.'));
    let numbers = numbers.and_then(|numbers| numbers.split_once('-'));
    let is_hex = |number: &str| u64::from_str_radix(number, 16).is_ok();
    numbers.is_some_and(|(device, inode)| is_hex(device) && is_hex(inode))
}

/// What changes with a file's contents.
fn state(file: &Metadata) -> String {
    format!(
        "{} {}.{:09} {}.{:09}",
        file.len(),
        file.mtime(),
        file.mtime_nsec(),
        file.ctime(),
        file.ctime_nsec()
    )
}

/// The hash in an entry of a file in this state.
fn known(entry: &Path, state: &str) -> Option<String> {
    let line = fs::read_to_string(entry).ok()?;
    let hash = line.strip_prefix(state)?.strip_prefix(' ')?.strip_suffix('\n')?;
    let is_hash = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hash.then(|| hash.to_owned())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs::FileTimes;
    use std::io::Write as _;

    use super::*;

    /// A cache of small files, a file that was changed long ago, and how often it was hashed.
    struct Setup {
        folder: tempfile::TempDir,
        cache: HashCache,
        hashed: Cell<u32>,
    }

    impl Setup {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let cache = HashCache::new(folder.path().join("hashes"));
            let cache = HashCache { smallest: 1, ..cache };
            Self { folder, cache, hashed: Cell::new(0) }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("weights")
        }

        fn write(&self, bytes: &[u8]) {
            let mut file = File::create(self.path()).unwrap();
            file.write_all(bytes).unwrap();
            let old = SystemTime::now() - Duration::from_secs(100);
            file.set_times(FileTimes::new().set_modified(old)).unwrap();
        }

        fn hash(&self) -> String {
            let path = self.path();
            let file = File::open(&path).unwrap();
            let hash = || {
                self.hashed.set(self.hashed.get() + 1);
                Ok(blake3::hash(&fs::read(&path).unwrap()).to_hex().to_string())
            };
            self.cache.hash_of(&file, hash).unwrap()
        }
    }

    /// Waits until what changes next has a time of its own, which nobody can set.
    fn tick() {
        std::thread::sleep(Duration::from_millis(50));
    }

    #[test]
    fn unchanged_files_are_hashed_once_and_changed_ones_again() {
        let mut setup = Setup::new();
        setup.write(b"first");
        // Too young: the next change might have the same time.
        let first = setup.hash();
        assert_eq!((setup.hash(), setup.hashed.get()), (first.clone(), 2));
        setup.cache.settled = Duration::ZERO;
        assert_eq!((setup.hash(), setup.hash()), (first.clone(), first.clone()));
        assert_eq!(setup.hashed.get(), 3);
        tick();
        // Of the same length, and with the time of modification that it had.
        let times = fs::metadata(setup.path()).unwrap().modified().unwrap();
        fs::write(setup.path(), b"later").unwrap();
        let file = File::options().write(true).open(setup.path()).unwrap();
        file.set_times(FileTimes::new().set_modified(times)).unwrap();
        let later = setup.hash();
        assert_ne!(later, first);
        assert_eq!(setup.hashed.get(), 4);
        assert_eq!((setup.hash(), setup.hashed.get()), (later.clone(), 4));
        // Damaged entries are none.
        let entry = setup.cache.entry(&fs::metadata(setup.path()).unwrap());
        let good = fs::read_to_string(&entry).unwrap();
        for bad in ["", "\n", &good[..good.len() - 9], &good.replace(' ', "  "), &good[1..]] {
            fs::write(&entry, bad).unwrap();
            let before = setup.hashed.get();
            assert_eq!(setup.hash(), later);
            assert_eq!(setup.hashed.get(), before + 1, "{bad:?}");
        }
        assert_eq!(fs::read_to_string(&entry).unwrap(), good);
    }

    #[test]
    fn small_files_and_folders_that_cannot_be_make_no_difference() {
        let mut setup = Setup::new();
        setup.write(b"weights");
        setup.cache.smallest = 100;
        setup.hash();
        assert!(!setup.cache.folder.exists());
        setup.cache.smallest = 1;
        setup.cache.folder = setup.path().join("no folder");
        let file = File::open(setup.path()).unwrap();
        let entry = setup.cache.entry(&file.metadata().unwrap());
        setup.cache.keep(&entry, "line").unwrap_err();
        assert_eq!(setup.hash(), blake3::hash(b"weights").to_hex().to_string());
    }

    #[test]
    fn entries_do_not_pile_up() {
        let setup = Setup::new();
        let path = |name: &str| setup.cache.folder.join(name);
        setup.cache.keep(&path("0-0.hash"), "line").unwrap();
        // Other people's files, older than any entry.
        for name in ["a.hash", "a-b.txt", "notes-2.hash", "1-2"] {
            fs::write(path(name), "mine").unwrap();
        }
        for index in 1..MAX_ENTRIES + 20 {
            setup.cache.keep(&path(&format!("fe00-{index:x}.hash")), "line").unwrap();
        }
        let left = fs::read_dir(&setup.cache.folder).unwrap().count();
        assert_eq!(left, MAX_ENTRIES + 4);
        assert!(!path("0-0.hash").exists());
        assert!(path(&format!("fe00-{:x}.hash", MAX_ENTRIES + 19)).exists());
    }
}
