//! The door of the gRPC services: key, limits and time of a call before its message is read.

use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::middleware::{self, Next};
use axum::response::Response;
use futures::FutureExt;
use futures::future::BoxFuture;
use hyper::body::{Frame, SizeHint};
use oarlock_rpc::{CallKind, InferenceServices, call_timeout, inference_services};
use tokio::time::{Sleep, sleep, timeout};

use crate::app::App;
use crate::body::read_in_time;
use crate::budget::Reserved;
use crate::caller::{Caller, Held};
use crate::error::ApiError;
use crate::inference::Inference;

/// Bytes of all messages of a call that probes or asks for descriptors.
const SMALL_CALL_BYTES: usize = 64 << 10;
/// About what one element of a decoded message takes besides its bytes: that of a message in a
/// conversation, which is the largest.
const ELEMENT_BYTES: usize = 128;

/// The gRPC services behind their door, and what keeps their health up to date while it is polled.
///
/// # Errors
/// The descriptors for reflection cannot be read, which is a fault of the build.
pub(crate) fn call_routes(app: &App) -> io::Result<(Router, BoxFuture<'static, ()>)> {
    let api = Inference::new(Arc::clone(app));
    let InferenceServices { routes, health } = inference_services(api, app.config.max_body_bytes)?;
    let router = routes.into_axum_router();
    Ok((router.layer(middleware::from_fn_with_state(App::clone(app), guard)), health))
}

/// Turns every refusal into gRPC's form, and a panic into the failure of one call.
async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let limit = client_timeout(request.headers());
    let answering = AssertUnwindSafe(answer(&app, request, next)).catch_unwind();
    let in_time = async {
        match limit {
            None => Ok(answering.await),
            Some(limit) => timeout(limit, answering).await,
        }
    };
    let error = match in_time.await {
        Ok(Ok(Ok(response))) => return response,
        Ok(Ok(Err(error))) => error,
        Ok(Err(_)) => {
            tracing::error!("panic while handling a call");
            ApiError::internal("The server failed on this request")
        }
        Err(_) => ApiError::deadline(),
    };
    oarlock_rpc::refusal(error.into()).map(Body::new)
}

/// The time that the client gives the call to begin its answer. What does not say one is not meant.
fn client_timeout(headers: &HeaderMap) -> Option<Duration> {
    call_timeout(headers.get("grpc-timeout")?.to_str().ok()?)
}

/// Checks the key, then reads the message, then lets the call go to its service.
async fn answer(app: &App, request: Request, next: Next) -> Result<Response, ApiError> {
    let kind = CallKind::of(request.uri().path());
    // What only looks something up costs nothing that a limit is for.
    let is_counted = kind == CallKind::Compute;
    let caller = match kind {
        CallKind::Health => None,
        _ => Some(Caller::of_request(app, request.headers(), is_counted)?),
    };
    // For as long as the message and what it becomes are needed: until the answer begins.
    let mut reserved = Reserved::default();
    let (mut parts, body) = request.into_parts();
    let body = match kind {
        CallKind::Health | CallKind::Reflection => {
            Body::new(SmallBody::new(body, app.config.body_timeout))
        }
        CallKind::Lookup | CallKind::Compute => {
            let limit = app.config.max_body_bytes;
            let bytes = read_in_time(app, body, limit, &mut reserved).await?;
            if !app.bodies.grow(&mut reserved, weight(&bytes)) {
                return Err(ApiError::bodies_full());
            }
            Body::from(bytes)
        }
    };
    if let Some(caller) = &caller {
        parts.extensions.insert(caller.clone());
    }
    let response = next.run(Request::from_parts(parts, body)).await;
    Ok(match caller {
        None => response,
        Some(caller) => response.map(|body| Body::new(Held::new(body, caller))),
    })
}

/// Bytes that a message takes as it came and decoded, about. Every element of a list has a length
/// before it, which is a low byte where the element is short, and there are few where it is not.
fn weight(bytes: &[u8]) -> usize {
    let num_short = bytes.iter().filter(|byte| **byte < 0x20 && **byte != b'\n').count();
    let num_elements = num_short + bytes.len() / 0x20;
    bytes.len().saturating_mul(2).saturating_add(num_elements.saturating_mul(ELEMENT_BYTES))
}

/// A stream of short messages that has an end.
struct SmallBody {
    body: Body,
    bytes_left: usize,
    deadline: Pin<Box<Sleep>>,
}

impl SmallBody {
    fn new(body: Body, limit: Duration) -> Self {
        Self { body, bytes_left: SMALL_CALL_BYTES, deadline: Box::pin(sleep(limit)) }
    }
}

impl HttpBody for SmallBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let failed = |error: ApiError| {
            Poll::Ready(Some(Err(axum::Error::new(oarlock_rpc::body_error(error.into())))))
        };
        let frame = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending if self.deadline.as_mut().poll(cx).is_ready() => {
                return failed(ApiError::body_timeout());
            }
            Poll::Pending => return Poll::Pending,
        };
        let num_bytes = match &frame {
            Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        match self.bytes_left.checked_sub(num_bytes) {
            None => failed(ApiError::body_too_large(SMALL_CALL_BYTES)),
            Some(left) => {
                self.bytes_left = left;
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_elements_weigh_more_than_their_bytes() {
        let text = "a line of text that says something\n".repeat(1000);
        assert!(weight(text.as_bytes()) < 8 * text.len());
        // Messages without anything in them.
        let elements = [0x0a, 0x00].repeat(1000);
        assert!(weight(&elements) >= 1000 * ELEMENT_BYTES);
        // Words of one character.
        let words = [0x62, 0x01, b'x'].repeat(1000);
        assert!(weight(&words) >= 1000 * ELEMENT_BYTES);
    }
}
