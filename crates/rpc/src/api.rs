//! The interfaces between processes, free of protobuf.

use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use oarlock_types::{
    EngineDescription, EngineStatus, EventKind, Heartbeat, LoadOptions, LoadProgress, Rejected,
    Request, StepPlan, StepResult, WorkerDescription, WorkerIdentity,
};
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

    /// Computes one sequence. The engine chooses `request.id` itself and ignores the caller's;
    /// `request.deadline` counts from this call.
    fn generate(&self, request: Request) -> BoxFuture<'_, Result<EventStream, EngineError>>;

    /// Health and counters, as of now.
    fn status(&self) -> BoxFuture<'_, Result<EngineStatus, EngineError>>;
}

/// Why a call to a worker failed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum WorkerError {
    /// The worker cannot do it, in one sentence for the person who started the server.
    #[error("{0}")]
    Failed(String),
    /// The worker is gone.
    #[error("worker lost: {0}")]
    Lost(String),
    /// A message that does not follow the protocol.
    #[error("protocol error: {0}")]
    Protocol(String),
}

/// One message of loading.
#[derive(Clone, Debug, PartialEq)]
pub enum LoadEvent {
    /// So far.
    Progress(LoadProgress),
    /// Loaded; the last message.
    Done(Box<WorkerDescription>),
}

/// Messages of loading.
pub type LoadStream = BoxStream<'static, Result<LoadEvent, WorkerError>>;
/// Signs of life, at an interval.
pub type HeartbeatStream = BoxStream<'static, Result<Heartbeat, WorkerError>>;
/// Results of steps, in order.
pub type ResultStream = BoxStream<'static, Result<StepResult, WorkerError>>;

/// What a worker does for its engine.
pub trait WorkerApi: Send + Sync + 'static {
    /// Who and where it is.
    fn identify(&self) -> WorkerIdentity;

    /// Opens a port for the other ranks, on the loopback only if all are `local`; gives its addresses.
    fn listen(&self, local: bool) -> Result<Vec<String>, WorkerError>;

    /// Signs of life every `interval`, from a thread that neither loads nor computes.
    fn watch(&self, interval: Duration) -> HeartbeatStream;

    /// Meets the other ranks, loads the weights and plans memory. A message of progress comes first,
    /// as soon as all ranks have met.
    fn load(&self, options: LoadOptions) -> LoadStream;

    /// Executes plans in order. When `plans` ends the stream of results does, too.
    fn execute(&self, plans: BoxStream<'static, Result<StepPlan, WorkerError>>) -> ResultStream;
}
