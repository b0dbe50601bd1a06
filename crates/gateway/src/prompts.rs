//! Prompts: as clients give them, as tokens, and as text where the answer repeats them.

use std::sync::Arc;

use oarlock_text::{Detokenizer, TextError, Tokenizer};
use oarlock_types::TokenId;
use serde_json::Value;

use crate::app::App;
use crate::error::ApiError;
use crate::fields::{Fields, token_id, wrong_type};
use crate::limits::RequestLimits;
use crate::models::Served;
use crate::rules::{at_most, check_ids};
use crate::sampling::Truncation;

/// A prompt as the client gave it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Prompt {
    Text(String),
    Tokens(Vec<TokenId>),
}

/// A prompt as tokens.
pub(crate) struct EncodedPrompt {
    pub(crate) tokens: Vec<TokenId>,
    /// Its text, if it came as text and was not cut.
    pub(crate) text: Option<String>,
    /// Whether the first token was put before the text.
    pub(crate) has_bos: bool,
}

/// A prompt as the answer repeats it.
pub(crate) struct Echo {
    pub(crate) text: String,
    /// Characters before each token of the prompt.
    pub(crate) offsets: Vec<usize>,
}

impl Prompt {
    /// Takes `prompt`: a text, token ids, or an array of texts or of arrays of token ids.
    pub(crate) fn take_all(
        fields: &mut Fields,
        limits: &RequestLimits,
    ) -> Result<Vec<Self>, ApiError> {
        const NAME: &str = "prompt";
        match fields.take(NAME) {
            None => Err(ApiError::missing(NAME)),
            Some(Value::Array(items)) if items.is_empty() => {
                Err(ApiError::invalid(NAME, "expected at least one prompt"))
            }
            Some(Value::Array(items)) if items[0].is_string() || items[0].is_array() => {
                at_most(NAME, "prompts", items.len(), limits.max_prompts)?;
                items.into_iter().map(Self::from_json).collect()
            }
            Some(value) => Ok(vec![Self::from_json(value)?]),
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

/// How a prompt becomes tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Encoding {
    /// Puts the beginning-of-sequence token before a text if the model wants one.
    pub(crate) add_bos: bool,
    pub(crate) truncate: Option<Truncation>,
    /// The field of the request that it came from.
    pub(crate) field: &'static str,
}

/// The prompt's tokens; long texts are tokenized off the async threads.
pub(crate) async fn encode_prompt(
    app: &App,
    served: &Served,
    prompt: Prompt,
    encoding: Encoding,
) -> Result<EncodedPrompt, ApiError> {
    let text = match prompt {
        Prompt::Tokens(tokens) => {
            let limit = served.limits.max_sequence_tokens;
            if encoding.truncate.is_none() && tokens.len() > limit as usize {
                return Err(ApiError::context_length(limit, tokens.len(), 0, encoding.field));
            }
            check_ids(encoding.field, tokens.iter().copied(), served.text.vocab_size)?;
            return Ok(EncodedPrompt { tokens, text: None, has_bos: false });
        }
        Prompt::Text(text) => text,
    };
    let tokenizer = Arc::clone(served.text.tokenizer()?);
    let bos = served.text.bos.filter(|_| encoding.add_bos);
    let limit = served.limits.max_sequence_tokens;
    app.compute(text.len(), move || {
        let mut tokens = encode_bounded(&tokenizer, &text, limit, encoding)?;
        if let Some(bos) = bos {
            tokens.insert(0, bos);
        }
        Ok(EncodedPrompt { tokens, text: Some(text), has_bos: bos.is_some() })
    })
    .await?
}

/// Tokenizes `text`, unless it is longer than any text of `limit` tokens and will not be cut.
pub(crate) fn encode_bounded(
    tokenizer: &Tokenizer,
    text: &str,
    limit: u32,
    encoding: Encoding,
) -> Result<Vec<TokenId>, ApiError> {
    let most = (limit as usize).saturating_mul(tokenizer.max_token_bytes());
    if encoding.truncate.is_none() && text.len() > most {
        return Err(ApiError::text_too_long(limit, text.len(), encoding.field));
    }
    tokenizer.encode(text, true).map_err(|error: TextError| error.into())
}

/// Keeps the end of a prompt that is longer than the client wants. `max_tokens` are those that the
/// answer may have, where the client said so.
pub(crate) fn truncate(
    prompt: &mut EncodedPrompt,
    truncation: Option<Truncation>,
    limit: u32,
    max_tokens: Option<u32>,
) {
    let keep = match truncation {
        None => return,
        Some(Truncation::To(tokens)) => tokens,
        Some(Truncation::ToFit) => limit.saturating_sub(max_tokens.unwrap_or(1)).max(1),
    };
    let cut = prompt.tokens.len().saturating_sub(keep as usize);
    if cut > 0 {
        // The token that was put before the text counts, and stays before what is left of it.
        let first = usize::from(prompt.has_bos);
        prompt.tokens.drain(first..first + cut);
        prompt.text = None;
    }
}

/// Tokens of an answer: what the client asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lengths {
    pub(crate) max_tokens: Option<u32>,
    pub(crate) min_tokens: u32,
    /// `max_tokens` where it is not asked for, as far as it fits.
    pub(crate) default: u32,
}

/// The tokens to generate at most.
pub(crate) fn fit_max_tokens(
    served: &Served,
    num_prompt: usize,
    lengths: Lengths,
    field: &str,
) -> Result<u32, ApiError> {
    let Lengths { max_tokens: asked, min_tokens, default } = lengths;
    let limit = served.limits.max_sequence_tokens;
    if num_prompt == 0 {
        return Err(ApiError::invalid(field, "it has no token"));
    }
    let room = (limit as usize).checked_sub(num_prompt).map(|room| room as u32);
    match (room, asked) {
        (Some(room), Some(asked)) if asked <= room => Ok(asked),
        (Some(room), None) if room > 0 && default.min(room) < min_tokens => {
            let most = default.min(room);
            let message =
                format!("it is more than 'max_tokens', which is {most} where it is absent");
            Err(ApiError::invalid("min_tokens", message))
        }
        (Some(room), None) if room > 0 => Ok(default.min(room)),
        _ => Err(ApiError::context_length(limit, num_prompt, asked.unwrap_or(1), field)),
    }
}

impl Echo {
    /// A prompt that came as text is repeated as it came; token ids become text.
    pub(crate) fn new(tokenizer: &Tokenizer, tokens: &[TokenId], text: Option<String>) -> Self {
        // Special tokens that were written out count as text; one that was put before the text does not.
        let written_out = text.as_deref().unwrap_or("");
        let mut detokenizer = Detokenizer::at_start(false);
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
