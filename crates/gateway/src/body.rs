//! The request's body: bounded, in time, JSON, an object.

use axum::body::{Body, HttpBody as _};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use serde_json::{Map, Value};
use tokio::time::timeout;

use crate::app::App;
use crate::budget::Reserved;
use crate::error::ApiError;
use crate::fields::Fields;

/// A body that is one JSON object. Its share of the memory for bodies is given back when the whole of
/// it is dropped, also where the fields were moved out before.
pub(crate) struct JsonObject(
    pub(crate) Fields,
    #[expect(dead_code, reason = "held, not read")] Reserved,
);

impl FromRequest<App> for JsonObject {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        check_content_type(request.headers())?;
        let mut reserved = Reserved::default();
        let limit = app.config.max_body_bytes;
        let bytes = read_in_time(app, request.into_body(), limit, &mut reserved).await?;
        let (shared, num_bytes) = (App::clone(app), bytes.len());
        let parsing = move || {
            // Once parsed it is larger: a value for every comma or bracket.
            if !shared.bodies.grow(&mut reserved, weight(&bytes)) {
                return Err(ApiError::bodies_full());
            }
            Ok(Self(Fields::new(parse(&bytes)?, num_bytes), reserved))
        };
        app.compute(num_bytes, parsing).await?
    }
}

/// Reads a body of `limit` bytes at most, while its client's time lasts. Memory is reserved for what
/// has come, not for what was announced: who announces much and sends nothing takes nothing from
/// others.
pub(crate) async fn read_in_time(
    app: &App,
    body: Body,
    limit: usize,
    reserved: &mut Reserved,
) -> Result<Bytes, ApiError> {
    let reading = read(app, body, limit, reserved);
    timeout(app.config.body_timeout, reading).await.map_err(|_| ApiError::body_timeout())?
}

async fn read(
    app: &App,
    body: Body,
    limit: usize,
    reserved: &mut Reserved,
) -> Result<Bytes, ApiError> {
    if body.size_hint().lower() > limit as u64 {
        return Err(ApiError::body_too_large(limit));
    }
    let mut whole = BytesMut::new();
    let mut parts = body.into_data_stream();
    while let Some(part) = parts.next().await {
        let part = part.map_err(|_| ApiError::malformed("The body could not be read"))?;
        if part.len() > limit - whole.len() {
            return Err(ApiError::body_too_large(limit));
        }
        if !app.bodies.grow(reserved, whole.len() + part.len()) {
            return Err(ApiError::bodies_full());
        }
        whole.extend_from_slice(&part);
    }
    Ok(whole.freeze())
}

/// Bytes that a body takes as text and as parsed values, at most but for hash tables.
fn weight(bytes: &[u8]) -> usize {
    let num_values = bytes.iter().filter(|byte| matches!(byte, b',' | b':' | b'[' | b'{')).count();
    bytes.len().saturating_add(num_values.saturating_mul(size_of::<Value>()))
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
