//! gRPC over Unix sockets: channels with the right limits.

use std::path::Path;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

/// Unread bytes of one stream at most.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// Unread bytes of all streams of a connection at most: HTTP/2's largest window.
const CONNECTION_WINDOW_BYTES: u32 = (1 << 31) - 1;

/// A channel to the server that listens on `socket`. Connects at the first call, and again after the
/// connection broke.
pub(crate) fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    // The URI names no host: a Unix socket has none, and HTTP/2 wants one.
    let endpoint = Endpoint::from_static("http://localhost");
    // One connection carries all streams: what a slow reader leaves unread must not fill it.
    let endpoint = endpoint
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    }))
}
