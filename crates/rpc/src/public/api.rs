//! The public API as Rust values.

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use thiserror::Error;

/// Events of one call. Dropping the stream cancels its generation.
pub type InferenceEvents = BoxStream<'static, Result<InferenceEvent, InferenceError>>;

/// What a gateway does for gRPC clients.
pub trait InferenceApi: Send + Sync + 'static {
    /// Who calls. The gateway finds out before anything of the request is read, and puts it into the
    /// call's extensions.
    type Caller: Clone + Send + Sync + 'static;

    /// Generates.
    fn generate(
        self: Arc<Self>,
        caller: Self::Caller,
        request: InferenceRequest,
    ) -> BoxFuture<'static, Result<InferenceEvents, InferenceError>>;

    /// Tokenizes.
    fn tokenize(
        self: Arc<Self>,
        caller: Self::Caller,
        request: TokenizeText,
    ) -> BoxFuture<'static, Result<Tokenized, InferenceError>>;

    /// The models that are served.
    fn models(
        self: Arc<Self>,
        caller: Self::Caller,
    ) -> BoxFuture<'static, Result<Vec<ServedModel>, InferenceError>>;

    /// Whether requests are computed, now and at each change.
    fn health(self: Arc<Self>) -> BoxStream<'static, bool>;
}

/// Why a call failed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{message}")]
pub struct InferenceError {
    /// The class of the error.
    pub code: InferenceCode,
    /// For people.
    pub message: String,
    /// For programs: the HTTP API's error code.
    pub reason: String,
    /// The field at fault, by its name in the HTTP API.
    pub field: Option<String>,
    /// When to try again.
    pub retry_after_s: Option<u32>,
}

/// Classes of errors, by gRPC's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InferenceCode {
    /// The client's to mend.
    InvalidArgument,
    /// No such model.
    NotFound,
    /// No valid key.
    Unauthenticated,
    /// The key may not do this.
    PermissionDenied,
    /// A queue is full, or a quota used up.
    ResourceExhausted,
    /// It did not finish in time.
    DeadlineExceeded,
    /// Not now.
    Unavailable,
    /// A fault of the server.
    Internal,
}

/// A request to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct InferenceRequest {
    /// The model's name.
    pub model: String,
    /// What to answer.
    pub prompt: InferencePrompt,
    /// How.
    pub options: GenerateOptions,
}

/// A prompt.
#[derive(Clone, Debug, PartialEq)]
pub enum InferencePrompt {
    /// A text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
    /// A conversation.
    Chat(Chat),
}

/// A conversation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chat {
    /// Its messages.
    pub messages: Vec<ChatMessage>,
    /// The last one is left open.
    pub continue_final_message: bool,
    /// A JSON object.
    pub template_kwargs_json: Option<String>,
    /// A JSON array.
    pub tools_json: Option<String>,
}

/// One message.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: String,
    /// What is said.
    pub content: String,
    /// Who exactly.
    pub name: Option<String>,
    /// Of a tool's message: the id of the call that it answers.
    pub tool_call_id: Option<String>,
    /// A JSON array.
    pub tool_calls_json: Option<String>,
}

/// Options by the names of the HTTP API; `None` and empty ones have its defaults. Unchecked: the
/// gateway checks them as it does those of an HTTP request.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(missing_docs, reason = "the HTTP API's documentation describes each field")]
pub struct GenerateOptions {
    pub temperature: Option<f64>,
    pub top_k: Option<i64>,
    pub top_p: Option<f64>,
    pub min_p: Option<f64>,
    pub seed: Option<i64>,
    pub n: Option<u32>,
    pub repetition_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub logit_bias: Vec<(u32, f64)>,
    pub allowed_token_ids: Vec<u32>,
    pub bad_words: Vec<String>,
    pub max_tokens: Option<u32>,
    pub min_tokens: Option<u32>,
    pub stop: Vec<String>,
    pub stop_token_ids: Vec<u32>,
    pub ignore_eos: bool,
    pub include_stop_str_in_output: bool,
    pub logprobs: Option<u32>,
    pub prompt_logprobs: Option<u32>,
    pub token_ids: bool,
    pub skip_special_tokens: Option<bool>,
    pub truncate_prompt_tokens: Option<i64>,
    pub priority: Option<i64>,
    pub add_special_tokens: Option<bool>,
}

/// What happens while a call generates.
#[derive(Clone, Debug, PartialEq)]
pub enum InferenceEvent {
    /// The first event.
    Started {
        /// A name of the answer.
        id: String,
        /// The model's name.
        model: String,
        /// What decides the bits.
        system_fingerprint: String,
        /// The seed in use.
        seed: i64,
        /// Where asked for.
        prompt_token_ids: Vec<u32>,
    },
    /// More of one choice.
    Piece {
        /// Which choice.
        index: u32,
        /// Its text.
        text: String,
        /// Its tokens, where asked for.
        tokens: Vec<InferenceToken>,
    },
    /// A choice has ended.
    Finished {
        /// Which choice.
        index: u32,
        /// `None`: at its length.
        stop: Option<StopCause>,
        /// Logprobs of the prompt, where asked for.
        prompt_tokens: Vec<InferenceToken>,
    },
    /// The last event.
    Usage {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// Tokens generated.
        completion_tokens: u32,
        /// Of the prompt, tokens from the cache.
        cached_tokens: u32,
    },
}

/// What ended a choice before its length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopCause {
    /// The model itself.
    EndOfSequence,
    /// A token of `stop_token_ids`.
    Token(u32),
    /// A string of `stop`.
    Text(String),
}

/// One token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InferenceToken {
    /// Its id.
    pub id: u32,
    /// Its text on its own.
    pub text: String,
    /// Natural logarithm of its probability, where asked for.
    pub logprob: Option<f32>,
    /// The most likely tokens at its place: id, text, logprob.
    pub top: Vec<(u32, String, f32)>,
}

/// A request to tokenize.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizeText {
    /// The model's name.
    pub model: String,
    /// A text or a conversation.
    pub prompt: InferencePrompt,
    /// A text gets the beginning-of-sequence token that the model wants.
    pub add_special_tokens: Option<bool>,
}

/// Tokens of a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokenized {
    /// Their ids.
    pub token_ids: Vec<u32>,
    /// Tokens of one sequence at most.
    pub max_model_len: u32,
}

/// A model that is served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServedModel {
    /// The name that clients use.
    pub name: String,
    /// Tokens of one sequence at most; unknown until it is loaded.
    pub max_model_len: Option<u32>,
}
