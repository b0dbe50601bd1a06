//! `POST /v1/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use oarlock_text::{Detokenizer, Tokenizer};
use oarlock_types::TokenId;
use serde_json::Value;

use crate::app::App;
use crate::body::JsonObject;
use crate::chat::{MAX_TOP_LOGPROBS, check_top_logprobs, encode_bounded, fit_max_tokens};
use crate::completion_response::CompletionWire;
use crate::error::ApiError;
use crate::fields::{Fields, token_id, wrong_type};
use crate::generate::{Generation, Job};
use crate::models::Served;
use crate::sampling::{Options, take_max_tokens};
use crate::stream::respond;

/// Tokens generated where the request does not say how many, as OpenAI's API has it.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// A prompt as the client gave it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Prompt {
    Text(String),
    Tokens(Vec<TokenId>),
}

/// A prompt as tokens, and as text where the answer repeats it.
pub(crate) struct Echo {
    pub(crate) text: String,
    /// Characters before each token of the prompt.
    pub(crate) offsets: Vec<usize>,
}

/// A checked request.
struct CompletionRequest {
    model: String,
    prompt: Prompt,
    options: Options,
    max_tokens: Option<u32>,
    echo: bool,
}

impl CompletionRequest {
    fn take(mut fields: Fields) -> Result<Self, ApiError> {
        let model = fields.string("model")?.ok_or_else(|| ApiError::missing("model"))?;
        let prompt = Prompt::take(&mut fields)?.ok_or_else(|| ApiError::missing("prompt"))?;
        let mut options = Options::take(&mut fields)?;
        let logprobs = fields.integer("logprobs", 0..=MAX_TOP_LOGPROBS)?;
        options.sampling.top_logprobs = logprobs.map(|logprobs| logprobs as u8);
        let echo = fields.boolean("echo")?.unwrap_or(false);
        // Without an answer and without the prompt there would be nothing to say.
        let max_tokens = take_max_tokens(&mut fields, i64::from(!echo))?;
        fields.finish()?;
        Ok(Self { model, prompt, options, max_tokens, echo })
    }
}

impl Prompt {
    /// Takes `prompt`: a text, token ids, or an array with one of these.
    pub(crate) fn take(fields: &mut Fields) -> Result<Option<Self>, ApiError> {
        match fields.take("prompt") {
            None => Ok(None),
            Some(Value::Array(mut items))
                if items.first().is_some_and(|first| first.is_string() || first.is_array()) =>
            {
                if items.len() > 1 {
                    return Err(ApiError::unsupported(
                        "prompt",
                        "several prompts are not supported yet",
                    ));
                }
                Self::from_json(items.remove(0)).map(Some)
            }
            Some(value) => Self::from_json(value).map(Some),
        }
    }

    fn from_json(value: Value) -> Result<Self, ApiError> {
        match value {
            Value::String(text) => Ok(Self::Text(text)),
            Value::Array(items) => {
                let ids =
                    items.iter().map(|item| token_id("prompt", item)).collect::<Result<_, _>>()?;
                Ok(Self::Tokens(ids))
            }
            other => Err(wrong_type("prompt", "a string or an array of token ids", &other)),
        }
    }
}

/// Answers one completion request.
pub(crate) async fn create(State(app): State<App>, body: JsonObject) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let in_flight = app.admit()?;
    let CompletionRequest { model, prompt, options, max_tokens, echo } =
        CompletionRequest::take(body.0)?;
    let served = app.models.find(&model).await?;
    check_top_logprobs(&served, &options, "logprobs")?;
    let (tokens, text) = encode_prompt(&app, &served, prompt, true).await?;
    let max_tokens =
        fit_max_tokens(&served, tokens.len(), max_tokens, DEFAULT_MAX_TOKENS, "prompt")?;
    let echo = if echo { Some(Echo::new(served.text.tokenizer()?, &tokens, text)) } else { None };
    let mut job = Job::new(tokens, max_tokens, &options);
    if let Some(echo) = &echo {
        job.prompt_logprobs = options.sampling.top_logprobs;
        job.num_echo_chars = echo.text.chars().count();
    }
    let wire = CompletionWire::new(&served, &options, echo)?;
    let generation = Generation::start(&app, &served, job, in_flight, arrived).await?;
    respond(&app, generation, wire, options.stream).await
}

/// The prompt's tokens, and its text where it came as text. `add_bos` puts the beginning-of-sequence
/// token before a text if the model wants one.
pub(crate) async fn encode_prompt(
    app: &App,
    served: &Served,
    prompt: Prompt,
    add_bos: bool,
) -> Result<(Vec<TokenId>, Option<String>), ApiError> {
    let text = match prompt {
        Prompt::Tokens(tokens) => {
            let limit = served.text.vocab_size;
            if let Some(unknown) = tokens.iter().find(|token| token.0 >= limit) {
                return Err(ApiError::invalid(
                    "prompt",
                    format!("the model has no token {unknown}"),
                ));
            }
            return Ok((tokens, None));
        }
        Prompt::Text(text) => text,
    };
    let tokenizer = Arc::clone(served.text.tokenizer()?);
    let bos = served.text.bos.filter(|_| add_bos);
    let limit = served.limits.max_sequence_tokens;
    app.compute(text.len(), move || {
        let mut tokens = encode_bounded(&tokenizer, &text, limit, "prompt")?;
        if let Some(bos) = bos {
            tokens.insert(0, bos);
        }
        Ok((tokens, Some(text)))
    })
    .await?
}

impl Echo {
    /// A prompt that came as text is repeated as it came; token ids become text.
    fn new(tokenizer: &Tokenizer, tokens: &[TokenId], text: Option<String>) -> Self {
        // Special tokens that were written out count as text; one that was put before the text does not.
        let written_out = text.as_deref().unwrap_or("");
        let mut detokenizer = Detokenizer::new(false);
        let mut piece = String::new();
        let mut decoded = String::new();
        let mut num_chars = 0;
        let mut offsets = Vec::with_capacity(tokens.len());
        for (index, token) in tokens.iter().enumerate() {
            offsets.push(num_chars);
            let is_added = index == 0
                && text.is_some()
                && tokenizer.is_special(*token)
                && !written_out.as_bytes().starts_with(tokenizer.token_bytes(*token));
            if is_added {
                continue;
            }
            piece.clear();
            detokenizer.push(tokenizer, *token, &mut piece);
            num_chars += piece.chars().count();
            decoded.push_str(&piece);
        }
        detokenizer.finish(&mut decoded);
        Self { text: text.unwrap_or(decoded), offsets }
    }
}
