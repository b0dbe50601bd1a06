//! Accepting connections with limits, and draining them.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use oarlock_discovery::View;
use oarlock_rpc::InferenceLimits;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::app::{App, Shared};
use crate::config::GatewayConfig;
use crate::inference::Inference;
use crate::routes::routes;

/// hyper refuses smaller buffers.
const MIN_HEADER_BYTES: usize = 8 << 10;
/// Requests that one HTTP/2 connection may have open.
const MAX_HTTP2_STREAMS: u32 = 256;
/// How often an idle HTTP/2 peer is asked whether it is still there.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(30);
/// Rest after an error of `accept`, which is most often a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What connections get to write their last bytes, also when the drain took all of its time.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// Serves the API on `listener` until `shutdown` completes, then drains: `/ready` answers 503 and new
/// requests are refused with 503, while running ones go on for `config.drain_timeout` at most. The
/// listener stays open until they are done, so that probes see the drain.
///
/// # Errors
/// The listener's address cannot be read. Errors of single connections end those only.
pub async fn serve(
    listeners: Listeners,
    view: View,
    config: GatewayConfig,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let address = listeners.http.local_addr()?;
    let app = Shared::new(view, config);
    let mut server = Server::new(listeners.http, Arc::clone(&app));
    let grpc = listeners.grpc.map(|listener| GrpcServer::start(listener, &app));
    tracing::info!(%address, "serving");
    server.accept_until(shutdown).await;
    tracing::info!("draining");
    app.begin_drain();
    let deadline = Instant::now() + app.config.drain_timeout;
    server
        .accept_until(async {
            tokio::select! {
                () = app.drained() => {}
                () = sleep_until(deadline) => tracing::warn!("requests did not finish in time"),
            }
        })
        .await;
    let deadline = Instant::now() + CLOSE_GRACE;
    if let Some(grpc) = grpc {
        grpc.close(deadline).await;
    }
    server.close(deadline).await;
    tracing::info!("drained");
    Ok(())
}

/// Where a gateway listens.
#[derive(Debug)]
pub struct Listeners {
    /// For HTTP.
    pub http: TcpListener,
    /// For the public gRPC API, if it is wanted.
    pub grpc: Option<TcpListener>,
}

/// The public gRPC API on its own port. Its calls are drained with those over HTTP.
struct GrpcServer {
    task: JoinHandle<io::Result<()>>,
    closing: CancellationToken,
}

impl GrpcServer {
    fn start(listener: TcpListener, app: &App) -> Self {
        let closing = CancellationToken::new();
        let closed = closing.clone().cancelled_owned();
        let config = &app.config;
        let limits = InferenceLimits {
            max_request_bytes: config.max_body_bytes,
            max_connections: config.max_connections,
            max_streams: MAX_HTTP2_STREAMS,
            max_header_bytes: u32::try_from(config.max_header_bytes).unwrap_or(u32::MAX),
        };
        let api = Inference::new(Arc::clone(app));
        let task = tokio::spawn(oarlock_rpc::serve_inference(api, listener, limits, closed));
        Self { task, closing }
    }

    async fn close(mut self, deadline: Instant) {
        self.closing.cancel();
        match timeout_at(deadline, &mut self.task).await {
            Err(_) => self.task.abort(),
            Ok(Ok(Err(error))) => tracing::error!(%error, "the gRPC server failed"),
            Ok(_) => {}
        }
    }
}

struct Server {
    listener: TcpListener,
    router: Router,
    builder: Builder<TokioExecutor>,
    permits: Arc<Semaphore>,
    connections: JoinSet<()>,
    closing: CancellationToken,
    header_timeout: Duration,
}

impl Server {
    fn new(listener: TcpListener, app: App) -> Self {
        let config = &app.config;
        let header_timeout = config.header_timeout;
        let header_bytes = config.max_header_bytes.max(MIN_HEADER_BYTES);
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(config.header_timeout)
            .max_buf_size(header_bytes)
            .max_headers(config.max_headers);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(HTTP2_PING_INTERVAL)
            .max_concurrent_streams(MAX_HTTP2_STREAMS)
            .max_header_list_size(u32::try_from(header_bytes).unwrap_or(u32::MAX));
        Self {
            listener,
            permits: Arc::new(Semaphore::new(config.max_connections.max(1))),
            router: routes(app),
            builder,
            connections: JoinSet::new(),
            closing: CancellationToken::new(),
            header_timeout,
        }
    }

    /// Serves connections until `stop` completes.
    async fn accept_until(&mut self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        loop {
            tokio::select! {
                biased;
                () = &mut stop => return,
                // Finished connections are taken out, so that the set does not grow.
                Some(_) = self.connections.join_next() => {}
                (stream, permit) = accept(&self.listener, &self.permits) => self.spawn(stream, permit),
            }
        }
    }

    fn spawn(&mut self, stream: TcpStream, permit: OwnedSemaphorePermit) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "connection lost");
            return;
        }
        let service = TowerToHyperService::new(self.router.clone());
        let builder = self.builder.clone();
        let closing = self.closing.clone();
        let first_byte = self.header_timeout;
        self.connections.spawn(async move {
            // Before the first byte there is no HTTP yet, and so nobody else who would lose patience.
            if timeout(first_byte, stream.readable()).await.is_err() {
                return;
            }
            let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
            let result = tokio::select! {
                result = connection.as_mut() => result,
                () = closing.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = result {
                tracing::debug!(error, "connection ended with an error");
            }
            drop(permit);
        });
    }

    /// Stops accepting, lets connections finish what they write, and ends the rest at `deadline`.
    async fn close(self, deadline: Instant) {
        let Self { listener, mut connections, closing, .. } = self;
        drop(listener);
        closing.cancel();
        let all = async { while connections.join_next().await.is_some() {} };
        let in_time = timeout_at(deadline, all).await.is_ok();
        if !in_time {
            connections.shutdown().await;
        }
    }
}

/// The next connection, once there is a permit for it. Dropping the future loses none.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> (TcpStream, OwnedSemaphorePermit) {
    loop {
        let permit =
            Arc::clone(permits).acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, _)) => return (stream, permit),
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
