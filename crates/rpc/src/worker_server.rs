//! Serves a [`WorkerApi`] over gRPC on a Unix socket.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, Stream, StreamExt as _};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::MAX_MESSAGE_BYTES;
use crate::api::{LoadEvent, WorkerApi, WorkerError};
use crate::convert::ConvertError;
use crate::proto::load_event::Kind;
use crate::proto::worker_server::{Worker, WorkerServer};
use crate::proto::{
    self, IdentifyRequest, ListenReply, ListenRequest, LoadRequest, StepPlan, StepResult,
    WatchRequest,
};

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
    type WatchStream = Replies<proto::Heartbeat>;

    async fn identify(
        &self,
        _: Request<IdentifyRequest>,
    ) -> Result<Response<proto::WorkerIdentity>, Status> {
        Ok(Response::new(self.worker.identify().into()))
    }

    async fn listen(
        &self,
        request: Request<ListenRequest>,
    ) -> Result<Response<ListenReply>, Status> {
        let addresses = self.worker.listen(request.into_inner().local).map_err(status)?;
        Ok(Response::new(ListenReply { addresses }))
    }

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let interval = request.into_inner().interval_ms.max(1);
        let beats = self.worker.watch(Duration::from_millis(interval.into()));
        let beats = beats.map(|beat| beat.map(Into::into).map_err(status));
        Ok(Response::new(beats.boxed()))
    }

    async fn load(
        &self,
        request: Request<LoadRequest>,
    ) -> Result<Response<Self::LoadStream>, Status> {
        let options: Result<oarlock_types::LoadOptions, ConvertError> =
            request.into_inner().try_into();
        let options = options.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let events = self.worker.load(options);
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
        Ok(plan) => {
            plan.try_into().map_err(|error: ConvertError| WorkerError::Protocol(error.to_string()))
        }
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
