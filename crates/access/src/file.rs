//! The keys file: reading, checking, and changing it without losing anything.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::error::AccessError;
use crate::record::{KeyRecord, NewKey, Timestamp};
use crate::replace::{self, MODE};
use crate::secret::Secret;

/// The only version there is so far.
const VERSION: u32 = 1;
/// Bytes of a file at most.
pub const MAX_FILE_BYTES: u64 = 8 << 20;
/// Keys in a file at most: a server reads them all whenever the file changes.
pub const MAX_KEYS: usize = 10_000;
/// How long to wait for others who change the file.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// How often to look whether they are done.
const LOCK_POLL: Duration = Duration::from_millis(20);
/// The permission that nobody may have.
const WRITABLE_BY_ALL: u32 = 0o002;
/// The permission that a change takes away.
const READABLE_BY_ALL: u32 = 0o004;

const HEADER: &str = "# Keys of an Oarlock server: hashes only, no secrets.\n\
    # Change it with `oarlock keys`, which keeps no comments; servers notice within a second or two.\n\n";

/// What is in a keys file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeysFile {
    version: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    keys: Vec<KeyRecord>,
}

impl Default for KeysFile {
    fn default() -> Self {
        Self { version: VERSION, keys: Vec::new() }
    }
}

/// How a changed file is told from an unchanged one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Signature {
    device: u64,
    inode: u64,
    bytes: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl Signature {
    fn of(metadata: &fs::Metadata) -> Self {
        let nanoseconds =
            |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// The file's as of now.
    pub(crate) fn read(path: &Path) -> Result<Self, AccessError> {
        fs::metadata(path)
            .map(|metadata| Self::of(&metadata))
            .map_err(|error| read_error(path, error))
    }
}

fn read_error(path: &Path, source: io::Error) -> AccessError {
    let path = path.to_owned();
    if source.kind() == io::ErrorKind::NotFound {
        AccessError::Missing { path }
    } else {
        AccessError::Read { path, source }
    }
}

impl KeysFile {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, AccessError> {
        let file = File::open(path).map_err(|error| read_error(path, error))?;
        let metadata = file.metadata().map_err(|error| read_error(path, error))?;
        if metadata.mode() & WRITABLE_BY_ALL != 0 {
            return Err(AccessError::WritableByAll { path: path.to_owned() });
        }
        let mut text = String::new();
        file.take(MAX_FILE_BYTES + 1)
            .read_to_string(&mut text)
            .map_err(|error| read_error(path, error))?;
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(AccessError::TooLarge { path: path.to_owned(), limit: MAX_FILE_BYTES });
        }
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, AccessError> {
        let file: Self = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| text.floor_char_boundary(span.start));
            AccessError::Syntax {
                path: path.to_owned(),
                line: text[..start].matches('\n').count() + 1,
                problem: error.message().to_owned(),
            }
        })?;
        file.check(path)?;
        Ok(file)
    }

    fn check(&self, path: &Path) -> Result<(), AccessError> {
        if self.version != VERSION {
            let (path, found) = (path.to_owned(), self.version);
            return Err(AccessError::Version { path, found, known: VERSION });
        }
        let invalid = |key: &str, field: &'static str, problem: String| {
            Err(AccessError::Invalid { path: path.to_owned(), key: key.to_owned(), field, problem })
        };
        let (mut ids, mut hashes) = (BTreeSet::new(), BTreeSet::new());
        for (index, key) in self.keys.iter().enumerate() {
            if index >= MAX_KEYS {
                let problem = format!("there are more than {MAX_KEYS} keys; take out revoked ones");
                return invalid(&key.id, "keys", problem);
            }
            if let Some((field, problem)) = key.problem() {
                return invalid(&format!("number {}", index + 1), field, problem);
            }
            if !ids.insert(&key.id) {
                return invalid(
                    &key.id,
                    "id",
                    "an earlier key has it; each needs its own".to_owned(),
                );
            }
            if !hashes.insert(key.hash) {
                let problem = "an earlier key has it; add another key instead of copying one";
                return invalid(&key.id, "hash", problem.to_owned());
            }
        }
        Ok(())
    }

    /// The keys, in the order of the file, revoked ones too.
    pub fn keys(&self) -> &[KeyRecord] {
        &self.keys
    }

    /// Adds a key with a new secret, which is nowhere but in the answer.
    pub fn add(
        &mut self,
        key: NewKey,
        now: SystemTime,
    ) -> Result<(&KeyRecord, Secret), AccessError> {
        let (record, secret) = KeyRecord::draw(key, now)?;
        let index = self.keys.len();
        self.keys.push(record);
        Ok((&self.keys[index], secret))
    }

    /// Revokes a key; false where it was revoked before, `None` where there is no such key.
    pub fn revoke(&mut self, id: &str, now: SystemTime) -> Option<bool> {
        let key = self.keys.iter_mut().find(|key| key.id == id)?;
        let is_new = key.revoked.is_none();
        key.revoked.get_or_insert(Timestamp::from_time(now));
        Some(is_new)
    }

    /// Reads the file (one that does not exist begins empty where `may_create`), changes it and writes
    /// it back: whole or not at all, and not while someone else does the same. An existing file keeps
    /// its owner, its group and what these two may do with it; others may do nothing with it
    /// afterwards. A new one is for its owner alone.
    pub fn edit<T>(
        path: &Path,
        may_create: bool,
        change: impl FnOnce(&mut Self) -> Result<T, AccessError>,
    ) -> Result<T, AccessError> {
        // What a symbolic link points to is replaced, not the link.
        let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let _lock = lock(path)?;
        let mut file = match Self::load(path) {
            Err(AccessError::Missing { .. }) if may_create => Self::default(),
            other => other?,
        };
        let changed = change(&mut file)?;
        file.check(path)?;
        file.save(path)?;
        Ok(changed)
    }

    fn save(&self, path: &Path) -> Result<(), AccessError> {
        let text = toml::to_string(self).map_err(|error| AccessError::Write {
            path: path.to_owned(),
            source: io::Error::other(error),
        })?;
        replace::replace(path, &format!("{HEADER}{text}"))
    }

    /// Whether others than its owner and its group may read a file, which a change would end; false
    /// where there is none.
    pub fn is_open_to_others(path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|metadata| metadata.mode() & READABLE_BY_ALL != 0)
    }
}

