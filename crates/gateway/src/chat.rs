//! `POST /v1/chat/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use oarlock_text::{ChatPrompt, TextError, Tokenizer};
use oarlock_types::TokenId;

use crate::app::App;
use crate::body::JsonObject;
use crate::chat_response::ChatWire;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::generate::{Generation, Job};
use crate::messages::Conversation;
use crate::models::Served;
use crate::sampling::{Options, take_max_tokens};
use crate::stream::respond;

/// Most likely tokens that may be asked for at each place.
pub(crate) const MAX_TOP_LOGPROBS: i64 = 20;

/// A checked request.
struct ChatRequest {
    model: String,
    conversation: Conversation,
    options: Options,
    max_tokens: Option<u32>,
}

impl ChatRequest {
    fn take(mut fields: Fields) -> Result<Self, ApiError> {
        let model = fields.string("model")?.ok_or_else(|| ApiError::missing("model"))?;
        let conversation = Conversation::take(&mut fields)?;
        let mut options = Options::take(&mut fields)?;
        options.sampling.top_logprobs = take_logprobs(&mut fields)?;
        let max_tokens = take_max_tokens(&mut fields, 1)?;
        fields.finish()?;
        Ok(Self { model, conversation, options, max_tokens })
    }
}

fn take_logprobs(fields: &mut Fields) -> Result<Option<u8>, ApiError> {
    let logprobs = fields.boolean("logprobs")?.unwrap_or(false);
    let top_logprobs = fields.integer("top_logprobs", 0..=MAX_TOP_LOGPROBS)?.unwrap_or(0);
    if top_logprobs > 0 && !logprobs {
        return Err(ApiError::invalid("top_logprobs", "it goes with \"logprobs\": true only"));
    }
    Ok(logprobs.then_some(top_logprobs as u8))
}

/// Answers one chat request.
pub(crate) async fn create(State(app): State<App>, body: JsonObject) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let in_flight = app.admit()?;
    let ChatRequest { model, conversation, options, max_tokens } = ChatRequest::take(body.0)?;
    let served = app.models.find(&model).await?;
    check_top_logprobs(&served, &options, "top_logprobs")?;
    let prompt = encode_chat(&app, &served, conversation).await?;
    let max_tokens = fit_max_tokens(&served, prompt.len(), max_tokens, u32::MAX, "messages")?;
    let wire = ChatWire::new(&served, &options)?;
    let job = Job::new(prompt, max_tokens, &options);
    let generation = Generation::start(&app, &served, job, in_flight, arrived).await?;
    respond(&app, generation, wire, options.stream).await
}

/// Renders the conversation and tokenizes the text; special tokens in it count as such.
pub(crate) async fn encode_chat(
    app: &App,
    served: &Served,
    conversation: Conversation,
) -> Result<Vec<TokenId>, ApiError> {
    let tokenizer = Arc::clone(served.text.tokenizer()?);
    served.text.template()?;
    let text = Arc::clone(&served.text);
    let limit = served.limits.max_sequence_tokens;
    let bytes = conversation.approximate_bytes();
    app.compute(bytes, move || {
        let rendered = text.template()?.render(&ChatPrompt {
            messages: &conversation.messages,
            tools: conversation.tools.as_ref(),
            add_generation_prompt: conversation.add_generation_prompt,
            kwargs: &conversation.template_kwargs,
            bos_token: text.bos_text.as_deref(),
            eos_token: text.eos_text.as_deref(),
        })?;
        encode_bounded(&tokenizer, &rendered, limit, "messages")
    })
    .await?
}

/// Tokenizes `text`, unless it is longer than any text of `limit` tokens.
pub(crate) fn encode_bounded(
    tokenizer: &Tokenizer,
    text: &str,
    limit: u32,
    param: &str,
) -> Result<Vec<TokenId>, ApiError> {
    if text.len() > (limit as usize).saturating_mul(tokenizer.max_token_bytes()) {
        return Err(ApiError::text_too_long(limit, text.len(), param));
    }
    tokenizer.encode(text, true).map_err(|error: TextError| error.into())
}

/// The tokens to generate at most: what was asked for, or else `default` as far as it fits.
pub(crate) fn fit_max_tokens(
    served: &Served,
    num_prompt: usize,
    asked: Option<u32>,
    default: u32,
    param: &str,
) -> Result<u32, ApiError> {
    let limit = served.limits.max_sequence_tokens;
    if num_prompt == 0 {
        return Err(ApiError::invalid(param, "it has no token"));
    }
    let room = (limit as usize).checked_sub(num_prompt).map(|room| room as u32);
    match (room, asked) {
        (Some(room), Some(asked)) if asked <= room => Ok(asked),
        (Some(room), None) if room > 0 => Ok(default.min(room)),
        _ => Err(ApiError::context_length(limit, num_prompt, asked.unwrap_or(1), param)),
    }
}

/// Logprobs as far as the engine gives them.
pub(crate) fn check_top_logprobs(
    served: &Served,
    options: &Options,
    param: &str,
) -> Result<(), ApiError> {
    let limit = served.limits.max_top_logprobs;
    match options.sampling.top_logprobs {
        Some(asked) if u32::from(asked) > limit => {
            Err(ApiError::invalid(param, format!("this model gives at most {limit}")))
        }
        _ => Ok(()),
    }
}
