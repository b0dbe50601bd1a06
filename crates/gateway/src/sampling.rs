//! The fields that chat and plain completions share: how tokens are drawn and how they are returned.

use oarlock_types::{SamplingDefaults, SamplingParams, TokenId};
use serde_json::Value;

use crate::error::ApiError;
use crate::fields::{Fields, wrong_type};
use crate::limits::RequestLimits;
use crate::rules::{RuleFields, at_most, take_ids};

/// Seeds that the gateway draws have this many bits, so that every JSON parser keeps them.
const SEED_BITS: u32 = 53;

/// Options of a generation.
#[derive(Debug)]
pub(crate) struct Options {
    /// Without what the model's defaults may change.
    pub(crate) sampling: SamplingParams,
    pub(crate) wishes: Wishes,
    pub(crate) rules: RuleFields,
    /// The seed as the client reads it.
    pub(crate) seed: i64,
    /// Answers to each prompt.
    pub(crate) n: u32,
    pub(crate) stop: Vec<String>,
    /// Further tokens that end an answer, ascending.
    pub(crate) stop_token_ids: Vec<TokenId>,
    /// What ended an answer stays part of its text.
    pub(crate) include_stop: bool,
    pub(crate) ignore_eos: bool,
    pub(crate) skip_special_tokens: bool,
    /// Tokens that are kept of the end of a prompt.
    pub(crate) truncate_prompt: Option<Truncation>,
    /// Most likely tokens to report at each place of the prompt.
    pub(crate) prompt_logprobs: Option<u8>,
    /// The client's wish, vLLM's way: lower is more urgent, 0 is usual.
    pub(crate) priority: Option<i64>,
    pub(crate) stream: bool,
    pub(crate) usage: UsageEvents,
    pub(crate) return_token_ids: bool,
    /// Tokens of logprobs are written as `token_id:N`.
    pub(crate) tokens_as_ids: bool,
}

/// What the client says of what models have defaults for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wishes {
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
}

impl Wishes {
    fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let mut number = |name: &str, range: &str, accepts: fn(f64) -> bool| {
            fields.in_range(name, range, accepts).map(|value| value.map(|value| value as f32))
        };
        let temperature = number("temperature", "from 0 to 2", |t| (0.0..=2.0).contains(&t))?;
        let top_p =
            number("top_p", "above 0 and up to 1", |p| p > 0.0 && p <= 1.0 && p as f32 > 0.0)?;
        let min_p = number("min_p", "from 0 to 1", |p| (0.0..=1.0).contains(&p))?;
        // -1 and 0 both keep all tokens.
        let top_k = fields.integer("top_k", -1..=i64::from(u32::MAX))?;
        Ok(Self { temperature, top_k: top_k.map(|top_k| top_k.max(0) as u32), top_p, min_p })
    }

    /// The client's word, else the model's, else OpenAI's.
    pub(crate) fn resolve(
        &self,
        defaults: &SamplingDefaults,
        others: SamplingParams,
    ) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature.or(defaults.temperature).unwrap_or(1.0),
            top_k: self.top_k.or(defaults.top_k).unwrap_or(0),
            top_p: self.top_p.or(defaults.top_p).unwrap_or(1.0),
            min_p: self.min_p.or(defaults.min_p).unwrap_or(0.0),
            ..others
        }
    }
}

/// Where a prompt is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Truncation {
    /// This many tokens are kept.
    To(u32),
    /// As many as fit with the answer.
    ToFit,
}

/// Which events of a stream carry usage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum UsageEvents {
    #[default]
    None,
    /// One more event at the end.
    Last,
    /// All of them.
    All,
}

impl Options {
    /// Takes the shared fields.
    pub(crate) fn take(fields: &mut Fields, limits: &RequestLimits) -> Result<Self, ApiError> {
        let wishes = Wishes::take(fields)?;
        let seed = match fields.integer("seed", i64::MIN..=i64::MAX)? {
            Some(seed) => seed,
            None => draw_seed()?,
        };
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let max_choices = i64::from(limits.max_choices);
        let stop_token_ids = take_ids(fields, "stop_token_ids", limits.max_stop_token_ids)?;
        let max_top_logprobs = i64::from(limits.max_top_logprobs);
        let prompt_logprobs = fields.integer("prompt_logprobs", 0..=max_top_logprobs)?;
        if stream && prompt_logprobs.is_some() {
            return Err(ApiError::invalid(
                "prompt_logprobs",
                "it goes with \"stream\": false only",
            ));
        }
        Ok(Self {
            sampling: SamplingParams { seed: seed.cast_unsigned(), ..SamplingParams::default() },
            wishes,
            rules: RuleFields::take(fields, limits)?,
            seed,
            n: fields.integer("n", 1..=max_choices)?.unwrap_or(1) as u32,
            stop: take_stop(fields, limits)?,
            stop_token_ids: stop_token_ids.unwrap_or_default(),
            include_stop: fields.boolean("include_stop_str_in_output")?.unwrap_or(false),
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
            skip_special_tokens: fields.boolean("skip_special_tokens")?.unwrap_or(true),
            truncate_prompt: take_truncation(fields)?,
            prompt_logprobs: prompt_logprobs.map(|top| top as u8),
            priority: fields.integer("priority", i64::MIN..=i64::MAX)?,
            stream,
            usage: take_usage(fields, stream)?,
            return_token_ids: fields.boolean("return_token_ids")?.unwrap_or(false),
            tokens_as_ids: fields.boolean("return_tokens_as_token_ids")?.unwrap_or(false),
        })
    }
}

