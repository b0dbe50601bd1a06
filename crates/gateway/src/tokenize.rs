//! `POST /tokenize` and `POST /detokenize`, in vLLM's shapes.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use oarlock_types::TokenId;
use serde::Serialize;
use serde_json::json;

use crate::app::App;
use crate::body::JsonObject;
use crate::chat::encode_chat;
use crate::error::ApiError;
use crate::fields::token_id;
use crate::messages::Conversation;
use crate::prompts::{Encoding, Prompt, encode_prompt};
use crate::rules::check_ids;

/// Bytes of work that one token id counts for.
const BYTES_PER_TOKEN: usize = 8;

/// Tokens of a prompt or of messages.
pub(crate) async fn tokenize(
    State(app): State<App>,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let mut fields = body.0;
    let num_bytes = fields.num_bytes();
    let _in_flight = app.admit()?;
    let model = fields.string("model")?;
    let return_token_strs = fields.boolean("return_token_strs")?.unwrap_or(false);
    let prompt = fields.string("prompt")?;
    let (served, tokens) = if let Some(text) = prompt {
        let add_special = fields.boolean("add_special_tokens")?.unwrap_or(true);
        fields.finish()?;
        let served = app.models.find_or_only(model.as_deref()).await?;
        let encoding = Encoding { add_bos: add_special, truncate: None, field: "prompt" };
        let prompt = encode_prompt(&app, &served, Prompt::Text(text), encoding).await?;
        (served, prompt.tokens)
    } else {
        // A template writes its special tokens itself.
        if fields.boolean("add_special_tokens")?.unwrap_or(false) {
            let message = "it is not supported with 'messages'";
            return Err(ApiError::unsupported("add_special_tokens", message));
        }
        let shared = Arc::clone(&app);
        let check = move || {
            let conversation = Conversation::take(&mut fields, &shared.config.request)?;
            fields.finish()?;
            Ok::<_, ApiError>(conversation)
        };
        let conversation = app.compute(num_bytes, check).await??;
        let served = app.models.find_or_only(model.as_deref()).await?;
        let prompt = encode_chat(&app, &served, conversation, None).await?;
        (served, prompt.tokens)
    };
    let tokenizer = Arc::clone(served.text.tokenizer()?);
    let num_tokens = tokens.len();
    let max_model_len = served.limits.max_sequence_tokens;
    let answer = move || {
        let text = |token: &TokenId| tokenizer.token_text(*token);
        let token_strs = return_token_strs.then(|| tokens.iter().map(text).collect());
        let tokens: Vec<u32> = tokens.into_iter().map(|token| token.0).collect();
        axum::Json(Tokenized { count: tokens.len(), max_model_len, tokens, token_strs })
            .into_response()
    };
    app.compute(num_tokens * BYTES_PER_TOKEN, answer).await
}

/// The answer of `/tokenize`.
#[derive(Serialize)]
struct Tokenized {
    count: usize,
    max_model_len: u32,
    tokens: Vec<u32>,
    token_strs: Option<Vec<String>>,
}

/// The text of token ids; special tokens are written out.
pub(crate) async fn detokenize(
    State(app): State<App>,
    body: JsonObject,
) -> Result<Response, ApiError> {
    let mut fields = body.0;
    let _in_flight = app.admit()?;
    let model = fields.string("model")?;
    let tokens = fields.array("tokens")?.ok_or_else(|| ApiError::missing("tokens"))?;
    fields.finish()?;
    let served = app.models.find_or_only(model.as_deref()).await?;
    let tokenizer = Arc::clone(served.text.tokenizer()?);
    let vocab_size = served.text.vocab_size;
    let num_bytes = tokens.len() * BYTES_PER_TOKEN;
    let decode = move || {
        let tokens = tokens
            .iter()
            .map(|token| token_id("tokens", token))
            .collect::<Result<Vec<TokenId>, _>>()?;
        check_ids("tokens", tokens.iter().copied(), vocab_size)?;
        Ok(axum::Json(json!({"prompt": tokenizer.decode(&tokens, false)})).into_response())
    };
    app.compute(num_bytes, decode).await?
}
