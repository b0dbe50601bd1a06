//! The handle that servers hold: who a client is, what it may, and the file behind it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Instant, SystemTime};

use oarlock_types::{CacheSalt, Priority, TenantId};

use crate::error::AccessError;
use crate::file::{KeysFile, Signature};
use crate::keyring::{Denied, Key, Keyring};
use crate::meter::{OverQuota, Permit};

/// Classes that a client reaches above and below the usual one.
const CLASSES_EACH_WAY: i64 = 8;

/// Decides who may ask. Cloning gives another handle to the same.
///
/// Without a file, and with one that has never had a key, everybody may. From the first key that was
/// loaded on, a key is demanded for as long as the process runs: a file that is deleted, emptied or
/// broken later closes nothing that was open to its keys, and opens nothing.
#[derive(Clone, Debug, Default)]
pub struct Access(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    path: Option<PathBuf>,
    state: RwLock<Arc<State>>,
    watch: Mutex<Watch>,
}

#[derive(Debug, Default)]
struct State {
    keyring: Keyring,
    demands_key: bool,
}

/// What is known of the file.
#[derive(Debug, Default)]
struct Watch {
    /// Of what was read last, whether it could be used or not.
    seen: Option<Signature>,
    /// The last failure that was reported, until there is a success.
    reported: Option<String>,
}

/// What looking at the file gave.
#[derive(Debug)]
pub enum Reload {
    /// Nothing new.
    Unchanged,
    /// The file's keys are in use from now on.
    Loaded {
        /// How many there are, revoked ones included.
        keys: usize,
    },
    /// The file has changed and cannot be used: the keys are as they were. Reported once per change.
    Failed(AccessError),
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Caller {
    /// `None` where no key is demanded.
    key: Option<Arc<Key>>,
}

impl Access {
    /// With the keys of a file.
    ///
    /// # Errors
    /// The file is missing or cannot be used: a server must not start open by mistake.
    pub fn load(path: &Path) -> Result<Self, AccessError> {
        let signature = Signature::read(path)?;
        let keyring = Keyring::new(&KeysFile::load(path)?, &Keyring::default());
        let state = State { demands_key: keyring.len() > 0, keyring };
        Ok(Self(Arc::new(Inner {
            path: Some(path.to_owned()),
            state: RwLock::new(Arc::new(state)),
            watch: Mutex::new(Watch { seen: Some(signature), reported: None }),
        })))
    }

    /// Whether there is a file that may change.
    pub fn has_file(&self) -> bool {
        self.0.path.is_some()
    }

    /// Whether callers need a key.
    pub fn demands_key(&self) -> bool {
        self.state().demands_key
    }

    /// Who presents `secret`, at the time `now`.
    pub fn identify(&self, secret: Option<&str>, now: SystemTime) -> Result<Caller, Denied> {
        let state = self.state();
        if !state.demands_key {
            // Clients of the OpenAI API always send something.
            return Ok(Caller { key: None });
        }
        let key = state.keyring.find(secret.ok_or(Denied::Missing)?, now)?;
        Ok(Caller { key: Some(Arc::clone(key)) })
    }

    /// Looks whether the file has changed, and takes its keys over if so. Blocks on the file system;
    /// call it every second or so.
    pub fn reload(&self) -> Reload {
        let Some(path) = &self.0.path else { return Reload::Unchanged };
        let mut watch = self.0.watch.lock().unwrap_or_else(PoisonError::into_inner);
        // Before reading: what changes meanwhile is read again next time.
        let signature = match Signature::read(path) {
            Ok(signature) if watch.seen == Some(signature) => return Reload::Unchanged,
            Ok(signature) => signature,
            Err(error) => {
                watch.seen = None;
                return watch.report(error);
            }
        };
        match KeysFile::load(path) {
            Ok(file) => {
                *watch = Watch { seen: Some(signature), reported: None };
                let keys = self.take_over(&file);
                Reload::Loaded { keys }
            }
            // Trying again may help, and does no harm.
            Err(error @ (AccessError::Read { .. } | AccessError::Missing { .. })) => {
                watch.report(error)
            }
            Err(error) => {
                watch.seen = Some(signature);
                watch.reported = None;
                watch.report(error)
            }
        }
    }

