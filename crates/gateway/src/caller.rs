//! Who asks: the check of the key, before anything else of a request is looked at.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};
use oarlock_access::{Access, Permit, Reload};
use oarlock_types::{CacheSalt, Priority, TenantId};
use tokio::time::sleep;

use crate::app::{App, Shared};
use crate::error::ApiError;

/// Routes that probes use, which have no key.
const OPEN_PATHS: [&str; 2] = ["/health", "/ready"];
/// Where clients put a key that do not use `Authorization`.
const KEY_HEADERS: [&str; 2] = ["api-key", "x-api-key"];
/// How often the keys file is looked at.
const RELOAD_INTERVAL: Duration = Duration::from_secs(1);

/// Who asks, and the place that the request takes among those of its key. It is kept until the last
/// clone is gone; for HTTP that is at the earliest when the answer's body is.
#[derive(Clone, Debug)]
pub(crate) struct Caller(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    caller: oarlock_access::Caller,
    /// `None` for requests that limits do not count.
    _permit: Option<Permit>,
}

impl Caller {
    /// Begins a request with these headers, over whatever protocol. Limits count it where `is_counted`.
    ///
    /// # Errors
    /// 401 where a key is demanded and none here is good; 429 where it has used up what it may.
    pub(crate) fn of_request(
        app: &Shared,
        headers: &HeaderMap,
        is_counted: bool,
    ) -> Result<Self, ApiError> {
        begin(&app.config.access, presented(headers), is_counted)
    }

    /// The id of the key, where there is one.
    pub(crate) fn key_id(&self) -> Option<&str> {
        self.0.caller.key_id()
    }

    /// Whose request it is: from the key alone.
    pub(crate) fn tenant(&self) -> TenantId {
        self.0.caller.tenant()
    }

    /// Namespace of the prefix cache: from the key's tenant alone.
    pub(crate) fn salt(&self) -> CacheSalt {
        self.0.caller.salt()
    }

    /// The scheduling class where the client asked for priority `asked` (lower is more urgent, 0 is
    /// ordinary): with a key never above the key's own.
    pub(crate) fn priority(&self, asked: Option<i64>) -> Priority {
        self.0.caller.priority(asked)
    }

    /// Counts tokens that the request has used, of its prompt or its answer. To be called once they
    /// are known, also for a request that its client leaves.
    pub(crate) fn charge(&self, tokens: u32) {
        self.0.caller.charge(tokens, Instant::now());
    }
}

fn begin(access: &Access, secret: Option<&str>, is_counted: bool) -> Result<Caller, ApiError> {
    let caller = access.identify(secret, SystemTime::now()).map_err(ApiError::unauthorized)?;
    let permit = if is_counted {
        Some(caller.admit(Instant::now()).map_err(ApiError::over_quota)?)
    } else {
        None
    };
    Ok(Caller(Arc::new(Inner { caller, _permit: permit })))
}

/// The key in `Bearer KEY`; the word may be written in any case.
fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, secret) = authorization.trim_start().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim())
}

fn presented(headers: &HeaderMap) -> Option<&str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let authorization = text(header::AUTHORIZATION.as_str()).and_then(bearer);
    authorization.or_else(|| KEY_HEADERS.iter().find_map(|name| text(name)).map(str::trim))
}

/// Lets through requests with a key that is good, before their bodies are read.
pub(crate) async fn demand(State(app): State<App>, mut request: Request, next: Next) -> Response {
    if OPEN_PATHS.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    // What only looks something up costs nothing that a limit is for.
    let is_counted = request.method() == Method::POST;
    let caller = match Caller::of_request(&app, request.headers(), is_counted) {
        Ok(caller) => caller,
        Err(error) => return error.into_response(),
    };
    request.extensions_mut().insert(caller.clone());
    next.run(request).await.map(|body| Body::new(Held::new(body, caller)))
}

impl FromRequestParts<App> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| {
            tracing::error!(path = parts.uri.path(), "a route without the check of keys");
            ApiError::internal("The server failed on this request")
        })
    }
}

/// A body that keeps its request counted until it is gone.
pub(crate) struct Held {
    body: Body,
    _caller: Caller,
}

impl Held {
    pub(crate) fn new(body: Body, caller: Caller) -> Self {
        Self { body, _caller: caller }
    }
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Takes over changes of the keys file, for as long as it is polled.
pub(crate) async fn watch_keys(access: Access) -> Infallible {
    loop {
        sleep(RELOAD_INTERVAL).await;
        let handle = access.clone();
        match tokio::task::spawn_blocking(move || handle.reload()).await {
            Ok(Reload::Unchanged) => {}
            Ok(Reload::Loaded { keys }) => tracing::info!(keys, "keys loaded"),
            Ok(Reload::Failed(error)) => {
                let error: &dyn std::error::Error = &error;
                tracing::error!(error, "the changed keys file is not used; the keys are as before");
            }
            Err(error) => tracing::error!(%error, "looking at the keys file failed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn keys_are_found_in_three_headers() {
        for (name, value, expected) in [
            ("authorization", "Bearer abc", Some("abc")),
            ("authorization", "bEARER  abc ", Some("abc")),
            ("authorization", "Basic abc", None),
            ("authorization", "abc", None),
            ("authorization", "Bearer", None),
            ("api-key", "abc", Some("abc")),
            ("x-api-key", " abc", Some("abc")),
            ("x-other", "abc", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            assert_eq!(presented(&headers), expected, "{name}: {value}");
        }
        let mut both = HeaderMap::new();
        both.insert("api-key", HeaderValue::from_static("second"));
        both.insert("authorization", HeaderValue::from_static("Bearer first"));
        assert_eq!(presented(&both), Some("first"));
        both.insert("authorization", HeaderValue::from_bytes(b"Bearer \xff").unwrap());
        assert_eq!(presented(&both), Some("second"));
    }
}
