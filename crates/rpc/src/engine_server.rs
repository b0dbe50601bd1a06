//! Serves an [`EngineApi`] over gRPC on a Unix socket.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use oarlock_types::Request as EngineRequest;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::MAX_MESSAGE_BYTES;
use crate::api::{EngineApi, EngineError, EventStream};
use crate::convert::rejection_to_status;
use crate::proto::engine_server::{Engine, EngineServer};
use crate::proto::{
    DescribeRequest, EngineDescription, EngineStatus, GenerateEvent, GenerateRequest, StatusRequest,
};

/// Streams that a gateway may reset before they were looked at.
const MAX_PENDING_RESETS: usize = 1 << 16;

/// Serves `engine` on `listener` until `shutdown` resolves, then lets running calls finish.
pub async fn serve_engine(
    engine: Arc<dyn EngineApi>,
    listener: UnixListener,
    shutdown: impl Future<Output = ()>,
) -> Result<(), EngineError> {
    let service = EngineServer::new(Adapter { engine })
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    Server::builder()
        // A gateway may drop many requests at once; the default of 20 would end the connection.
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .add_service(service)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown)
        .await
        .map_err(|error| EngineError::Unavailable(error.to_string()))
}

struct Adapter {
    engine: Arc<dyn EngineApi>,
}

/// Converts events on their way out. Dropped by tonic when the client resets the stream, which
/// drops the engine's stream and so cancels the request.
struct Events(EventStream);

impl Stream for Events {
    type Item = Result<GenerateEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.0.as_mut().poll_next(cx);
        next.map(|event| {
            event.map(|event| match event {
                Ok(event) => Ok((&event).into()),
                Err(error) => Err(status(error)),
            })
        })
    }
}

#[tonic::async_trait]
impl Engine for Adapter {
    type GenerateStream = Events;

    async fn describe(
        &self,
        _: Request<DescribeRequest>,
    ) -> Result<Response<EngineDescription>, Status> {
        let description = self.engine.describe().await.map_err(status)?;
        Ok(Response::new((&description).into()))
    }

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Events>, Status> {
        let request = EngineRequest::try_from(request.into_inner())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let events = self.engine.generate(request).await.map_err(status)?;
        Ok(Response::new(Events(events)))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<EngineStatus>, Status> {
        let current = self.engine.status().await.map_err(status)?;
        Ok(Response::new((&current).into()))
    }
}

fn status(error: EngineError) -> Status {
    match error {
        EngineError::Rejected(rejected) => rejection_to_status(rejected),
        EngineError::Unavailable(message) => Status::unavailable(message),
        EngineError::Protocol(message) => Status::invalid_argument(message),
    }
}
