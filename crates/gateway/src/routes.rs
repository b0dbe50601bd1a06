//! The routes, and what holds for all of them.

use std::panic::AssertUnwindSafe;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{Method, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::FutureExt;
use oarlock_discovery::View;

use crate::app::{App, Shared};
use crate::config::GatewayConfig;
use crate::error::ApiError;
use crate::{caller, chat, completions, health, metrics, models, tokenize};

/// Paths as they appear in metrics; everything else is `other`, so that clients cannot invent labels.
const PATHS: [&str; 9] = [
    "/detokenize",
    "/health",
    "/metrics",
    "/ready",
    "/tokenize",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/version",
];

/// The whole API over the engines in `view`, without a listener: for tests and for embedding.
pub fn router(view: View, config: GatewayConfig) -> Router {
    routes(Shared::new(view, config))
}

pub(crate) fn routes(app: App) -> Router {
    Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::get))
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/completions", post(completions::create))
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/health", get(health::health))
        .route("/ready", get(health::ready))
        .route("/version", get(health::version))
        .route("/metrics", get(metrics::metrics))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(app.config.max_body_bytes))
        .layer(middleware::from_fn_with_state(app.clone(), caller::demand))
        .layer(middleware::from_fn_with_state(app.clone(), guard))
        .with_state(app)
}

async fn unknown_path(method: Method, uri: Uri) -> ApiError {
    ApiError::unknown_path(method.as_str(), uri.path())
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::wrong_method(method.as_str(), uri.path())
}

/// Counts every answer, and turns a panic into the failure of one request.
async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let route = match PATHS.iter().find(|known| **known == path) {
        Some(known) => known,
        None if path.starts_with("/v1/models/") => "/v1/models",
        None => "other",
    };
    let outcome = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let response = outcome.unwrap_or_else(|_| {
        tracing::error!(route, "panic while handling a request");
        ApiError::internal("The server failed on this request").into_response()
    });
    app.metrics.count_http(route, response.status().as_u16());
    response
}
