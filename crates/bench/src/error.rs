//! Why a benchmark could not be run, and why a request failed.

use std::error::Error;
use std::fmt;

use thiserror::Error;

/// Why nothing could be measured.
#[derive(Debug, Error)]
pub enum BenchError {
    /// The address cannot be read.
    #[error("--url {url}: {reason}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The key cannot be put into a header.
    #[error("--api-key: it has characters that cannot stand in an HTTP header")]
    ApiKey,
    /// Nobody answers there.
    #[error("cannot reach {url}: {reason}")]
    Unreachable {
        /// The server.
        url: String,
        /// The innermost cause.
        reason: String,
    },
    /// The server wants another key.
    #[error("{url} refuses the key ({message}): give one with --api-key or OPENAI_API_KEY")]
    Unauthorized {
        /// The server.
        url: String,
        /// What it says.
        message: String,
    },
    /// It was cancelled first.
    #[error("interrupted before anything was measured")]
    Interrupted,
    /// The model must be named.
    #[error("--model is needed: the server lists {0}")]
    Model(String),
    /// The server does not answer a first, small request.
    #[error("{url} does not answer a first request: {failure}")]
    Refused {
        /// Which route.
        url: String,
        /// Why.
        failure: String,
    },
}

/// Why one request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) message: String,
}

/// Kinds of failures, as they are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FailureKind {
    /// No connection.
    Connect,
    /// Not done in time.
    Timeout,
    /// An answer with another status than 200.
    Status(u16),
    /// An event in the stream says that the request failed.
    ErrorEvent,
    /// The connection ended before the answer did.
    Disconnected,
    /// An answer that is none of this API.
    Protocol,
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect => f.write_str("connect"),
            Self::Timeout => f.write_str("timeout"),
            Self::Status(status) => write!(f, "http {status}"),
            Self::ErrorEvent => f.write_str("error event"),
            Self::Disconnected => f.write_str("disconnected"),
            Self::Protocol => f.write_str("protocol"),
        }
    }
}

impl Failure {
    /// Characters of a server's message that are kept.
    const MAX_MESSAGE: usize = 300;

    pub(crate) fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        let message: String = message.into();
        let message = match message.char_indices().nth(Self::MAX_MESSAGE) {
            Some((end, _)) => format!("{}…", &message[..end]),
            None => message,
        };
        Self { kind, message }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)
    }
}

/// The innermost cause: the layers above it say only that something failed.
pub(crate) fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
