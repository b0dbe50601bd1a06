//! The request's body: bounded, in time, JSON, an object.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Map, Value};
use tokio::time::timeout;

use crate::app::App;
use crate::error::ApiError;
use crate::fields::Fields;

/// A body that is one JSON object.
pub(crate) struct JsonObject(pub(crate) Fields);

impl FromRequest<App> for JsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        check_content_type(request.headers())?;
        let limit = app.config.max_body_bytes;
        let bytes = timeout(app.config.body_timeout, Bytes::from_request(request, app))
            .await
            .map_err(|_| ApiError::body_timeout())?
            .map_err(|rejection| match rejection.into_response().status() {
                StatusCode::PAYLOAD_TOO_LARGE => ApiError::body_too_large(limit),
                _ => ApiError::malformed("The body could not be read"),
            })?;
        let num_bytes = bytes.len();
        let parsed = app.compute(num_bytes, move || parse(&bytes)).await?;
        parsed.map(|map| Self(Fields::new(map, num_bytes)))
    }
}

fn parse(bytes: &[u8]) -> Result<Map<String, Value>, ApiError> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(ApiError::malformed("The body must be a JSON object")),
        Err(error) => Err(ApiError::malformed(format!("The body is not valid JSON: {error}"))),
    }
}

/// JSON under any name, or no type at all: a client that says nothing is believed.
fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(content_type) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let essence = content_type.to_str().unwrap_or("").split(';').next().unwrap_or("").trim();
    let essence = essence.to_ascii_lowercase();
    if essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
    {
        Ok(())
    } else {
        Err(ApiError::wrong_content_type())
    }
}
