//! A worker behind gRPC, as its engine drives it.

use std::path::Path;
use std::time::Duration;

use futures::stream::StreamExt as _;
use oarlock_types::{LoadOptions, LoadProgress, StepPlan, WorkerDescription, WorkerIdentity};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::api::{HeartbeatStream, ResultStream, WorkerError};
use crate::convert::ConvertError;
use crate::proto::load_event::Kind;
use crate::proto::worker_client::WorkerClient as Stub;
use crate::proto::{self, IdentifyRequest, ListenRequest, LoadRequest, WatchRequest};
use crate::{MAX_MESSAGE_BYTES, socket};

/// Plans that may wait for the socket; the scheduler allows no more than two in flight.
const PLAN_QUEUE: usize = 4;

/// Calls a worker that listens on a Unix socket.
#[derive(Clone)]
pub struct WorkerClient {
    stub: Stub<Channel>,
}

/// Sends plans into an execution.
pub struct PlanSender {
    plans: mpsc::Sender<proto::StepPlan>,
}

impl PlanSender {
    /// Sends one plan; [`WorkerError::Lost`] if the worker no longer listens.
    pub fn send(&self, plan: &StepPlan) -> Result<(), WorkerError> {
        let lost = |error: mpsc::error::TrySendError<_>| WorkerError::Lost(error.to_string());
        self.plans.try_send(plan.into()).map_err(lost)
    }
}

impl WorkerClient {
    /// A client of the worker at `socket`; connects at the first call.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        let stub = Stub::new(socket::channel(socket))
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Self { stub }
    }

    /// Asks who and where the worker is.
    pub async fn identify(&mut self) -> Result<WorkerIdentity, WorkerError> {
        let reply = self.stub.identify(IdentifyRequest {}).await;
        Ok(reply.map_err(|status| worker_error(&status))?.into_inner().into())
    }

    /// Has the worker open a port for the other ranks; gives its addresses.
    pub async fn listen(&mut self, local: bool) -> Result<Vec<String>, WorkerError> {
        let reply = self.stub.listen(ListenRequest { local }).await;
        Ok(reply.map_err(|status| worker_error(&status))?.into_inner().addresses)
    }

    /// Signs of life every `interval`.
    pub async fn watch(&mut self, interval: Duration) -> Result<HeartbeatStream, WorkerError> {
        let interval_ms = u32::try_from(interval.as_millis()).unwrap_or(u32::MAX).max(1);
        let reply = self.stub.watch(WatchRequest { interval_ms }).await;
        let beats = reply.map_err(|status| worker_error(&status))?.into_inner();
        Ok(beats.map(|beat| beat.map(Into::into).map_err(|status| worker_error(&status))).boxed())
    }

    /// Has the worker load its weights; `progress` hears of it meanwhile, first when it has met the
    /// other ranks.
    pub async fn load(
        &mut self,
        options: &LoadOptions,
        mut progress: impl FnMut(LoadProgress),
    ) -> Result<WorkerDescription, WorkerError> {
        let request = LoadRequest::from(options);
        let mut events =
            self.stub.load(request).await.map_err(|status| worker_error(&status))?.into_inner();
        while let Some(event) = events.message().await.map_err(|status| worker_error(&status))? {
            match event.kind {
                Some(Kind::Progress(so_far)) => progress(so_far.into()),
                Some(Kind::Done(description)) => {
                    return description.try_into().map_err(protocol_error);
                }
                None => return Err(protocol_error(ConvertError::Missing("kind"))),
            }
        }
        Err(WorkerError::Lost("it closed the stream while loading".to_owned()))
    }

    /// Starts an execution: plans go in, results come out in order.
    pub async fn execute(&mut self) -> Result<(PlanSender, ResultStream), WorkerError> {
        let (plans, receiver) = mpsc::channel(PLAN_QUEUE);
        let reply = self.stub.execute(ReceiverStream::new(receiver)).await;
        let results =
            reply.map_err(|status| worker_error(&status))?.into_inner().map(
                |result| match result {
                    Ok(result) => result.try_into().map_err(protocol_error),
                    Err(status) => Err(worker_error(&status)),
                },
            );
        Ok((PlanSender { plans }, results.boxed()))
    }
}

fn worker_error(status: &Status) -> WorkerError {
    match status.code() {
        Code::FailedPrecondition => WorkerError::Failed(status.message().to_owned()),
        Code::InvalidArgument | Code::Unimplemented => {
            WorkerError::Protocol(status.message().to_owned())
        }
        _ => WorkerError::Lost(status.message().to_owned()),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "used as a function in map_err")]
fn protocol_error(error: ConvertError) -> WorkerError {
    WorkerError::Protocol(error.to_string())
}