fn take_stop(fields: &mut Fields, limits: &RequestLimits) -> Result<Vec<String>, ApiError> {
    let stops = match fields.take("stop") {
        None => Vec::new(),
        Some(Value::String(text)) => vec![Value::String(text)],
        Some(Value::Array(items)) => items,
        Some(other) => return Err(wrong_type("stop", "a string or an array of strings", &other)),
    };
    at_most("stop", "stop strings", stops.len(), limits.max_stops)?;
    let max_chars = limits.max_stop_chars;
    stops
        .into_iter()
        .map(|stop| match stop {
            Value::String(text) if text.is_empty() => {
                Err(ApiError::invalid("stop", "a stop string is not empty"))
            }
            Value::String(text) if text.chars().count() > max_chars as usize => {
                Err(ApiError::invalid(
                    "stop",
                    format!("a stop string has at most {max_chars} characters"),
                ))
            }
            Value::String(text) => Ok(text),
            other => Err(wrong_type("stop", "a string or an array of strings", &other)),
        })
        .collect()
}

fn take_truncation(fields: &mut Fields) -> Result<Option<Truncation>, ApiError> {
    const NAME: &str = "truncate_prompt_tokens";
    match fields.integer(NAME, -1..=i64::from(u32::MAX))? {
        None => Ok(None),
        Some(-1) => Ok(Some(Truncation::ToFit)),
        Some(0) => Err(ApiError::invalid(NAME, "expected -1 or at least 1 token")),
        Some(tokens) => Ok(Some(Truncation::To(tokens as u32))),
    }
}

fn take_usage(fields: &mut Fields, stream: bool) -> Result<UsageEvents, ApiError> {
    let Some(options) = fields.object("stream_options")? else { return Ok(UsageEvents::None) };
    if !stream {
        return Err(ApiError::invalid("stream_options", "it goes with \"stream\": true only"));
    }
    let mut options = Fields::nested(options, "stream_options");
    let include_usage = options.boolean("include_usage")?.unwrap_or(false);
    let continuous = options.boolean("continuous_usage_stats")?.unwrap_or(false);
    // OpenAI pads chunks against observers of a network; off is the only way here.
    if options.boolean("include_obfuscation")?.unwrap_or(false) {
        return Err(ApiError::unsupported(
            options.path("include_obfuscation"),
            "only false is supported",
        ));
    }
    if continuous && !include_usage {
        let message = "it goes with \"include_usage\": true only";
        return Err(ApiError::invalid(options.path("continuous_usage_stats"), message));
    }
    options.finish()?;
    Ok(match (include_usage, continuous) {
        (false, _) => UsageEvents::None,
        (true, false) => UsageEvents::Last,
        (true, true) => UsageEvents::All,
    })
}

fn draw_seed() -> Result<i64, ApiError> {
    Ok((random_bits()? >> (u64::BITS - SEED_BITS)).cast_signed())
}

/// Random bits of the operating system.
pub(crate) fn random_bits() -> Result<u64, ApiError> {
    getrandom::u64().map_err(|error| {
        tracing::error!(%error, "no randomness from the operating system");
        ApiError::internal("No random seed could be drawn")
    })
}

/// The limit of a `max_tokens` field under either of its names. An answer has at least `min_tokens`.
pub(crate) fn take_max_tokens(
    fields: &mut Fields,
    least: i64,
    min_tokens: u32,
) -> Result<Option<u32>, ApiError> {
    let range = least..=i64::from(u32::MAX);
    let max_tokens = fields.integer("max_tokens", range.clone())?;
    let max_completion_tokens = fields.integer("max_completion_tokens", range)?;
    match (max_tokens, max_completion_tokens) {
        (Some(one), Some(other)) if one != other => {
            Err(ApiError::invalid("max_tokens", "it differs from 'max_completion_tokens'"))
        }
        (one, other) => match one.or(other) {
            Some(most) if most < i64::from(min_tokens) => {
                let message = format!("it is more than the {most} tokens of 'max_tokens'");
                Err(ApiError::invalid("min_tokens", message))
            }
            most => Ok(most.map(|tokens| tokens as u32)),
        },
    }
}
