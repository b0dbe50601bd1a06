//! Accepting connections with limits, and draining them.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use oarlock_discovery::View;
use oarlock_rpc::InferenceLimits;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::addresses::Addresses;
use crate::app::{App, Shared};
use crate::caller::watch_keys;
use crate::config::GatewayConfig;
use crate::connection::Protocol;
use crate::inference::Inference;
use crate::routes::routes;

/// Rest after an error of `accept`, which is most often a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What a client hears that has too many connections.
const TOO_MANY_CONNECTIONS: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\n\
    content-length: 0\r\nconnection: close\r\n\r\n";
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
    let access = &app.config.access;
    let _watching =
        access.has_file().then(|| AbortOnDropHandle::new(tokio::spawn(watch_keys(access.clone()))));
    let mut server = Server::new(listeners.http, &app);
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
            max_streams: config.max_http2_streams,
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
    protocol: Protocol,
    permits: Arc<Semaphore>,
    addresses: Addresses,
    connections: JoinSet<()>,
    closing: CancellationToken,
}

impl Server {
    fn new(listener: TcpListener, app: &App) -> Self {
        let permits = Arc::new(Semaphore::new(app.config.max_connections.max(1)));
        let addresses = Addresses::new(app.config.max_connections_per_address);
        let protocol = Protocol::new(routes(App::clone(app)), &app.config);
        let (connections, closing) = (JoinSet::new(), CancellationToken::new());
        Self { listener, protocol, permits, addresses, connections, closing }
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
                accepted = accept(&self.listener, &self.permits) => self.spawn(accepted),
            }
        }
    }

    fn spawn(&mut self, accepted: Accepted) {
        let Accepted { stream, address, permit } = accepted;
        let Some(counted) = self.addresses.count(address.ip()) else {
            tracing::debug!(%address, "too many connections from one address");
            // As much as can be said without waiting.
            let _ = stream.try_write(TOO_MANY_CONNECTIONS);
            return;
        };
        let serving = self.protocol.clone().serve(stream, self.closing.clone());
        self.connections.spawn(async move {
            serving.await;
            drop((permit, counted));
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

/// A connection that may be served.
struct Accepted {
    stream: TcpStream,
    address: SocketAddr,
    permit: OwnedSemaphorePermit,
}

/// The next connection, once there is a permit for it. Dropping the future loses none.
async fn accept(listener: &TcpListener, permits: &Arc<Semaphore>) -> Accepted {
    loop {
        let permit =
            Arc::clone(permits).acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, address)) => return Accepted { stream, address, permit },
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
