//! The interfaces between processes, free of protobuf.

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use oarlock_types::{EngineDescription, EngineStatus, EventKind, Rejected, Request};
use thiserror::Error;

/// Events of one request, ending after [`EventKind::Finished`] or an error. Dropping the stream
/// cancels the request: its blocks are free within one step.
pub type EventStream = BoxStream<'static, Result<EventKind, EngineError>>;

/// Why a call to an engine failed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum EngineError {
    /// The engine looked at the request and refused it.
    #[error("request refused: {0:?}")]
    Rejected(Rejected),
    /// The engine cannot be reached, is still starting, or has given up.
    #[error("engine unavailable: {0}")]
    Unavailable(String),
    /// A message that does not follow the protocol.
    #[error("protocol error: {0}")]
    Protocol(String),
}

/// What an engine does for its clients.
pub trait EngineApi: Send + Sync + 'static {
    /// What the engine serves; [`EngineError::Unavailable`] until its weights are loaded.
    fn describe(&self) -> BoxFuture<'_, Result<EngineDescription, EngineError>>;

    /// Computes one sequence. The engine chooses `request.id` itself and ignores the caller's.
    fn generate(&self, request: Request) -> BoxFuture<'_, Result<EventStream, EngineError>>;

    /// Health and counters, as of now.
    fn status(&self) -> BoxFuture<'_, Result<EngineStatus, EngineError>>;
}
