//! Serves a [`WorkerApi`] over gRPC on a Unix socket.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use futures::stream::{BoxStream, Stream, StreamExt as _};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::MAX_MESSAGE_BYTES;
use crate::api::{LoadEvent, WorkerApi, WorkerError};
use crate::proto::load_event::Kind;
use crate::proto::worker_server::{Worker, WorkerServer};
use crate::proto::{self, LoadRequest, StepPlan, StepResult};

/// Serves `worker` on `listener` until `shutdown` resolves.
pub async fn serve_worker(
    worker: Arc<dyn WorkerApi>,
    listener: UnixListener,
    shutdown: impl Future<Output = ()>,
) -> Result<(), WorkerError> {
    let service = WorkerServer::new(Adapter { worker })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    Server::builder()
        .add_service(service)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown)
        .await
        .map_err(|error| WorkerError::Lost(error.to_string()))
}

struct Adapter {
    worker: Arc<dyn WorkerApi>,
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Worker for Adapter {
    type LoadStream = Replies<proto::LoadEvent>;
    type ExecuteStream = Replies<StepResult>;

    async fn load(
        &self,
        request: Request<LoadRequest>,
    ) -> Result<Response<Self::LoadStream>, Status> {
        let request = request.into_inner();
        let limits =
            request.limits.ok_or_else(|| Status::invalid_argument("field limits is missing"))?;
        let events = self.worker.load(PathBuf::from(request.model_path), limits.into());
        let events = events.map(|event| {
            let kind = match event.map_err(status)? {
                LoadEvent::Progress(progress) => Kind::Progress(progress.into()),
                LoadEvent::Done(description) => Kind::Done(description.as_ref().into()),
            };
            Ok(proto::LoadEvent { kind: Some(kind) })
        });
        Ok(Response::new(events.boxed()))
    }

    async fn execute(
        &self,
        request: Request<Streaming<StepPlan>>,
    ) -> Result<Response<Self::ExecuteStream>, Status> {
        let results = self.worker.execute(plans(request.into_inner()));
        let results = results.map(|result| match result {
            Ok(result) => Ok((&result).into()),
            Err(error) => Err(status(error)),
        });
        Ok(Response::new(results.boxed()))
    }
}

fn plans(
    stream: Streaming<StepPlan>,
) -> BoxStream<'static, Result<oarlock_types::StepPlan, WorkerError>> {
    let converted = stream.map(|plan| match plan {
        Ok(plan) => plan.try_into().map_err(|error: crate::convert::ConvertError| {
            WorkerError::Protocol(error.to_string())
        }),
        Err(status) => Err(WorkerError::Lost(status.message().to_owned())),
    });
    converted.boxed()
}

fn status(error: WorkerError) -> Status {
    match error {
        WorkerError::Failed(message) => Status::failed_precondition(message),
        WorkerError::Lost(message) => Status::unavailable(message),
        WorkerError::Protocol(message) => Status::invalid_argument(message),
    }
}
