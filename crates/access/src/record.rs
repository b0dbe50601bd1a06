//! One key as the file has it.

use std::fmt;
use std::num::NonZeroU32;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use oarlock_types::Priority;
use serde::{Deserialize, Serialize};

use crate::error::AccessError;
use crate::meter::Limits;
use crate::secret::{Secret, SecretHash, to_hex};

/// Characters of an id, a name or a tenant at most.
const MAX_NAME_CHARS: usize = 128;
/// Random bytes of a new id.
const ID_BYTES: usize = 6;

/// A moment, in whole seconds; RFC 3339 in UTC where people read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(SystemTime);

impl Timestamp {
    /// The second in which `time` lies.
    pub fn from_time(time: SystemTime) -> Self {
        let elapsed = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(UNIX_EPOCH + Duration::from_secs(elapsed.as_secs()))
    }

    /// Reads `2026-11-22T06:30:00Z`, or a day, whose beginning is meant.
    pub fn parse(text: &str) -> Result<Self, String> {
        let is_day = text.len() == "2026-11-22".len();
        let whole = if is_day { format!("{text}T00:00:00Z") } else { text.to_owned() };
        let time = humantime::parse_rfc3339(&whole);
        time.map(Self::from_time).map_err(|error| {
            format!("`{text}` is no time in UTC like 2026-11-22T06:30:00Z ({error})")
        })
    }

    /// As the standard library has it.
    pub fn time(self) -> SystemTime {
        self.0
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_seconds(self.0).fmt(f)
    }
}

impl From<Timestamp> for String {
    fn from(timestamp: Timestamp) -> Self {
        timestamp.to_string()
    }
}

impl TryFrom<String> for Timestamp {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

/// One key. The secret itself is not in it, and cannot be computed from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRecord {
    /// Unique in the file; how `revoke` names it.
    pub id: String,
    /// For people: who or what uses it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Whose requests these are. Keys of one tenant share its fair share and its prefix cache.
    pub tenant: String,
    /// Hash of the secret.
    pub hash: SecretHash,
    /// Scheduling class of its requests, 0 (first) to 255; clients may lower it, not raise it.
    #[serde(default = "default_priority")]
    pub priority: u8,
    /// Requests per minute at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<NonZeroU32>,
    /// Tokens per minute at most, of prompts and answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<NonZeroU32>,
    /// Requests at the same time at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_parallel: Option<NonZeroU32>,
    /// When it was added.
    pub created: Timestamp,
    /// From when on it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// Since when it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<Timestamp>,
}

fn default_priority() -> u8 {
    Priority::default().0
}

/// What is said of a key when it is added.
#[derive(Clone, Debug, Default)]
pub struct NewKey {
    /// For people; may be empty.
    pub name: String,
    /// Whose requests these will be.
    pub tenant: String,
    /// Scheduling class.
    pub priority: Priority,
    /// What it may use.
    pub limits: Limits,
    /// From when on it is refused.
    pub expires: Option<Timestamp>,
}

impl KeyRecord {
    /// A key with a new id and a new secret.
    pub(crate) fn draw(key: NewKey, now: SystemTime) -> Result<(Self, Secret), AccessError> {
        let mut random = [0; ID_BYTES];
        getrandom::fill(&mut random).map_err(AccessError::Randomness)?;
        let secret = Secret::draw()?;
        let record = Self {
            id: format!("k_{}", to_hex(&random)),
            name: key.name,
            tenant: key.tenant,
            hash: SecretHash::of(secret.expose()),
            priority: key.priority.0,
            requests_per_minute: key.limits.requests_per_minute,
            tokens_per_minute: key.limits.tokens_per_minute,
            max_parallel: key.limits.max_parallel,
            created: Timestamp::from_time(now),
            expires: key.expires,
            revoked: None,
        };
        Ok((record, secret))
    }

    /// What it may use.
    pub fn limits(&self) -> Limits {
        Limits {
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
            max_parallel: self.max_parallel,
        }
    }

    /// The field that cannot be as it is, and why.
    pub(crate) fn problem(&self) -> Option<(&'static str, String)> {
        let is_plain =
            |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
        let is_printable = |text: &str| !text.chars().any(char::is_control);
        let is_short = |text: &str| text.chars().count() <= MAX_NAME_CHARS;
        let limit = format!("up to {MAX_NAME_CHARS} characters");
        if self.id.is_empty() || !is_plain(&self.id) || !is_short(&self.id) {
            return Some(("id", format!("write letters, digits and `_-.`, {limit}")));
        }
        if self.tenant.is_empty() || !is_printable(&self.tenant) || !is_short(&self.tenant) {
            return Some((
                "tenant",
                format!("write a name of {limit}, without control characters"),
            ));
        }
        if !is_printable(&self.name) || !is_short(&self.name) {
            return Some(("name", format!("write {limit}, without control characters")));
        }
        None
    }
}
