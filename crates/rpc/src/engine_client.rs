//! An engine behind gRPC, as an [`EngineApi`].

use std::path::Path;

use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::StreamExt as _;
use oarlock_types::{EngineDescription, EngineStatus, Request};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::api::{EngineApi, EngineError, EventStream};
use crate::convert::{ConvertError, rejection_from_status};
use crate::proto::engine_client::EngineClient as Stub;
use crate::proto::{DescribeRequest, GenerateRequest, StatusRequest};
use crate::{MAX_MESSAGE_BYTES, socket};

/// Calls an engine that listens on a Unix socket.
#[derive(Clone)]
pub struct EngineClient {
    stub: Stub<Channel>,
}

impl EngineClient {
    /// A client of the engine at `socket`; connects at the first call.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self {
            stub: Stub::new(socket::channel(socket)).max_decoding_message_size(MAX_MESSAGE_BYTES),
        }
    }
}

impl EngineApi for EngineClient {
    fn describe(&self) -> BoxFuture<'_, Result<EngineDescription, EngineError>> {
        let mut stub = self.stub.clone();
        async move {
            let reply =
                stub.describe(DescribeRequest {}).await.map_err(|status| engine_error(&status))?;
            reply.into_inner().try_into().map_err(protocol_error)
        }
        .boxed()
    }

    fn generate(&self, request: Request) -> BoxFuture<'_, Result<EventStream, EngineError>> {
        let mut stub = self.stub.clone();
        async move {
            let reply = stub
                .generate(GenerateRequest::from(&request))
                .await
                .map_err(|status| engine_error(&status))?;
            let events = reply.into_inner().map(|event| match event {
                Ok(event) => event.try_into().map_err(protocol_error),
                Err(status) => Err(engine_error(&status)),
            });
            Ok(events.boxed())
        }
        .boxed()
    }

    fn status(&self) -> BoxFuture<'_, Result<EngineStatus, EngineError>> {
        let mut stub = self.stub.clone();
        async move {
            let reply =
                stub.status(StatusRequest {}).await.map_err(|status| engine_error(&status))?;
            reply.into_inner().try_into().map_err(protocol_error)
        }
        .boxed()
    }
}

fn engine_error(status: &Status) -> EngineError {
    if let Some(rejected) = rejection_from_status(status) {
        return EngineError::Rejected(rejected);
    }
    match status.code() {
        Code::InvalidArgument | Code::Unimplemented | Code::OutOfRange => {
            EngineError::Protocol(status.message().to_owned())
        }
        _ => EngineError::Unavailable(status.message().to_owned()),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "used as a function in map_err")]
fn protocol_error(error: ConvertError) -> EngineError {
    EngineError::Protocol(error.to_string())
}
