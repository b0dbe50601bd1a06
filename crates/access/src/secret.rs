//! Secrets, and the hashes that are kept of them.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::error::AccessError;

/// Before the random part, so that people and scanners recognize a leaked key.
const PREFIX: &str = "oar_";
/// Bytes of the random part: nobody guesses 256 bits.
const RANDOM_BYTES: usize = 32;
/// Before the digits of a hash in the file.
const HASH_PREFIX: &str = "sha256:";

/// A presented secret that is longer is refused without hashing it.
pub const MAX_SECRET_BYTES: usize = 256;

/// A key as its owner holds it. It exists here only between being drawn and being shown.
pub struct Secret(String);

impl Secret {
    /// Draws a new one.
    pub fn draw() -> Result<Self, AccessError> {
        let mut random = [0; RANDOM_BYTES];
        getrandom::fill(&mut random).map_err(AccessError::Randomness)?;
        Ok(Self(format!("{PREFIX}{}", to_hex(&random))))
    }

    /// The text that a client sends. Show it once and keep it nowhere.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// SHA-256 of a secret.
///
/// A fast hash is right here, and a slow one (bcrypt, Argon2) would not be: those make up for
/// passwords that can be guessed, and nobody guesses 256 random bits, while a slow hash for every
/// request would be a way to keep the server busy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    /// The hash of what a client presented.
    pub fn of(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }

    /// The first eight bytes.
    pub(crate) fn prefix(&self) -> u64 {
        let (first, _) = self.0.split_first_chunk().expect("the hash has 32 bytes");
        u64::from_be_bytes(*first)
    }

    /// Whether both are the same, in a time that does not depend on where they differ.
    pub(crate) fn matches(&self, other: &Self) -> Choice {
        self.0.ct_eq(&other.0)
    }
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{HASH_PREFIX}{}", to_hex(&self.0))
    }
}

impl From<SecretHash> for String {
    fn from(hash: SecretHash) -> Self {
        format!("{hash:?}")
    }
}

impl TryFrom<String> for SecretHash {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let problem = || format!("a hash is `{HASH_PREFIX}` and 64 hexadecimal digits");
        let digits = text.strip_prefix(HASH_PREFIX).ok_or_else(problem)?;
        from_hex(digits).map(Self).ok_or_else(problem)
    }
}

/// Two lower-case digits per byte.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn from_hex(digits: &str) -> Option<[u8; 32]> {
    let digits = digits.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_differ_and_do_not_show_in_debug_output() {
        let (first, second) = (Secret::draw().unwrap(), Secret::draw().unwrap());
        assert_ne!(first.expose(), second.expose());
        assert!(first.expose().starts_with("oar_"));
        assert_eq!(first.expose().len(), 4 + 64);
        assert!(first.expose().len() <= MAX_SECRET_BYTES);
        assert_eq!(format!("{first:?}"), "Secret(…)");
    }

    #[test]
    fn hashes_are_sha256_and_come_back_from_text() {
        // FIPS 180-2's example, "abc".
        let hash = SecretHash::of("abc");
        let text = String::from(hash);
        assert_eq!(text, "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(SecretHash::try_from(text.clone()), Ok(hash));
        assert_eq!(SecretHash::try_from(text.to_uppercase().replace("SHA", "sha")), Ok(hash));
        for wrong in ["", "sha256:", "sha256:0", &text[7..], &format!("{text}0"), "sha256:zz"] {
            assert!(SecretHash::try_from(wrong.to_owned()).is_err(), "{wrong}");
        }
        let signs = format!("sha256:{}", "+1".repeat(32));
        assert!(SecretHash::try_from(signs).is_err());
    }

    #[test]
    fn only_the_same_secret_matches() {
        let hash = SecretHash::of("a");
        assert!(bool::from(hash.matches(&SecretHash::of("a"))));
        assert!(!bool::from(hash.matches(&SecretHash::of("b"))));
    }
}
