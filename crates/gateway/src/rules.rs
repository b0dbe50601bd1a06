//! The fields that change logits before a token is drawn: biases, masks, penalties, minimum length.

use std::collections::BTreeMap;
use std::sync::Arc;

use oarlock_text::{TextError, Tokenizer};
use oarlock_types::{LogitRules, SamplingDefaults, TokenId};
use serde_json::Value;

use crate::error::ApiError;
use crate::fields::{Fields, token_id, wrong_type};
use crate::limits::RequestLimits;

/// Greatest bias of a token, as OpenAI's API has it: enough to ban it or to force it.
const MAX_BIAS: f64 = 100.0;
/// Greatest repetition penalty; the least is one over it, so that no logit becomes infinite.
const MAX_REPETITION_PENALTY: f64 = 100.0;

/// The fields as the client gave them, checked as far as it goes without the model.
#[derive(Clone, Debug)]
pub(crate) struct RuleFields {
    bias: Vec<(TokenId, f32)>,
    allowed: Vec<TokenId>,
    bad_words: Vec<String>,
    repetition_penalty: Option<f32>,
    frequency_penalty: f32,
    presence_penalty: f32,
    pub(crate) min_tokens: u32,
}

impl RuleFields {
    pub(crate) fn take(fields: &mut Fields, limits: &RequestLimits) -> Result<Self, ApiError> {
        let penalty = |fields: &mut Fields, name: &str| {
            fields.ranged(name, 0.0, "from -2 to 2", |p| (-2.0..=2.0).contains(&p))
        };
        let frequency_penalty = penalty(fields, "frequency_penalty")? as f32;
        let presence_penalty = penalty(fields, "presence_penalty")? as f32;
        let range = "from 0.01 to 100";
        let repetition_penalty = fields.in_range("repetition_penalty", range, |p| {
            (1.0 / MAX_REPETITION_PENALTY..=MAX_REPETITION_PENALTY).contains(&p)
        })?;
        let min_tokens = fields.integer("min_tokens", 0..=i64::from(u32::MAX))?.unwrap_or(0);
        Ok(Self {
            bias: take_bias(fields, limits.max_logit_bias)?,
            allowed: take_allowed(fields, limits.max_allowed_token_ids)?,
            bad_words: take_bad_words(fields, limits)?,
            repetition_penalty: repetition_penalty.map(|penalty| penalty as f32),
            frequency_penalty,
            presence_penalty,
            min_tokens: min_tokens as u32,
        })
    }

    /// Bytes of text that [`RuleFields::resolve`] tokenizes.
    pub(crate) fn num_bytes(&self) -> usize {
        self.bad_words.iter().map(String::len).sum()
    }

    /// The rules for a model; `None` if nothing is changed. `ends` are the tokens that end an answer,
    /// ascending.
    pub(crate) fn resolve(
        &self,
        defaults: &SamplingDefaults,
        vocab_size: u32,
        tokenizer: Option<&Tokenizer>,
        ends: &[TokenId],
    ) -> Result<Option<Arc<LogitRules>>, ApiError> {
        check_ids("logit_bias", self.bias.iter().map(|entry| entry.0), vocab_size)?;
        check_ids("allowed_token_ids", self.allowed.iter().copied(), vocab_size)?;
        let rules = LogitRules {
            allowed: self.allowed.clone(),
            bad_words: self.bad_word_tokens(tokenizer)?,
            min_tokens: if ends.is_empty() { 0 } else { self.min_tokens },
            min_tokens_banned: if self.min_tokens > 0 { ends.to_vec() } else { Vec::new() },
            bias: self.bias.clone(),
            repetition_penalty: self
                .repetition_penalty
                .or(defaults.repetition_penalty)
                .unwrap_or(1.0),
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
        };
        Ok((rules != LogitRules::default()).then(|| Arc::new(rules)))
    }