/// Holds off other writers until it is dropped, or this process ends. It is a file of its own, since
/// the keys file itself is replaced.
fn lock(path: &Path) -> Result<File, AccessError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let failed = |source| AccessError::Write { path: lock_path.clone(), source };
    let mut options = OpenOptions::new();
    options.write(true).mode(MODE);
    let file = match options.clone().create_new(true).open(&lock_path) {
        Ok(file) => {
            replace::share_lock(&file, path);
            file
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            options.open(&lock_path).map_err(failed)?
        }
        Err(error) => return Err(failed(error)),
    };
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(AccessError::Locked { path: lock_path });
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_POLL),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::UNIX_EPOCH;

    use oarlock_types::Priority;

    use super::*;
    use crate::meter::Limits;

    fn new_key(tenant: &str) -> NewKey {
        NewKey { tenant: tenant.to_owned(), ..NewKey::default() }
    }

    fn add(path: &Path, key: NewKey) -> (String, Secret) {
        KeysFile::edit(path, true, |file| {
            let (record, secret) = file.add(key, UNIX_EPOCH)?;
            Ok((record.id.clone(), secret))
        })
        .unwrap()
    }

    #[test]
    fn a_file_comes_back_as_it_was_written_without_any_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        let limits = Limits {
            requests_per_minute: std::num::NonZeroU32::new(60),
            tokens_per_minute: std::num::NonZeroU32::new(u32::MAX),
            max_parallel: None,
        };
        let expires = Some(Timestamp::parse("2027-01-31").unwrap());
        let whole = NewKey {
            name: "night jobs \"2\"".to_owned(),
            tenant: "Ünïversity".to_owned(),
            priority: Priority(7),
            limits,
            expires,
        };
        let (id, secret) = add(&path, whole);
        let (other, _) = add(&path, new_key("b"));
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains(secret.expose()) && !text.contains(&secret.expose()[4..]), "{text}");
        assert!(text.contains("expires = \"2027-01-31T00:00:00Z\""), "{text}");
        let file = KeysFile::load(&path).unwrap();
        let [first, second] = file.keys() else { panic!("two keys in {text}") };
        assert_eq!((&first.id, &second.id), (&id, &other));
        assert_eq!((first.limits(), first.priority, first.expires), (limits, 7, expires));
        assert_eq!(
            (first.name.as_str(), first.tenant.as_str()),
            ("night jobs \"2\"", "Ünïversity")
        );
        assert_eq!((second.limits(), second.priority), (Limits::default(), 100));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        // Nothing is left over but the lock.
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    #[test]
    fn concurrent_writers_lose_nothing() {
        // In memory where there is such a folder: on a busy disk so many changes, each of them synced,
        // may take longer than the last writer waits for its lock.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let path = folder.path().join("keys.toml");
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    for index in 0..5 {
                        add(path, new_key(&format!("{writer}-{index}")));
                    }
                });
            }
        });
        assert_eq!(KeysFile::load(&path).unwrap().keys().len(), 20);
    }

    #[test]
    fn a_change_that_fails_leaves_the_file_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        add(&path, new_key("a"));
        let before = fs::read(&path).unwrap();
        let too_long = KeysFile::edit(&path, true, |file| {
            file.add(new_key(&"x".repeat(200)), UNIX_EPOCH).map(drop)
        });
        let message = too_long.unwrap_err().to_string();
        assert!(message.contains("tenant") && message.contains("128"), "{message}");
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn a_server_of_the_files_group_can_read_what_was_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        let (id, _) = add(&path, new_key("a"));
        for (before, is_open) in [(0o644, true), (0o640, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(before)).unwrap();
            assert_eq!(KeysFile::is_open_to_others(&path), is_open);
            KeysFile::edit(&path, false, |file| Ok(file.revoke(&id, UNIX_EPOCH))).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        }
        // Whoever may change the file can take its lock.
        let lock = folder.path().join("keys.toml.lock");
        fs::remove_file(&lock).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
        add(&path, new_key("b"));
        assert_eq!(fs::metadata(&lock).unwrap().mode() & 0o777, 0o660);
    }

    #[test]
    fn a_link_stays_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("keys.toml"), folder.path().join("link"));
        add(&path, new_key("a"));
        std::os::unix::fs::symlink(&path, &link).unwrap();
        add(&link, new_key("b"));
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(KeysFile::load(&path).unwrap().keys().len(), 2);
    }

    #[test]
    fn errors_name_the_file_the_place_and_the_remedy() {
        let path = Path::new("/etc/keys.toml");
        let key = |more: &str| {
            format!(
                "[[keys]]\nid = \"a\"\ntenant = \"t\"\nhash = \"sha256:{}\"\ncreated = \"2026-11-22T06:30:00Z\"\n{more}\n",
                "0".repeat(64)
            )
        };
        KeysFile::parse(&format!("version = 1\n{}", key("")), path).unwrap();
        for (text, expected) in [
            (String::new(), "line 1: missing field `version`"),
            ("version = 1\nkeys = 3".to_owned(), "line 2"),
            ("version = 2".to_owned(), "version 2 is not known"),
            (format!("version = 1\n{}", key("secret = \"x\"")), "line 7: unknown field `secret`"),
            (format!("version = 1\n{}", key("priority = 256")), "line 7"),
            (format!("version = 1\n{}", key("max_parallel = 0")), "line 7"),
            (format!("version = 1\n{}", key("expires = \"soon\"")), "`soon` is no time"),
            (format!("version = 1\n{}{}", key(""), key("")), "key a: id: an earlier key has it"),
            (
                format!("version = 1\n{}{}", key(""), key("").replace("\"a\"", "\"b\"")),
                "key b: hash",
            ),
            (format!("version = 1\n{}", key("").replace("\"t\"", "\"\"")), "number 1: tenant"),
            (format!("version = 1\n{}", key("").replace("000", "0")), "64 hexadecimal digits"),
        ] {
            let message = KeysFile::parse(&text, path).unwrap_err().to_string();
            assert!(message.starts_with("/etc/keys.toml"), "{message}");
            assert!(message.contains(expected) && !message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn a_file_must_exist_be_bounded_and_be_protected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        let message = KeysFile::load(&path).unwrap_err().to_string();
        assert!(message.contains("oarlock keys add --keys /"), "{message}");
        assert!(matches!(
            KeysFile::edit(&path, false, |_| Ok(())),
            Err(AccessError::Missing { .. })
        ));
        fs::write(&path, "version = 1").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(KeysFile::load(&path).unwrap_err().to_string().contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(KeysFile::load(&path).unwrap(), KeysFile::default());
        fs::write(&path, vec![b'#'; MAX_FILE_BYTES as usize + 1]).unwrap();
        assert!(matches!(KeysFile::load(&path), Err(AccessError::TooLarge { .. })));
        assert!(KeysFile::load(folder.path()).unwrap_err().to_string().contains("cannot read"));
    }
}
