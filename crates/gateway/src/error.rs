//! Errors in OpenAI's form, and how the errors of other crates map to them.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use oarlock_access::{Denied, OverQuota};
use oarlock_rpc::{EngineError, InferenceCode, InferenceError};
use oarlock_text::TextError;
use oarlock_types::{FinishReason, Rejected, SlotError};
use serde_json::json;

/// The kind of error that is the client's to mend.
const INVALID_REQUEST: &str = "invalid_request_error";
/// The kind of error that is the server's.
const SERVER: &str = "server_error";

/// Characters of a message at most: it may repeat what the client sent.
const MAX_MESSAGE_CHARS: usize = 1000;

fn clip(message: String) -> String {
    match message.char_indices().nth(MAX_MESSAGE_CHARS) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None => message,
    }
}

/// An error answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    pub(crate) message: String,
    retry_after_s: Option<u32>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: String) -> Self {
        Self { status, kind, code: None, param: None, message: clip(message), retry_after_s: None }
    }

    fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// A queue is full; there should be room after `retry_after_ms`.
    fn queue_full(what: &str, retry_after_ms: u32) -> Self {
        let message = format!("Too many requests: {what}");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
            .code("queue_full")
            .retry_after(retry_after_ms.div_ceil(1000).max(1))
    }

    fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// A request that is wrong as a whole.
    pub(crate) fn malformed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID_REQUEST, message.into())
    }

    /// A field with a value that it cannot have.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        let param = param.into();
        let message = format!("Invalid value for '{param}': {}", message.into());
        Self { param: Some(clip(param)), ..Self::malformed(message) }.code("invalid_value")
    }

    /// A field that must be there.
    pub(crate) fn missing(param: impl Into<String>) -> Self {
        let param = param.into();
        let message = format!("Missing required parameter: '{param}'");
        Self { param: Some(clip(param)), ..Self::malformed(message) }
            .code("missing_required_parameter")
    }

    /// A field, or a value of it, that is known and not supported yet.
    pub(crate) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        let param = param.into();
        let message = format!("Unsupported value for '{param}': {}", message.into());
        Self { param: Some(clip(param)), ..Self::malformed(message) }.code("unsupported_value")
    }

    /// A field that the API does not have.
    pub(crate) fn unknown(param: impl Into<String>) -> Self {
        let param = param.into();
        let message = format!("Unknown parameter: '{param}'");
        Self { param: Some(clip(param)), ..Self::malformed(message) }.code("unknown_parameter")
    }

    /// Prompt and answer do not fit into the model's context.
    pub(crate) fn context_length(limit: u32, prompt: usize, completion: u32, param: &str) -> Self {
        let requested = prompt + completion as usize;
        let message = format!(
            "This model's maximum context length is {limit} tokens. However, you requested {requested} \
             tokens ({prompt} in the prompt, {completion} for the completion). Please reduce the length \
             of the prompt or completion."
        );
        Self { param: Some(param.to_owned()), ..Self::malformed(message) }
            .code("context_length_exceeded")
    }

    /// A text that is longer than any that could fit, found before tokenizing it.
    pub(crate) fn text_too_long(limit: u32, bytes: usize, param: &str) -> Self {
        let message = format!(
            "This model's maximum context length is {limit} tokens. However, your prompt has {bytes} \
             bytes, which cannot fit. Please reduce the length of the prompt."
        );
        Self { param: Some(param.to_owned()), ..Self::malformed(message) }
            .code("context_length_exceeded")
    }

    pub(crate) fn model_not_found(name: &str) -> Self {
        let message = format!("The model '{name}' does not exist or you do not have access to it.");
        let error =
            Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, message).code("model_not_found");
        Self { param: Some("model".to_owned()), ..error }
    }

    pub(crate) fn unknown_path(method: &str, path: &str) -> Self {
        let message = format!("Unknown request URL: {method} {path}");
        Self::new(StatusCode::NOT_FOUND, INVALID_REQUEST, message).code("unknown_url")
    }

    pub(crate) fn wrong_method(method: &str, path: &str) -> Self {
        let message = format!("Not allowed to {method} on {path}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID_REQUEST, message)
            .code("method_not_allowed")
    }

    pub(crate) fn wrong_content_type() -> Self {
        let message = "The body must be JSON, with 'Content-Type: application/json'".to_owned();
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID_REQUEST, message)
            .code("unsupported_media_type")
    }

    pub(crate) fn body_too_large(limit: usize) -> Self {
        let message = format!("The body is longer than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID_REQUEST, message).code("request_too_large")
    }

    pub(crate) fn body_timeout() -> Self {
        let message = "The body did not arrive in time".to_owned();
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID_REQUEST, message).code("request_timeout")
    }

    /// The bodies of other requests take all the memory that there is for bodies.
    pub(crate) fn bodies_full() -> Self {
        let message = "Too many large requests at the same time; try again soon".to_owned();
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, message)
            .code("overloaded")
            .retry_after(1)
    }

    /// No key, or one that is not good (any more).
    pub(crate) fn unauthorized(denied: Denied) -> Self {
        let message = match denied {
            Denied::Missing => {
                "You did not provide an API key. Send it as 'Authorization: Bearer KEY'.".to_owned()
            }
            Denied::Unknown => "Incorrect API key provided.".to_owned(),
            Denied::Revoked | Denied::Expired => format!("Incorrect API key provided: {denied}."),
        };
        Self::new(StatusCode::UNAUTHORIZED, INVALID_REQUEST, message).code("invalid_api_key")
    }

    /// A key that has used up what it may.
    pub(crate) fn over_quota(over: OverQuota) -> Self {
        let message = format!("Rate limit reached: {over}");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
            .code("rate_limit_exceeded")
            .retry_after(over.retry_after_seconds())
    }

    pub(crate) fn draining() -> Self {
        Self::unavailable("The server is shutting down")
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, message.into())
            .code("unavailable")
            .retry_after(2)
    }

    /// A fault on this side; `message` is for the client and says nothing of the inside.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, SERVER, message.into()).code("internal_error")
    }

    /// What a request that ended without an answer becomes; `None` for the ends of an answer.
    pub(crate) fn from_finish(reason: &FinishReason) -> Option<Self> {
        match reason {
            FinishReason::Stop | FinishReason::Length => None,
            FinishReason::Cancelled => {
                Some(Self::unavailable("The request was cancelled by the engine"))
            }
            FinishReason::Deadline => Some(Self::deadline()),
            FinishReason::Failed(SlotError::NothingAllowed) => {
                let message = "No token is left to choose: 'allowed_token_ids', 'bad_words', \
                               'logit_bias' and 'min_tokens' together exclude all of them";
                Some(Self::malformed(message).code("no_token_allowed"))
            }
            FinishReason::Failed(SlotError::KillsWorkers) => {
                tracing::error!("a request ended the workers each time that they computed it");
                let message = "The workers ended each time that they computed this request, at last \
                               while they computed nothing else; do not send it again";
                Some(Self::internal(message).code("request_kills_workers"))
            }
            FinishReason::Failed(error) => {
                tracing::error!(?error, "request failed in the engine");
                Some(Self::internal("The engine failed on this request").code("request_failed"))
            }
            FinishReason::EngineLost => Some(Self::engine_lost()),
        }
    }

    pub(crate) fn deadline() -> Self {
        let message = "The request did not finish in time".to_owned();
        Self::new(StatusCode::GATEWAY_TIMEOUT, SERVER, message).code("deadline_exceeded")
    }

    pub(crate) fn engine_lost() -> Self {
        Self::internal("The engine was lost while it computed this request").code("engine_lost")
    }

    /// The body's JSON.
    pub(crate) fn body(&self) -> serde_json::Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl From<ApiError> for InferenceError {
    fn from(error: ApiError) -> Self {
        let code = match error.status {
            StatusCode::NOT_FOUND => InferenceCode::NotFound,
            StatusCode::UNAUTHORIZED => InferenceCode::Unauthenticated,
            StatusCode::FORBIDDEN => InferenceCode::PermissionDenied,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::PAYLOAD_TOO_LARGE => {
                InferenceCode::ResourceExhausted
            }
            StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => {
                InferenceCode::DeadlineExceeded
            }
            StatusCode::SERVICE_UNAVAILABLE => InferenceCode::Unavailable,
            status if status.is_client_error() => InferenceCode::InvalidArgument,
            _ => InferenceCode::Internal,
        };
        Self {
            code,
            message: error.message,
            reason: error.code.unwrap_or(error.kind).to_owned(),
            field: error.param,
            retry_after_s: error.retry_after_s,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body())).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Rejected(rejected) => rejected.into(),
            EngineError::Unavailable(reason) => {
                Self::unavailable(format!("The model's engine is not available: {reason}"))
            }
            EngineError::Protocol(reason) => {
                tracing::error!(reason, "engine broke the protocol");
                Self::internal("The engine gave an answer that cannot be understood")
            }
        }
    }
}

impl From<Rejected> for ApiError {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::QueueFull { limit, retry_after_ms } => {
                Self::queue_full(&format!("{limit} requests are waiting already"), retry_after_ms)
            }
            Rejected::QueueTokensFull { limit, retry_after_ms } => {
                let what = format!("requests with {limit} tokens are waiting already");
                Self::queue_full(&what, retry_after_ms)
            }
            Rejected::TooLong { tokens, limit } => {
                Self::context_length(limit, tokens as usize, 0, "max_tokens")
            }
            Rejected::EmptyPrompt => Self::invalid("prompt", "it has no token"),
            Rejected::UnknownToken { token } => {
                Self::invalid("prompt", format!("the model has no token {token}"))
            }
            Rejected::DuplicateId => Self::internal("The engine knows this request already"),
            Rejected::Draining => Self::draining(),
        }
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        match error {
            // The template looked at the messages and refused them: the client's to mend.
            TextError::Raised(_) | TextError::Render(_) | TextError::TemplateLimit { .. } => {
                Self::invalid("messages", error.to_string())
            }
            _ => {
                tracing::error!(%error, "text handling failed");
                Self::internal("The model's tokenizer failed on this request")
            }
        }
    }
}
