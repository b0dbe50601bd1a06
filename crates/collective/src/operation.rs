//! What ranks tell each other of the operation that they are at.

use std::fmt;

use crate::CollectiveError;

/// An operation with its length, in a word that other processes can read at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Operation(u64);

const LEN_BITS: u32 = 56;
const NAMES: [&str; 6] = ["none", "all_reduce", "gather", "all_gather", "broadcast", "barrier"];

impl Operation {
    /// No operation yet.
    pub(crate) const NONE: Self = Self(0);

    fn new(kind: u64, len: usize) -> Self {
        let len = len as u64;
        assert!(len < 1 << LEN_BITS, "values fit into memory");
        Self(kind << LEN_BITS | len)
    }

    pub(crate) fn all_reduce(len: usize) -> Self {
        Self::new(1, len)
    }

    pub(crate) fn gather(lens: &[usize]) -> Self {
        Self::new(2, lens.iter().sum())
    }

    pub(crate) fn all_gather(lens: &[usize]) -> Self {
        Self::new(3, lens.iter().sum())
    }

    pub(crate) fn broadcast(len: usize) -> Self {
        Self::new(4, len)
    }

    pub(crate) fn barrier() -> Self {
        Self::new(5, 0)
    }

    pub(crate) fn to_word(self) -> u64 {
        self.0
    }

    pub(crate) fn from_word(word: u64) -> Self {
        Self(word)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.get((self.0 >> LEN_BITS) as usize).unwrap_or(&"unknown");
        write!(f, "{name} of {}", self.0 & ((1 << LEN_BITS) - 1))
    }
}

/// `rank` is at `theirs` where this rank is at `ours`.
pub(crate) fn check(rank: u32, theirs: Operation, ours: Operation) -> Result<(), CollectiveError> {
    if theirs == ours {
        return Ok(());
    }
    let detail = format!("{theirs}, where this rank is at {ours}");
    Err(CollectiveError::Diverged { rank, detail })
}
