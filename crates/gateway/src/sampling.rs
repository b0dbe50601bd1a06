//! The fields that chat and plain completions share: how tokens are drawn and how they are returned.

use oarlock_types::SamplingParams;
use serde_json::Value;

use crate::error::ApiError;
use crate::fields::{Fields, wrong_type};

/// Stop strings of one request at most.
const MAX_STOPS: usize = 16;
/// Length of one stop string at most, in characters.
const MAX_STOP_CHARS: usize = 256;
/// Seeds that the gateway draws have this many bits, so that every JSON parser keeps them.
const SEED_BITS: u32 = 53;

/// Options of a generation.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) sampling: SamplingParams,
    /// The seed as the client reads it.
    pub(crate) seed: i64,
    pub(crate) stop: Vec<String>,
    pub(crate) ignore_eos: bool,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) return_token_ids: bool,
    /// Tokens of logprobs are written as `token_id:N`.
    pub(crate) tokens_as_ids: bool,
}

impl Options {
    /// Takes the shared fields.
    pub(crate) fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let temperature =
            ranged(fields, "temperature", 1.0, "0 to 2", |t| (0.0..=2.0).contains(&t))?;
        let top_p = ranged(fields, "top_p", 1.0, "above 0 and up to 1", |p| {
            p > 0.0 && p <= 1.0 && p as f32 > 0.0
        })?;
        let min_p = ranged(fields, "min_p", 0.0, "0 to 1", |p| (0.0..=1.0).contains(&p))?;
        // -1 and 0 both keep all tokens.
        let top_k = fields.integer("top_k", -1..=i64::from(u32::MAX))?.unwrap_or(0).max(0);
        let seed = match fields.integer("seed", i64::MIN..=i64::MAX)? {
            Some(seed) => seed,
            None => draw_seed()?,
        };
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let return_token_ids = fields.boolean("return_token_ids")?.unwrap_or(false);
        let tokens_as_ids = fields.boolean("return_tokens_as_token_ids")?.unwrap_or(false);
        let sampling = SamplingParams {
            temperature: temperature as f32,
            top_k: top_k as u32,
            top_p: top_p as f32,
            min_p: min_p as f32,
            seed: seed.cast_unsigned(),
            choice: 0,
            top_logprobs: None,
            rules: None,
        };
        Ok(Self {
            sampling,
            seed,
            stop: take_stop(fields)?,
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
            stream,
            include_usage: take_include_usage(fields, stream)?,
            return_token_ids,
            tokens_as_ids,
        })
    }
}

fn ranged(
    fields: &mut Fields,
    name: &str,
    default: f64,
    range: &str,
    accepts: impl Fn(f64) -> bool,
) -> Result<f64, ApiError> {
    match fields.number(name)? {
        None => Ok(default),
        Some(value) if accepts(value) => Ok(value),
        Some(value) => {
            Err(ApiError::invalid(name, format!("expected a number {range}, got {value}")))
        }
    }
}

fn take_stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let stops = match fields.take("stop") {
        None => Vec::new(),
        Some(Value::String(text)) => vec![Value::String(text)],
        Some(Value::Array(items)) => items,
        Some(other) => return Err(wrong_type("stop", "a string or an array of strings", &other)),
    };
    if stops.len() > MAX_STOPS {
        return Err(ApiError::invalid("stop", format!("at most {MAX_STOPS} stop strings")));
    }
    stops
        .into_iter()
        .map(|stop| match stop {
            Value::String(text) if text.is_empty() => {
                Err(ApiError::invalid("stop", "a stop string is not empty"))
            }
            Value::String(text) if text.chars().count() > MAX_STOP_CHARS => Err(ApiError::invalid(
                "stop",
                format!("a stop string has at most {MAX_STOP_CHARS} characters"),
            )),
            Value::String(text) => Ok(text),
            other => Err(wrong_type("stop", "a string or an array of strings", &other)),
        })
        .collect()
}

fn take_include_usage(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    let Some(options) = fields.object("stream_options")? else { return Ok(false) };
    if !stream {
        return Err(ApiError::invalid("stream_options", "it goes with \"stream\": true only"));
    }
    let mut options = Fields::nested(options, "stream_options");
    let include_usage = options.boolean("include_usage")?.unwrap_or(false);
    // OpenAI pads chunks against observers of a network; off is the only way here.
    if options.boolean("include_obfuscation")?.unwrap_or(false) {
        return Err(ApiError::unsupported(
            options.path("include_obfuscation"),
            "only false is supported",
        ));
    }
    options.finish()?;
    Ok(include_usage)
}

fn draw_seed() -> Result<i64, ApiError> {
    let bits = getrandom::u64().map_err(|error| {
        tracing::error!(%error, "no randomness from the operating system");
        ApiError::internal("No random seed could be drawn")
    })?;
    Ok((bits >> (u64::BITS - SEED_BITS)).cast_signed())
}

/// The limit of a `max_tokens` field under either of its names.
pub(crate) fn take_max_tokens(fields: &mut Fields, least: i64) -> Result<Option<u32>, ApiError> {
    let range = least..=i64::from(u32::MAX);
    let max_tokens = fields.integer("max_tokens", range.clone())?;
    let max_completion_tokens = fields.integer("max_completion_tokens", range)?;
    match (max_tokens, max_completion_tokens) {
        (Some(one), Some(other)) if one != other => {
            Err(ApiError::invalid("max_tokens", "it differs from 'max_completion_tokens'"))
        }
        (one, other) => Ok(one.or(other).map(|tokens| tokens as u32)),
    }
}