    /// Each word as it is tokenized at the beginning of a text and after a space, as vLLM has it.
    fn bad_word_tokens(
        &self,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<Vec<Vec<TokenId>>, ApiError> {
        if self.bad_words.is_empty() {
            return Ok(Vec::new());
        }
        let tokenizer = tokenizer
            .ok_or_else(|| ApiError::invalid("bad_words", "this model gives token ids only"))?;
        let mut sequences = Vec::with_capacity(2 * self.bad_words.len());
        for word in &self.bad_words {
            let word = word.trim_start();
            let encode = |text: &str| {
                tokenizer.encode(text, false).map_err(|error: TextError| ApiError::from(error))
            };
            let plain = encode(word)?;
            let after_space = encode(&format!(" {word}"))?;
            // A tokenizer without a token for space and word together would ban the bare space.
            let is_same_length = after_space.len() == plain.len();
            if is_same_length && after_space.first() != plain.first() {
                sequences.push(after_space);
            }
            sequences.push(plain);
        }
        sequences.retain(|sequence| !sequence.is_empty());
        Ok(sequences)
    }
}

/// Refuses token ids that the model does not have.
pub(crate) fn check_ids(
    name: &str,
    ids: impl IntoIterator<Item = TokenId>,
    vocab_size: u32,
) -> Result<(), ApiError> {
    match ids.into_iter().find(|id| id.0 >= vocab_size) {
        None => Ok(()),
        Some(unknown) => Err(ApiError::invalid(name, format!("the model has no token {unknown}"))),
    }
}

/// An array of token ids, sorted, each once.
pub(crate) fn take_ids(
    fields: &mut Fields,
    name: &str,
    limit: u32,
) -> Result<Option<Vec<TokenId>>, ApiError> {
    let Some(items) = fields.array(name)? else { return Ok(None) };
    at_most(name, "token ids", items.len(), limit)?;
    let mut ids = items.iter().map(|item| token_id(name, item)).collect::<Result<Vec<_>, _>>()?;
    ids.sort_unstable();
    ids.dedup();
    Ok(Some(ids))
}

/// Refuses a list that is too long.
pub(crate) fn at_most(name: &str, what: &str, count: usize, limit: u32) -> Result<(), ApiError> {
    if count > limit as usize {
        return Err(ApiError::invalid(name, format!("at most {limit} {what}, got {count}")));
    }
    Ok(())
}

fn take_bias(fields: &mut Fields, limit: u32) -> Result<Vec<(TokenId, f32)>, ApiError> {
    const NAME: &str = "logit_bias";
    let Some(map) = fields.object(NAME)? else { return Ok(Vec::new()) };
    at_most(NAME, "entries", map.len(), limit)?;
    // Two spellings of one id ("5", "05") are two keys of the object: the last one counts.
    let mut bias = BTreeMap::new();
    for (key, value) in &map {
        let id = key.parse::<u32>().ok().filter(|_| key.bytes().all(|b| b.is_ascii_digit()));
        let id = id.ok_or_else(|| {
            ApiError::invalid(NAME, "its keys are token ids, written as decimal numbers")
        })?;
        let amount = value.as_f64().ok_or_else(|| wrong_type(NAME, "numbers as values", value))?;
        if !(-MAX_BIAS..=MAX_BIAS).contains(&amount) {
            let message = format!("the bias of token {id} is not a number from -100 to 100");
            return Err(ApiError::invalid(NAME, message));
        }
        bias.insert(TokenId(id), amount as f32);
    }
    Ok(bias.into_iter().collect())
}

fn take_allowed(fields: &mut Fields, limit: u32) -> Result<Vec<TokenId>, ApiError> {
    const NAME: &str = "allowed_token_ids";
    match take_ids(fields, NAME, limit)? {
        Some(ids) if ids.is_empty() => {
            Err(ApiError::invalid(NAME, "with no allowed token there is no answer"))
        }
        ids => Ok(ids.unwrap_or_default()),
    }
}

fn take_bad_words(fields: &mut Fields, limits: &RequestLimits) -> Result<Vec<String>, ApiError> {
    const NAME: &str = "bad_words";
    let items = fields.array(NAME)?.unwrap_or_default();
    at_most(NAME, "words", items.len(), limits.max_bad_words)?;
    items
        .into_iter()
        .map(|item| match item {
            Value::String(word) if word.trim().is_empty() => {
                Err(ApiError::invalid(NAME, "a word is not empty"))
            }
            Value::String(word) if word.chars().count() > limits.max_bad_word_chars as usize => {
                let limit = limits.max_bad_word_chars;
                Err(ApiError::invalid(NAME, format!("a word has at most {limit} characters")))
            }
            Value::String(word) => Ok(word),
            other => Err(wrong_type(NAME, "an array of strings", &other)),
        })
        .collect()
}
