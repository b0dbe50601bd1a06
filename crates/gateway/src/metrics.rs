//! `GET /metrics`.

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use oarlock_telemetry::{EngineSample, Format};

use crate::app::App;
use crate::health::statuses;

/// All metrics, in the format that the client prefers. An engine that cannot be reached has none.
pub(crate) async fn metrics(State(app): State<App>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = Format::from_accept(accept.unwrap_or_default());
    let samples: Vec<EngineSample> = statuses(&app)
        .await
        .into_iter()
        .filter_map(|(member, status)| {
            let status = status.ok()?;
            Some(EngineSample { engine: member.id, model_name: member.served_name, status })
        })
        .collect();
    let headers = [(header::CONTENT_TYPE, format.content_type()), (header::VARY, "accept")];
    (headers, app.metrics.encode(&samples, format)).into_response()
}
