//! `GET /health`, `GET /ready`, `GET /version`.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::future::join_all;
use oarlock_discovery::Member;
use oarlock_rpc::EngineError;
use oarlock_types::{EngineState, EngineStatus};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::app::App;

/// Members of the cluster with their statuses, asked for all at once.
pub(crate) async fn statuses(app: &App) -> Vec<(Member, Result<EngineStatus, EngineError>)> {
    let members: Vec<Member> = app.view.snapshot().values().cloned().collect();
    let limit = app.config.status_timeout;
    join_all(members.into_iter().map(|member| async move {
        let late = || Err(EngineError::Unavailable("no answer in time".to_owned()));
        let status = timeout(limit, member.engine.status()).await.unwrap_or_else(|_| late());
        (member, status)
    }))
    .await
}

/// The process is alive.
pub(crate) async fn health() -> Response {
    axum::Json(json!({"status": "ok"})).into_response()
}

/// Whether a request would be computed now, and if not, why. Builds the tokenizer of an engine that
/// has become ready, so that the first request does not wait for it.
pub(crate) async fn ready(State(app): State<App>) -> Response {
    let mut statuses = statuses(&app).await;
    for (member, status) in &mut statuses {
        let is_up = status.as_ref().is_ok_and(|status| status.state == EngineState::Ready);
        if is_up && let Err(error) = app.models.served(member).await {
            *status = Err(EngineError::Unavailable(error.message));
        }
    }
    let is_ready = |status: &Result<EngineStatus, EngineError>| {
        status.as_ref().is_ok_and(|status| status.state == EngineState::Ready)
    };
    let any_ready = statuses.iter().any(|(_, status)| is_ready(status));
    let engines: Vec<Value> =
        statuses.iter().map(|(member, status)| describe(member, status)).collect();
    let (code, status) = match (app.is_draining(), any_ready) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        (false, true) => (StatusCode::OK, "ready"),
        (false, false) => (StatusCode::SERVICE_UNAVAILABLE, "not ready"),
    };
    (code, axum::Json(json!({"status": status, "engines": engines}))).into_response()
}

fn describe(member: &Member, status: &Result<EngineStatus, EngineError>) -> Value {
    let (state, reason) = match status {
        Err(error) => ("unreachable", Some(error.to_string())),
        Ok(status) => match &status.state {
            EngineState::Starting => ("starting", None),
            EngineState::Ready => ("ready", None),
            EngineState::Restarting { reason } => ("restarting", Some(reason.clone())),
            EngineState::Draining => ("draining", None),
            EngineState::Failed { reason } => ("failed", Some(reason.clone())),
        },
    };
    let loading = status.as_ref().ok().filter(|status| status.state == EngineState::Starting);
    let loading = loading.map(|status| {
        json!({
            "loaded_bytes": status.loading.loaded_bytes,
            "total_bytes": status.loading.total_bytes,
        })
    });
    json!({
        "id": member.id,
        "model": member.served_name,
        "state": state,
        "reason": reason,
        "loading": loading,
    })
}

/// The program's version.
pub(crate) async fn version() -> Response {
    axum::Json(json!({"version": env!("CARGO_PKG_VERSION")})).into_response()
}
