//! `GET /metrics`.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use oarlock_telemetry::{EngineSample, METRICS_CONTENT_TYPE};

use crate::app::App;
use crate::health::statuses;

/// All metrics. An engine that cannot be reached has none.
pub(crate) async fn metrics(State(app): State<App>) -> Response {
    let samples: Vec<EngineSample> = statuses(&app)
        .await
        .into_iter()
        .filter_map(|(member, status)| {
            let status = status.ok()?;
            Some(EngineSample { engine: member.id, model_name: member.served_name, status })
        })
        .collect();
    ([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], app.metrics.encode(&samples)).into_response()
}