    fn take_over(&self, file: &KeysFile) -> usize {
        let before = self.state();
        let keyring = Keyring::new(file, &before.keyring);
        let keys = keyring.len();
        let state = State { demands_key: before.demands_key || keys > 0, keyring };
        *self.0.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
        keys
    }

    fn state(&self) -> Arc<State> {
        Arc::clone(&self.0.state.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Watch {
    fn report(&mut self, error: AccessError) -> Reload {
        let message =
            format!("{error} {:?}", std::error::Error::source(&error).map(ToString::to_string));
        if self.reported.as_ref() == Some(&message) {
            return Reload::Unchanged;
        }
        self.reported = Some(message);
        Reload::Failed(error)
    }
}

impl Caller {
    /// Id of the key; `None` where no key is demanded.
    pub fn key_id(&self) -> Option<&str> {
        self.key.as_ref().map(|key| key.id.as_str())
    }

    /// Whose request it is: from the key alone, 0 without one.
    pub fn tenant(&self) -> TenantId {
        self.key.as_ref().map_or(TenantId(0), |key| key.tenant)
    }

    /// Namespace of the prefix cache: from the key's tenant alone, 0 without a key.
    pub fn salt(&self) -> CacheSalt {
        self.key.as_ref().map_or(CacheSalt(0), |key| key.salt)
    }

    /// The scheduling class of a request for which its client asked for priority `asked`, in vLLM's
    /// sense: lower is more urgent and 0 is ordinary.
    ///
    /// The number is cut to -8..=8 and added to the class of the key (100 without keys). With a key it
    /// can only make a request less urgent; negative numbers then count as 0. It is cut since the
    /// engine's queue is bounded for each class: a client must not reach many of them.
    pub fn priority(&self, asked: Option<i64>) -> Priority {
        let (base, most_urgent) = match &self.key {
            Some(key) => (key.priority.0, key.priority.0),
            None => (Priority::default().0, 0),
        };
        let asked = asked.unwrap_or(0).clamp(-CLASSES_EACH_WAY, CLASSES_EACH_WAY);
        let class = i64::from(base) + asked;
        Priority(class.clamp(i64::from(most_urgent), i64::from(u8::MAX)) as u8)
    }

    /// Begins a request, if the key's limits have room for one. It runs until the permit is dropped.
    pub fn admit(&self, now: Instant) -> Result<Permit, OverQuota> {
        match &self.key {
            Some(key) => key.meter.admit(&key.limits, now),
            None => Ok(Permit::without_key()),
        }
    }

    /// Counts tokens that a request has used, of its prompt or its answer.
    pub fn charge(&self, tokens: u32, now: Instant) {
        if let Some(key) = &self.key {
            key.meter.charge(&key.limits, tokens, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::num::NonZeroU32;

    use super::*;
    use crate::meter::{Limits, Quota};
    use crate::record::NewKey;
    use crate::secret::Secret;

    fn add(path: &Path, key: NewKey) -> (String, Secret) {
        KeysFile::edit(path, true, |file| {
            let (record, secret) = file.add(key, SystemTime::now())?;
            Ok((record.id.clone(), secret))
        })
        .unwrap()
    }

    fn tenant(name: &str) -> NewKey {
        NewKey { tenant: name.to_owned(), ..NewKey::default() }
    }

    fn may(access: &Access, secret: &Secret) -> bool {
        access.identify(Some(secret.expose()), SystemTime::now()).is_ok()
    }

    #[test]
    fn without_a_file_everybody_is_the_default_tenant() {
        let access = Access::default();
        assert!(!access.demands_key() && matches!(access.reload(), Reload::Unchanged));
        for secret in [None, Some("anything")] {
            let caller = access.identify(secret, SystemTime::now()).unwrap();
            assert_eq!((caller.tenant(), caller.salt()), (TenantId(0), CacheSalt(0)));
            assert_eq!((caller.key_id(), caller.priority(None)), (None, Priority(100)));
            for (asked, class) in [(0, 100), (-3, 97), (5, 105), (i64::MIN, 92), (i64::MAX, 108)] {
                assert_eq!(caller.priority(Some(asked)), Priority(class), "{asked}");
            }
            caller.admit(Instant::now()).unwrap();
        }
    }

    #[test]
    fn with_a_key_clients_can_only_lower_their_class() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        let (id, secret) = add(&path, NewKey { priority: Priority(50), ..tenant("a") });
        let access = Access::load(&path).unwrap();
        let caller = access.identify(Some(secret.expose()), SystemTime::now()).unwrap();
        assert_eq!(caller.key_id(), Some(id.as_str()));
        assert_ne!((caller.tenant(), caller.salt()), (TenantId(0), CacheSalt(0)));
        for (asked, class) in [(0, 50), (-1, 50), (i64::MIN, 50), (1, 51), (i64::MAX, 58)] {
            assert_eq!(caller.priority(Some(asked)), Priority(class), "{asked}");
        }
        assert_eq!(caller.priority(None), Priority(50));
    }

    #[test]
    fn keys_come_and_go_while_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        fs::write(&path, "version = 1\n").unwrap();
        let access = Access::load(&path).unwrap();
        assert!(!access.demands_key());
        let (id, first) = add(&path, tenant("a"));
        assert!(!access.demands_key());
        assert!(matches!(access.reload(), Reload::Loaded { keys: 1 }));
        assert!(matches!(access.reload(), Reload::Unchanged));
        assert!(access.demands_key() && may(&access, &first));
        let denied = |secret| access.identify(secret, SystemTime::now()).unwrap_err();
        assert_eq!(denied(None), Denied::Missing);
        let (_, second) = add(&path, tenant("b"));
        assert!(!may(&access, &second));
        assert!(matches!(access.reload(), Reload::Loaded { keys: 2 }));
        assert!(may(&access, &first) && may(&access, &second));
        KeysFile::edit(&path, false, |file| Ok(file.revoke(&id, SystemTime::now()))).unwrap();
        assert!(matches!(access.reload(), Reload::Loaded { keys: 2 }));
        assert_eq!(denied(Some(first.expose())), Denied::Revoked);
        assert!(may(&access, &second));
    }

    #[test]
    fn a_file_that_breaks_opens_nothing_and_is_reported_once_per_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        let (_, secret) = add(&path, tenant("a"));
        let access = Access::load(&path).unwrap();
        let good = fs::read(&path).unwrap();
        let is_closed =
            || access.identify(None, SystemTime::now()).is_err() && may(&access, &secret);
        for broken in ["version = 1\n[[keys]]", "nonsense", "version = 9"] {
            fs::write(&path, broken).unwrap();
            assert!(matches!(access.reload(), Reload::Failed(_)), "{broken}");
            assert!(matches!(access.reload(), Reload::Unchanged), "{broken}");
            assert!(is_closed(), "{broken}");
        }
        fs::remove_file(&path).unwrap();
        assert!(matches!(access.reload(), Reload::Failed(AccessError::Missing { .. })));
        assert!(matches!(access.reload(), Reload::Unchanged));
        assert!(is_closed());
        fs::write(&path, good).unwrap();
        assert!(matches!(access.reload(), Reload::Loaded { keys: 1 }));
        assert!(is_closed());
        // All keys are taken out: nobody has one, and still one is demanded.
        fs::write(&path, "version = 1\n").unwrap();
        assert!(matches!(access.reload(), Reload::Loaded { keys: 0 }));
        assert!(access.demands_key() && !may(&access, &secret));
        assert!(Access::load(&folder.path().join("none")).is_err());
    }

    #[test]
    fn limits_count_over_reloads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        let limits = Limits { tokens_per_minute: NonZeroU32::new(100), ..Limits::default() };
        let (_, secret) = add(&path, NewKey { limits, ..tenant("a") });
        let access = Access::load(&path).unwrap();
        let caller = || access.identify(Some(secret.expose()), SystemTime::now()).unwrap();
        let now = Instant::now();
        let permit = caller().admit(now).unwrap();
        caller().charge(150, now);
        drop(permit);
        add(&path, tenant("b"));
        assert!(matches!(access.reload(), Reload::Loaded { keys: 2 }));
        let refused = caller().admit(now).unwrap_err();
        assert_eq!((refused.quota, refused.retry_after_seconds()), (Quota::Tokens, 31));
    }
}
