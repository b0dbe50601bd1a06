//! Serves an [`InferenceApi`] over gRPC, with health and reflection, on a TCP port.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::metadata::MetadataMap;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::{Connected, TcpConnectInfo};
use tonic::{Request, Response, Status};
use tonic_health::ServingStatus;

use super::api::{InferenceApi, InferenceError, InferenceEvents};
use super::convert::status;
use crate::public_proto as p;
use crate::public_proto::inference_server::{Inference, InferenceServer};

/// The service's name for health checks.
const SERVICE: &str = "oarlock.v1.Inference";
/// How often a silent client is asked whether it is still there.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
/// How long it may take to answer that.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Rest after an error of `accept`, which is most often a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Limits of the public gRPC server.
#[derive(Clone, Copy, Debug)]
pub struct InferenceLimits {
    /// Bytes of one request at most.
    pub max_request_bytes: usize,
    /// Connections at the same time; further ones wait in the listener's backlog.
    pub max_connections: usize,
    /// Calls that one connection may have open.
    pub max_streams: u32,
    /// Bytes of metadata of one call at most.
    pub max_header_bytes: u32,
}

/// Serves `api` on `listener` until `shutdown` resolves, then lets running calls finish.
///
/// # Errors
/// The server's transport failed as a whole. Errors of single connections end those only.
pub async fn serve_inference(
    api: Arc<dyn InferenceApi>,
    listener: TcpListener,
    limits: InferenceLimits,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let (health, health_service) = tonic_health::server::health_reporter();
    let mut is_healthy = Arc::clone(&api).health();
    let report = async move {
        while let Some(is_up) = is_healthy.next().await {
            let status = if is_up { ServingStatus::Serving } else { ServingStatus::NotServing };
            for service in ["", SERVICE] {
                health.set_service_status(service, status).await;
            }
        }
        std::future::pending::<()>().await;
    };
    let check = {
        let api = Arc::clone(&api);
        move |call: Request<()>| {
            api.authenticate(credentials(call.metadata()).as_deref()).map_err(status)?;
            Ok(call)
        }
    };
    let inference =
        InferenceServer::new(Adapter { api }).max_decoding_message_size(limits.max_request_bytes);
    let server = Server::builder()
        .max_concurrent_streams(limits.max_streams)
        .http2_max_header_list_size(limits.max_header_bytes)
        .http2_keepalive_interval(Some(KEEP_ALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
        .tcp_nodelay(true)
        .add_service(health_service)
        // Clients in use speak one or the other version.
        .add_service(InterceptedService::new(
            reflection().build_v1().map_err(broken)?,
            check.clone(),
        ))
        .add_service(InterceptedService::new(reflection().build_v1alpha().map_err(broken)?, check))
        .add_service(inference)
        .serve_with_incoming_shutdown(incoming(listener, limits.max_connections), shutdown);
    tokio::select! {
        served = server => served.map_err(io::Error::other),
        () = report => Ok(()),
    }
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(crate::PUBLIC_DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

fn broken(error: tonic_reflection::server::Error) -> io::Error {
    io::Error::other(error)
}

fn credentials(metadata: &MetadataMap) -> Option<String> {
    metadata.get("authorization").and_then(|value| value.to_str().ok()).map(str::to_owned)
}

struct Adapter {
    api: Arc<dyn InferenceApi>,
}

/// Converts events on their way out. Dropped by tonic when the client cancels the call, which drops
/// the generation.
struct Events(InferenceEvents);

impl Stream for Events {
    type Item = Result<p::GenerateResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.0.as_mut().poll_next(cx);
        next.map(|event| event.map(|event| event.map(Into::into).map_err(status)))
    }
}

#[tonic::async_trait]
impl Inference for Adapter {
    type GenerateStream = Events;

    async fn generate(
        &self,
        call: Request<p::GenerateRequest>,
    ) -> Result<Response<Events>, Status> {
        let credentials = credentials(call.metadata());
        let request = call.into_inner().try_into().map_err(|error: InferenceError| status(error));
        // Who may not call is not told what is wrong with the call.
        self.api.authenticate(credentials.as_deref()).map_err(status)?;
        let events = Arc::clone(&self.api).generate(credentials, request?).await;
        Ok(Response::new(Events(events.map_err(status)?)))
    }

    async fn tokenize(
        &self,
        call: Request<p::TokenizeRequest>,
    ) -> Result<Response<p::TokenizeResponse>, Status> {
        let credentials = credentials(call.metadata());
        let request = call.into_inner().try_into().map_err(|error: InferenceError| status(error));
        self.api.authenticate(credentials.as_deref()).map_err(status)?;
        let tokenized = Arc::clone(&self.api).tokenize(credentials, request?).await;
        Ok(Response::new(tokenized.map_err(status)?.into()))
    }

    async fn list_models(
        &self,
        call: Request<p::ListModelsRequest>,
    ) -> Result<Response<p::ListModelsResponse>, Status> {
        let credentials = credentials(call.metadata());
        let models = Arc::clone(&self.api).models(credentials).await.map_err(status)?;
        Ok(Response::new(models.into()))
    }
}

/// Connections as they come, at most `limit` at the same time.
fn incoming(
    listener: TcpListener,
    limit: usize,
) -> impl Stream<Item = io::Result<Connection>> + Send {
    let permits = Arc::new(Semaphore::new(limit.max(1)));
    futures::stream::unfold((listener, permits), |(listener, permits)| async move {
        let permit = Arc::clone(&permits).acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let connection = Connection { stream, _permit: permit };
                    return Some((Ok(connection), (listener, permits)));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            }
        }
    })
}

/// A connection that counts while it lives.
struct Connection {
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
