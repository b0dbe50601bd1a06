//! Accepting connections with limits, and draining them.

use std::future::{Future, pending};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use oarlock_discovery::View;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::addresses::Addresses;
use crate::app::{App, Shared};
use crate::caller::watch_keys;
use crate::calls::call_routes;
use crate::config::GatewayConfig;
use crate::connection::Protocol;
use crate::routes::routes;

/// Rest after an error of `accept`, which is most often a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What a client hears that has too many connections.
const TOO_MANY_CONNECTIONS: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\n\
    content-length: 0\r\nconnection: close\r\n\r\n";
/// The same over HTTP/2: empty settings, then "go away" with the reason "enhance your calm" (RFC 9113,
/// sections 6.5, 6.8 and 7).
const TOO_MANY_HTTP2_CONNECTIONS: &[u8] =
    b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0b";
/// What connections get to write their last bytes, also when the drain took all of its time.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// Serves the API on `listeners` until `shutdown` completes, then drains: `/ready` answers 503 and new
/// requests are refused with 503, while running ones go on for `config.drain_timeout` at most. The
/// listeners stay open until they are done, so that probes see the drain.
///
/// # Errors
/// The listener's address cannot be read, or the gRPC services cannot be built. Errors of single connections end those only.
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
    let _reporting = match listeners.grpc {
        None => None,
        Some(listener) => {
            let (routes, health) = call_routes(&app)?;
            server.grpc = Some(Port::grpc(listener, routes, &app));
            Some(AbortOnDropHandle::new(tokio::spawn(health)))
        }
    };
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
    server.close(Instant::now() + CLOSE_GRACE).await;
    tracing::info!("drained");
    Ok(())
}

/// Where a gateway listens.
#[derive(Debug)]
pub struct Listeners {
    /// For HTTP.
    pub http: TcpListener,
    /// For the public gRPC API over HTTP/2, if it is wanted. All limits are those of HTTP, and the
    /// connections of both count together.
    pub grpc: Option<TcpListener>,
}

/// A listener, and how its connections are served.
struct Port {
    listener: TcpListener,
    protocol: Protocol,
    /// What a client hears that has too many connections.
    refusal: &'static [u8],
}

impl Port {
    fn http(listener: TcpListener, app: &App) -> Self {
        let protocol = Protocol::new(routes(App::clone(app)), &app.config);
        Self { listener, protocol, refusal: TOO_MANY_CONNECTIONS }
    }

    fn grpc(listener: TcpListener, routes: Router, app: &App) -> Self {
        let protocol = Protocol::new(routes, &app.config).http2_only();
        Self { listener, protocol, refusal: TOO_MANY_HTTP2_CONNECTIONS }
    }
}

/// Both ports, which share the limits on connections.
struct Server {
    http: Port,
    grpc: Option<Port>,
    permits: Arc<Semaphore>,
    addresses: Addresses,
    connections: JoinSet<()>,
    closing: CancellationToken,
}

impl Server {
    fn new(listener: TcpListener, app: &App) -> Self {
        let permits = Arc::new(Semaphore::new(app.config.max_connections.max(1)));
        let addresses = Addresses::new(app.config.max_connections_per_address);
        let (connections, closing) = (JoinSet::new(), CancellationToken::new());
        let http = Port::http(listener, app);
        Self { http, grpc: None, permits, addresses, connections, closing }
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
                accepted = accept(&self.http, self.grpc.as_ref(), &self.permits) => {
                    let Accepted { stream, address, port, permit } = accepted;
                    let Some(counted) = self.addresses.count(address.ip()) else {
                        tracing::debug!(%address, "too many connections from one address");
                        // As much as can be said without waiting.
                        let _ = stream.try_write(port.refusal);
                        continue;
                    };
                    let serving = port.protocol.clone().serve(stream, self.closing.clone());
                    self.connections.spawn(async move {
                        serving.await;
                        drop((permit, counted));
                    });
                }
            }
        }
    }

    /// Stops accepting, lets connections finish what they write, and ends the rest at `deadline`.
    async fn close(self, deadline: Instant) {
        let Self { http, grpc, mut connections, closing, .. } = self;
        drop((http, grpc));
        closing.cancel();
        let all = async { while connections.join_next().await.is_some() {} };
        let in_time = timeout_at(deadline, all).await.is_ok();
        if !in_time {
            connections.shutdown().await;
        }
    }
}

/// A connection that may be served.
struct Accepted<'a> {
    stream: TcpStream,
    address: SocketAddr,
    port: &'a Port,
    permit: OwnedSemaphorePermit,
}

/// The next connection on any port, once there is a permit for it: one permit for all ports, so that
/// none keeps the last one from another while it waits. Dropping the future loses no connection.
async fn accept<'a>(
    http: &'a Port,
    grpc: Option<&'a Port>,
    permits: &Arc<Semaphore>,
) -> Accepted<'a> {
    loop {
        let permit =
            Arc::clone(permits).acquire_owned().await.expect("the semaphore is never closed");
        let on_grpc = async {
            match grpc {
                Some(port) => (port, port.listener.accept().await),
                None => pending().await,
            }
        };
        let (port, accepted) = tokio::select! {
            accepted = http.listener.accept() => (http, accepted),
            accepted = on_grpc => accepted,
        };
        match accepted {
            Ok((stream, address)) => return Accepted { stream, address, port, permit },
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
