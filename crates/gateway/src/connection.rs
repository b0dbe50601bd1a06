//! One connection from its first byte to its last.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{Request, Response, Version};
use futures::FutureExt;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use crate::activity::{Activity, InFlight, Overdue, Patience};
use crate::config::GatewayConfig;
use crate::socket::{Socket, closed_by_client, set_options};

/// hyper refuses smaller buffers.
const MIN_HEADER_BYTES: usize = 8 << 10;
/// Bytes of one HTTP/2 stream's answer that wait for its client at most.
const HTTP2_BUFFER_BYTES: usize = 64 << 10;
/// How often a silent HTTP/2 peer is asked whether it is still there.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(30);
/// What a connection gets to end in good order when it has been idle for too long.
const FAREWELL: Duration = Duration::from_secs(1);

/// How connections are served.
#[derive(Clone)]
pub(crate) struct Protocol {
    router: Router,
    builder: Builder<TokioExecutor>,
    patience: Patience,
}

impl Protocol {
    pub(crate) fn new(router: Router, config: &GatewayConfig) -> Self {
        let header_bytes = config.max_header_bytes.max(MIN_HEADER_BYTES);
        let mut builder = Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            // Ours tells a slow head from an idle connection.
            .header_read_timeout(None)
            .max_buf_size(header_bytes)
            .max_headers(config.max_headers);
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(HTTP2_PING_INTERVAL)
            .max_send_buf_size(HTTP2_BUFFER_BYTES)
            .max_concurrent_streams(config.max_http2_streams.max(1))
            .max_header_list_size(u32::try_from(header_bytes).unwrap_or(u32::MAX));
        let patience = Patience {
            header: config.header_timeout,
            idle: config.idle_timeout,
            write: config.write_timeout,
        };
        Self { router, builder, patience }
    }

    /// Without HTTP/1.1, also before the first byte.
    pub(crate) fn http2_only(self) -> Self {
        Self { builder: self.builder.http2_only(), ..self }
    }

    /// Serves one connection until it ends; `closing` asks it to finish what it does.
    pub(crate) async fn serve(self, stream: TcpStream, closing: CancellationToken) {
        let patience = self.patience;
        if let Err(error) = set_options(&stream, patience.write) {
            tracing::debug!(%error, "connection lost");
            return;
        }
        let stream = Arc::new(stream);
        let activity = Activity::new(Instant::now());
        let socket = Socket::new(Arc::clone(&stream), activity.clone(), patience.write);
        let service = service_fn(|request| answer(self.router.clone(), &activity, request));
        let mut connection = pin!(self.builder.serve_connection(TokioIo::new(socket), service));
        let mut is_closing = false;
        let result = loop {
            tokio::select! {
                result = connection.as_mut() => break result,
                () = closing.cancelled(), if !is_closing => {
                    is_closing = true;
                    connection.as_mut().graceful_shutdown();
                }
                overdue = overdue(&activity, &patience) => match overdue {
                    Overdue::Answers(slots) => slots.into_iter().for_each(|slot| abandon(&slot)),
                    Overdue::Header => break Err("no request came in time".into()),
                    Overdue::Idle => {
                        connection.as_mut().graceful_shutdown();
                        break timeout(FAREWELL, connection).await.unwrap_or(Ok(()));
                    }
                },
                () = closed_by_client(&stream, &activity) => {
                    break Err("the client is gone".into());
                }
            }
        };
        if let Err(error) = result {
            tracing::debug!(error, "connection ended with an error");
        }
    }
}

/// Waits until somebody's patience has ended.
async fn overdue(activity: &Activity, patience: &Patience) -> Overdue {
    loop {
        match activity.overdue(patience, Instant::now()) {
            Ok(overdue) => return overdue,
            Err(next) => sleep_until(next).await,
        }
    }
}

fn answer(
    mut router: Router,
    activity: &Activity,
    request: Request<Incoming>,
) -> impl Future<Output = Result<Response<Watched>, Infallible>> + use<> {
    let in_flight = activity.begin(request.version() == Version::HTTP_2);
    let answering = router.call(request);
    answering
        .map(|response| response.map(|response| response.map(|body| Watched::new(body, in_flight))))
}

/// The body of an answer that may be let go while it is not asked for.
pub(crate) type Slot = Arc<Mutex<Option<Answer>>>;

/// The body of an answer, and its place among the requests of its connection.
#[derive(Debug)]
pub(crate) struct Answer {
    body: Body,
    in_flight: InFlight,
}

/// Lets an answer go that its client does not take: that cancels the generation. The rest of the
/// connection goes on.
fn abandon(slot: &Slot) {
    tracing::debug!("a client takes nothing of its answer");
    let answer = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
    drop(answer);
}

/// A body that notes when it is asked for a piece and when it gave one.
struct Watched(Slot);

impl Watched {
    fn new(body: Body, in_flight: InFlight) -> Self {
        Self(Arc::new(Mutex::new(Some(Answer { body, in_flight }))))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // The connection may hold the slot for a moment longer; the request ends now.
        let answer = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(answer);
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(answer) = slot.as_mut() else {
            return Poll::Ready(Some(Err(axum::Error::new("the client did not take its answer"))));
        };
        answer.in_flight.asked();
        let polled = Pin::new(&mut answer.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(Some(Ok(_)))) && !answer.body.is_end_stream() {
            answer.in_flight.gave(&self.0);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slot.as_ref().is_some_and(|answer| answer.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slot.as_ref().map(|answer| answer.body.size_hint()).unwrap_or_default()
    }
}
