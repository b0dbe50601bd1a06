//! A TCP connection that gives up on a client that takes nothing.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use crate::activity::Activity;

/// Bytes of an answer that the system holds and has not sent. Beyond them the answer waits in the
/// gateway, which stops asking for more of it.
const UNSENT_BYTES: u32 = 64 << 10;
/// After so long without a byte the system asks whether the client is still there.
const PROBE_AFTER: Duration = Duration::from_mins(1);
/// Pause between two such questions.
const PROBE_INTERVAL: Duration = Duration::from_secs(15);
/// A client that has closed its side may have asked something that is answered at once.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// One side of a connection, for an HTTP implementation to read and write. Others may watch the
/// socket meanwhile.
pub(crate) struct Socket {
    stream: Arc<TcpStream>,
    activity: Activity,
    write_timeout: Duration,
    /// Runs while the client takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

/// Sets what the system shall do by itself: send at once, hold little, notice who is gone.
pub(crate) fn set_options(stream: &TcpStream, write_timeout: Duration) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES)?;
    let probes = TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_INTERVAL);
    socket.set_tcp_keepalive(&probes)?;
    // Also where what was written fits into buffers and nobody acknowledges it.
    socket.set_tcp_user_timeout(Some(write_timeout))
}

impl Socket {
    pub(crate) fn new(stream: Arc<TcpStream>, activity: Activity, write_timeout: Duration) -> Self {
        Self { stream, activity, write_timeout, stalled: None }
    }

    /// Tries `write` until it does something, the socket has no room, or the client's time is over.
    fn poll_writing(
        &mut self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        while self.stream.poll_write_ready(cx)?.is_ready() {
            match write(&self.stream) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => {
                    self.stalled = None;
                    return Poll::Ready(result);
                }
            }
        }
        let timeout = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(stalled.as_mut().poll(cx));
        let message = "the client takes nothing of its answer";
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.stream.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
                Ok(count) => {
                    if count > 0 {
                        self.activity.received();
                    }
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_writing(cx, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_writing(cx, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match SockRef::from(&*self.stream).shutdown(std::net::Shutdown::Write) {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }
}

/// Waits until the client has closed its side while it has a request in flight.
///
/// Whoever reads the socket notices this too, but does not always read: hyper stops where bytes of a
/// next request have come, or a stray line break.
pub(crate) async fn closed_by_client(stream: &TcpStream, activity: &Activity) {
    loop {
        let is_closed = match stream.ready(Interest::READABLE).await {
            Ok(ready) => ready.is_read_closed(),
            Err(_) => true,
        };
        let was_active = activity.is_active();
        sleep(LAST_WORDS).await;
        if is_closed && was_active && activity.is_active() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A client whose machine or network is gone sends nothing at all, not even a close: the system
    /// finds out by probes, and by bytes that nobody acknowledges.
    #[tokio::test]
    async fn half_open_connections_are_left_to_the_system() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        set_options(&stream, Duration::from_secs(7)).unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), PROBE_AFTER);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), PROBE_INTERVAL);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(7)));
    }
}
