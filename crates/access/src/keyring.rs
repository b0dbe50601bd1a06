//! Finding the key that a client presents.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use oarlock_types::{CacheSalt, Priority, TenantId};

use crate::file::KeysFile;
use crate::index::HashIndex;
use crate::meter::{Limits, Meter};
use crate::record::KeyRecord;
use crate::secret::{MAX_SECRET_BYTES, SecretHash};

/// What separates the two numbers that come from a tenant's name. Changing one of these moves every
/// tenant to another share or another part of the cache.
const TENANT_CONTEXT: &str = "oarlock 2026-11 tenant id";
const SALT_CONTEXT: &str = "oarlock 2026-11 prefix cache salt";

/// Why a client is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No key was presented.
    #[error("no key was presented")]
    Missing,
    /// No key has this secret.
    #[error("the key is not known")]
    Unknown,
    /// The key was revoked.
    #[error("the key was revoked")]
    Revoked,
    /// The key's time is over.
    #[error("the key has expired")]
    Expired,
}

/// One key, ready to be used.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) tenant: TenantId,
    pub(crate) salt: CacheSalt,
    pub(crate) priority: Priority,
    pub(crate) limits: Limits,
    pub(crate) meter: Arc<Meter>,
    expires: Option<SystemTime>,
    is_revoked: bool,
}

/// All keys of a file.
#[derive(Debug, Default)]
pub(crate) struct Keyring {
    /// Of the hashes, to places in `keys`.
    index: HashIndex,
    keys: Vec<Arc<Key>>,
}

impl Keyring {
    /// The keys of `file`; those that `before` had too go on with what they have used.
    pub(crate) fn new(file: &KeysFile, before: &Self) -> Self {
        let meters: BTreeMap<&str, &Arc<Meter>> =
            before.keys.iter().map(|key| (key.id.as_str(), &key.meter)).collect();
        let meter_of = |record: &KeyRecord| {
            meters.get(record.id.as_str()).map(|meter| Arc::clone(meter)).unwrap_or_default()
        };
        let records = file.keys();
        let keys = records.iter().map(|record| Arc::new(Key::new(record, meter_of(record))));
        let index = HashIndex::new(records.iter().map(|record| record.hash));
        Self { index, keys: keys.collect() }
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The key with this secret. How long it takes tells nothing that helps to find a secret:
    /// [`HashIndex`] says why.
    pub(crate) fn find(&self, secret: &str, now: SystemTime) -> Result<&Arc<Key>, Denied> {
        if secret.is_empty() {
            return Err(Denied::Missing);
        }
        if secret.len() > MAX_SECRET_BYTES {
            return Err(Denied::Unknown);
        }
        let place = self.index.find(&SecretHash::of(secret)).ok_or(Denied::Unknown)?;
        let key = &self.keys[place];
        match key.expires {
            _ if key.is_revoked => Err(Denied::Revoked),
            Some(expires) if now >= expires => Err(Denied::Expired),
            _ => Ok(key),
        }
    }
}

impl Key {
    fn new(record: &KeyRecord, meter: Arc<Meter>) -> Self {
        Self {
            id: record.id.clone(),
            tenant: tenant_id(&record.tenant),
            salt: cache_salt(&record.tenant),
            priority: Priority(record.priority),
            limits: record.limits(),
            meter,
            expires: record.expires.map(crate::Timestamp::time),
            is_revoked: record.revoked.is_some(),
        }
    }
}

/// Comes from the tenant's name alone, so that all its keys, on all gateways and after every restart,
/// give the same. Never 0, which is the tenant without a key.
fn tenant_id(name: &str) -> TenantId {
    TenantId(derive(TENANT_CONTEXT, name))
}

/// As [`tenant_id`], and unrelated to it.
fn cache_salt(name: &str) -> CacheSalt {
    CacheSalt(derive(SALT_CONTEXT, name))
}

fn derive(context: &str, name: &str) -> u64 {
    let hash = blake3::derive_key(context, name.as_bytes());
    let (low, _) = hash.split_first_chunk().expect("the hash has 32 bytes");
    u64::from_le_bytes(*low).max(1)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::record::{NewKey, Timestamp};
    use crate::secret::Secret;

    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_hours(500_000)
    }

    fn add(file: &mut KeysFile, tenant: &str, expires: Option<Timestamp>) -> (String, Secret) {
        let key = NewKey { tenant: tenant.to_owned(), expires, ..NewKey::default() };
        let (record, secret) = file.add(key, now()).unwrap();
        (record.id.clone(), secret)
    }

    #[test]
    fn each_secret_finds_its_own_key() {
        let mut file = KeysFile::default();
        let added: Vec<_> = (0..50).map(|i| add(&mut file, &format!("t{i}"), None)).collect();
        let keyring = Keyring::new(&file, &Keyring::default());
        for (id, secret) in &added {
            assert_eq!(&keyring.find(secret.expose(), now()).unwrap().id, id);
        }
        for wrong in ["x", "oar_", &added[0].1.expose()[1..], &"x".repeat(MAX_SECRET_BYTES + 1)] {
            assert_eq!(keyring.find(wrong, now()).unwrap_err(), Denied::Unknown);
        }
        assert_eq!(keyring.find("", now()).unwrap_err(), Denied::Missing);
        assert_eq!(Keyring::default().find("x", now()).unwrap_err(), Denied::Unknown);
    }

    #[test]
    fn revoked_and_expired_keys_are_refused() {
        let mut file = KeysFile::default();
        let end = now() + Duration::from_mins(1);
        let (_, short) = add(&mut file, "t", Some(Timestamp::from_time(end)));
        let (id, revoked) = add(&mut file, "t", None);
        assert!(file.revoke(&id, now()).unwrap());
        let keyring = Keyring::new(&file, &Keyring::default());
        assert_eq!(keyring.find(revoked.expose(), now()).unwrap_err(), Denied::Revoked);
        assert!(keyring.find(short.expose(), end - Duration::from_secs(1)).is_ok());
        assert_eq!(keyring.find(short.expose(), end).unwrap_err(), Denied::Expired);
    }

    #[test]
    fn tenant_and_salt_come_from_the_name_alone() {
        let mut file = KeysFile::default();
        for tenant in ["acme", "acme", "umbrella"] {
            add(&mut file, tenant, None);
        }
        let keyring = Keyring::new(&file, &Keyring::default());
        let [first, second, other] = &keyring.keys[..] else { panic!("three keys") };
        assert_eq!((first.tenant, first.salt), (second.tenant, second.salt));
        assert_ne!(first.tenant, other.tenant);
        assert_ne!(first.salt, other.salt);
        assert_ne!(first.tenant.0, first.salt.0);
        // Caches and shares must not move with an update of this program.
        let numbers = (8_308_119_408_979_574_211, 14_965_522_433_325_277_489);
        assert_eq!((first.tenant.0, first.salt.0), numbers);
    }

    #[test]
    fn what_was_used_outlives_a_reload() {
        let mut file = KeysFile::default();
        let (_, secret) = add(&mut file, "t", None);
        let before = Keyring::new(&file, &Keyring::default());
        let (_, new) = add(&mut file, "t", None);
        let after = Keyring::new(&file, &before);
        let meter = |keyring: &Keyring, secret: &Secret| {
            Arc::as_ptr(&keyring.find(secret.expose(), now()).unwrap().meter)
        };
        assert_eq!(meter(&before, &secret), meter(&after, &secret));
        assert_ne!(meter(&after, &secret), meter(&after, &new));
    }
}
