//! The first words on a connection: both sides prove that they know the epoch's secret, which itself
//! never crosses the wire.
//!
//! The listener sends a challenge (16 bytes), the caller its [`Hello`] (48 bytes) with a keyed BLAKE3
//! hash over hello and challenge (32 bytes), and the listener a hash of the same under another label
//! (32 bytes). Integers are little-endian.

use std::io::{self, Read, Write};

/// Distinguishes our callers from others; the last digits are the version of the wire format.
const MAGIC: u64 = 0x6f61_726c_7463_0001;

pub(super) const CHALLENGE_BYTES: usize = 16;
const HELLO_BYTES: usize = 48;
const PROOF_BYTES: usize = 32;
pub(super) const CALL_BYTES: usize = HELLO_BYTES + PROOF_BYTES;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    Values,
    Heartbeats,
}

/// Both channels, in the order in which they are opened.
pub(super) const CHANNELS: [Channel; 2] = [Channel::Values, Channel::Heartbeats];

/// Who calls whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) epoch: u64,
    pub(super) ranks: u32,
    pub(super) caller: u32,
    pub(super) listener: u32,
    pub(super) channel: Channel,
}

/// The epoch's secret, as a key for proofs.
#[derive(Clone)]
pub(super) struct Key([u8; 32]);

impl Key {
    pub(super) fn new(secret: [u8; 16]) -> Self {
        Self(blake3::derive_key("oarlock-collective 2026 handshake of TCP ranks", &secret))
    }

    fn proof(&self, label: &[u8], hello: &[u8], challenge: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(label).update(hello).update(challenge);
        hasher.finalize()
    }

    fn caller(&self, hello: &[u8], challenge: &[u8]) -> blake3::Hash {
        self.proof(b"caller", hello, challenge)
    }

    fn listener(&self, hello: &[u8], challenge: &[u8]) -> blake3::Hash {
        self.proof(b"listen", hello, challenge)
    }
}

/// Bytes that nobody can foresee.
pub(super) fn nonce() -> io::Result<[u8; CHALLENGE_BYTES]> {
    let mut nonce = [0; CHALLENGE_BYTES];
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    Ok(nonce)
}

impl Hello {
    fn encode(self, nonce: [u8; CHALLENGE_BYTES]) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..8].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.epoch.to_le_bytes());
        let words = [self.ranks, self.caller, self.listener, self.channel as u32];
        for (place, word) in bytes[16..32].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes[32..].copy_from_slice(&nonce);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let long = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        if long(0)? != MAGIC {
            return None;
        }
        let channel = *CHANNELS.get(word(28)? as usize)?;
        let (ranks, caller, listener) = (word(16)?, word(20)?, word(24)?);
        Some(Self { epoch: long(8)?, ranks, caller, listener, channel })
    }
}

/// What a caller hears first, on a blocking connection with time-outs.
pub(super) fn hear(stream: &mut impl Read) -> io::Result<[u8; CHALLENGE_BYTES]> {
    let mut challenge = [0; CHALLENGE_BYTES];
    stream.read_exact(&mut challenge)?;
    Ok(challenge)
}

/// The rest of the caller's side.
pub(super) fn call(
    stream: &mut (impl Read + Write),
    hello: Hello,
    challenge: &[u8; CHALLENGE_BYTES],
    key: &Key,
) -> io::Result<()> {
    let hello = hello.encode(nonce()?);
    let mut call = [0; CALL_BYTES];
    call[..HELLO_BYTES].copy_from_slice(&hello);
    call[HELLO_BYTES..].copy_from_slice(key.caller(&hello, challenge).as_bytes());
    stream.write_all(&call)?;
    let mut proof = [0; PROOF_BYTES];
    stream.read_exact(&mut proof)?;
    // Compares in constant time.
    if key.listener(&hello, challenge) == proof {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "it does not know the secret"))
    }
}

/// The listener's side: who called, and the proof to answer with; `None` for a stranger.
pub(super) fn answer(
    call: &[u8; CALL_BYTES],
    challenge: &[u8; CHALLENGE_BYTES],
    key: &Key,
) -> Option<(Hello, [u8; PROOF_BYTES])> {
    let (hello, proof) = call.split_at(HELLO_BYTES);
    let proof: [u8; PROOF_BYTES] = proof.try_into().ok()?;
    // Compares in constant time.
    if key.caller(hello, challenge) != proof {
        return None;
    }
    Some((Hello::decode(hello)?, *key.listener(hello, challenge).as_bytes()))
}
