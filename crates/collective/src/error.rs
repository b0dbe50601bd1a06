//! Why ranks lost each other.

use thiserror::Error;

/// A failed operation. The group is of no more use: ranks may be at different places.
#[derive(Debug, Error)]
pub enum CollectiveError {
    /// The process of a rank is gone.
    #[error("rank {rank} is gone")]
    Gone {
        /// Which one.
        rank: u32,
    },
    /// A rank failed and said so.
    #[error("rank {rank} gave up")]
    GaveUp {
        /// Which one.
        rank: u32,
    },
    /// A rank neither computed nor waited for others for longer than the deadline.
    #[error("rank {rank} made no progress for {seconds:.1} s")]
    Stalled {
        /// Which one.
        rank: u32,
        /// For how long.
        seconds: f64,
    },
    /// Ranks called different operations, which is a mistake of ours.
    #[error("rank {rank} is at another operation: {detail}")]
    Diverged {
        /// Which one.
        rank: u32,
        /// Both operations.
        detail: String,
    },
    /// The system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, with the rank's name.
        what: String,
        /// The system's word.
        source: std::io::Error,
    },
}

/// The system refused `what`.
pub(crate) fn io(what: impl Into<String>, source: impl Into<std::io::Error>) -> CollectiveError {
    CollectiveError::Io { what: what.into(), source: source.into() }
}
