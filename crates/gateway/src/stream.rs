//! Answers: one JSON body, or server-sent events.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt, stream};
use serde::Serialize;
use tokio::time::timeout;

use crate::app::App;
use crate::choices::{Answer, Choices};
use crate::error::ApiError;
use crate::generate::{Delta, Generation, TokenUsage};
use crate::sampling::{Options, UsageEvents, random_bits};

/// The shapes of one endpoint's answers.
pub(crate) trait Wire: Send + 'static {
    /// Events before the first text.
    fn opening(&mut self, choices: &Choices, usage: UsageField, frames: &mut Frames);
    /// Events of one piece of a sequence.
    fn delta(&mut self, delta: Delta, from: &Generation, usage: UsageField, frames: &mut Frames);
    /// The event after the last piece, where the client asked for usage.
    fn closing(&mut self, usage: Usage, frames: &mut Frames);
    /// The whole answers as one body, `per_prompt` for each prompt.
    fn whole(&mut self, answers: Vec<Answer>, per_prompt: u32, usage: Usage) -> Response;
}

/// Usage in OpenAI's form.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptDetails,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct PromptDetails {
    cached_tokens: u32,
}

/// Usage in one object of an answer.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum UsageField {
    /// Not asked for: no field at all.
    Absent,
    /// Follows in a later event: null.
    Later,
    /// Here.
    Known(Usage),
}

impl UsageField {
    /// The field of a stream's events before the last one.
    fn before_end(events: UsageEvents, so_far: TokenUsage) -> Self {
        match events {
            UsageEvents::None => Self::Absent,
            UsageEvents::Last => Self::Later,
            UsageEvents::All => Self::Known(so_far.into()),
        }
    }

    /// For serde: whether the field is left out.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

impl From<TokenUsage> for Usage {
    fn from(usage: TokenUsage) -> Self {
        Self {
            prompt_tokens: usage.prompt,
            completion_tokens: usage.completion,
            total_tokens: usage.prompt + usage.completion,
            prompt_tokens_details: PromptDetails { cached_tokens: usage.cached },
        }
    }
}

/// Server-sent events, as bytes.
#[derive(Default)]
pub(crate) struct Frames(Vec<u8>);

impl Frames {
    /// Appends one event with `value` as JSON.
    pub(crate) fn push(&mut self, value: &impl Serialize) {
        self.0.extend_from_slice(b"data: ");
        serde_json::to_writer(&mut self.0, value).expect("answers are plain data with text keys");
        self.0.extend_from_slice(b"\n\n");
    }
}

/// Answers with the sequences' pieces as they come, or with all of them at the end.
pub(crate) async fn respond<W: Wire>(
    app: &App,
    mut choices: Choices,
    mut wire: W,
    options: &Options,
) -> Result<Response, ApiError> {
    if !options.stream {
        let answers = choices.collect().await?;
        let (per_prompt, usage) = (choices.per_prompt(), choices.usage().into());
        let num_bytes = answers.iter().map(Answer::num_bytes).sum();
        return app.compute(num_bytes, move || wire.whole(answers, per_prompt, usage)).await;
    }
    let running = Running { choices, wire, usage: options.usage, is_open: false };
    let body = Body::from_stream(events(running, app.config.keep_alive));
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// What a stream holds; dropping it drops the engine's streams.
struct Running<W> {
    choices: Choices,
    wire: W,
    usage: UsageEvents,
    is_open: bool,
}

fn events<W: Wire>(
    running: Running<W>,
    keep_alive: Duration,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send {
    let frames = stream::unfold(Some(running), move |running| async move {
        let mut running = running?;
        let mut frames = Frames::default();
        let goes_on = running.step(&mut frames, keep_alive).await;
        Some((Bytes::from(frames.0), goes_on.then_some(running)))
    });
    // A panic ends this answer only; other requests may share the connection.
    AssertUnwindSafe(frames).catch_unwind().map(|frames| {
        Ok(frames.unwrap_or_else(|_| {
            tracing::error!("panic while streaming an answer");
            let mut frames = Frames::default();
            frames.push(&ApiError::internal("The server failed on this request").body());
            Bytes::from(frames.0)
        }))
    })
}

impl<W: Wire> Running<W> {
    /// Writes the next events; whether more follow.
    async fn step(&mut self, frames: &mut Frames, keep_alive: Duration) -> bool {
        let Self { choices, wire, usage, is_open } = self;
        if !std::mem::replace(is_open, true) {
            let usage = UsageField::before_end(*usage, choices.usage());
            wire.opening(choices, usage, frames);
            if !frames.0.is_empty() {
                return true;
            }
        }
        let next = choices.next(|delta, from, so_far| {
            wire.delta(delta, from, UsageField::before_end(*usage, so_far), frames);
        });
        match timeout(keep_alive, next).await {
            Err(_) => {
                frames.0.extend_from_slice(b": keep-alive\n\n");
                true
            }
            Ok(Ok(Some(()))) => true,
            Ok(Ok(None)) => {
                if *usage != UsageEvents::None {
                    wire.closing(choices.usage().into(), frames);
                }
                frames.0.extend_from_slice(b"data: [DONE]\n\n");
                false
            }
            Ok(Err(error)) => {
                frames.push(&error.body());
                false
            }
        }
    }
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// An id that no other answer has.
pub(crate) fn unique_id(prefix: &str) -> Result<String, ApiError> {
    let (high, low) = (random_bits()?, random_bits()?);
    Ok(format!("{prefix}-{high:016x}{low:016x}"))
}
