//! Typed extraction of a request's fields; each error names its field.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::ApiError;

type Result<T> = std::result::Result<T, ApiError>;

/// The fields of one request that were not looked at yet.
pub(crate) struct Fields {
    map: Map<String, Value>,
    /// Where the object stands in the request, for error messages.
    place: Option<String>,
    /// Bytes of JSON that it came from: how much work it is to look at all of it.
    num_bytes: usize,
}

/// The value at which a field that is not supported yet changes nothing.
enum Neutral {
    Number(f64),
    Bool(bool),
    /// An empty array, object or string.
    Empty,
    /// This string.
    Text(&'static str),
    /// `{"type": "text"}`.
    TextFormat,
}

/// Fields of OpenAI's and vLLM's API that are accepted at their neutral value only.
const NEUTRAL: &[(&str, Neutral)] = &[
    ("add_special_tokens", Neutral::Bool(true)),
    ("audio", Neutral::Empty),
    ("best_of", Neutral::Number(1.0)),
    ("echo", Neutral::Bool(false)),
    ("function_call", Neutral::Text("none")),
    ("functions", Neutral::Empty),
    ("length_penalty", Neutral::Number(1.0)),
    ("parallel_tool_calls", Neutral::Bool(true)),
    ("response_format", Neutral::TextFormat),
    ("service_tier", Neutral::Text("auto")),
    ("spaces_between_special_tokens", Neutral::Bool(true)),
    ("store", Neutral::Bool(false)),
    ("suffix", Neutral::Empty),
    ("use_beam_search", Neutral::Bool(false)),
];

/// Known fields of which no value is supported yet but null.
const UNSUPPORTED: &[&str] = &[
    "cache_salt",
    "documents",
    "guided_choice",
    "guided_grammar",
    "guided_json",
    "guided_regex",
    "modalities",
    "prediction",
    "reasoning_effort",
    "structured_outputs",
    "verbosity",
    "web_search_options",
];

/// Fields whose absence cannot change the answer.
const IGNORED: &[&str] = &["metadata", "prompt_cache_key", "safety_identifier", "user"];

impl Neutral {
    fn accepts(&self, value: &Value) -> bool {
        match self {
            Self::Number(number) => value.as_f64() == Some(*number),
            Self::Bool(flag) => value.as_bool() == Some(*flag),
            Self::Text(text) => value.as_str() == Some(text),
            Self::TextFormat => {
                value.as_object().is_some_and(|map| map.len() == 1)
                    && value.get("type").and_then(Value::as_str) == Some("text")
            }
            Self::Empty => match value {
                Value::Array(items) => items.is_empty(),
                Value::Object(map) => map.is_empty(),
                Value::String(text) => text.is_empty(),
                _ => false,
            },
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Bool(flag) => flag.to_string(),
            Self::Text(text) => format!("\"{text}\""),
            Self::TextFormat => "{\"type\": \"text\"}".to_owned(),
            Self::Empty => "an empty value".to_owned(),
        }
    }
}

impl Fields {
    pub(crate) fn new(map: Map<String, Value>, num_bytes: usize) -> Self {
        Self { map, place: None, num_bytes }
    }

    /// Bytes of JSON that the fields came from.
    pub(crate) fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    /// The fields of an object inside the request.
    pub(crate) fn nested(map: Map<String, Value>, place: &str) -> Self {
        Self { map, place: Some(place.to_owned()), num_bytes: 0 }
    }

    /// A field's name from the request's top.
    pub(crate) fn path(&self, name: &str) -> String {
        match &self.place {
            Some(place) => format!("{place}.{name}"),
            None => name.to_owned(),
        }
    }

    /// The field's value; null counts as absent everywhere.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(&self.path(name), "a string", &other)),
        }
    }

    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(wrong_type(&self.path(name), "a boolean", &other)),
        }
    }

    /// A whole number in `range`. `1.0` counts as one, as JSON knows one kind of number.
    pub(crate) fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        if !value.is_number() {
            return Err(wrong_type(&self.path(name), "an integer", &value));
        }
        let whole = value.as_i64().or_else(|| {
            value
                .as_f64()
                .filter(|float| float.fract() == 0.0 && float.abs() < 2_f64.powi(53))
                .map(|f| f as i64)
        });
        match whole {
            Some(whole) if range.contains(&whole) => Ok(Some(whole)),
            _ => {
                let message = format!(
                    "expected an integer from {} to {}, got {value}",
                    range.start(),
                    range.end()
                );
                Err(ApiError::invalid(self.path(name), message))
            }
        }
    }

    pub(crate) fn number(&mut self, name: &str) -> Result<Option<f64>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Number(number)) => Ok(number.as_f64()),
            Some(other) => Err(wrong_type(&self.path(name), "a number", &other)),
        }
    }

    /// A number, or `default`; `range` says in words which ones are accepted.
    pub(crate) fn ranged(
        &mut self,
        name: &str,
        default: f64,
        range: &str,
        accepts: impl Fn(f64) -> bool,
    ) -> Result<f64> {
        Ok(self.in_range(name, range, accepts)?.unwrap_or(default))
    }

    /// A number, if there is one.
    pub(crate) fn in_range(
        &mut self,
        name: &str,
        range: &str,
        accepts: impl Fn(f64) -> bool,
    ) -> Result<Option<f64>> {
        match self.number(name)? {
            None => Ok(None),
            Some(value) if accepts(value) => Ok(Some(value)),
            Some(value) => {
                let message = format!("expected a number {range}, got {value}");
                Err(ApiError::invalid(self.path(name), message))
            }
        }
    }

    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(wrong_type(&self.path(name), "an object", &other)),
        }
    }

    pub(crate) fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(wrong_type(&self.path(name), "an array", &other)),
        }
    }

    /// Checks what is left: neutral and ignored fields pass, all others are errors.
    pub(crate) fn finish(mut self) -> Result<()> {
        for (name, value) in std::mem::take(&mut self.map) {
            if value.is_null() || IGNORED.contains(&name.as_str()) {
                continue;
            }
            if let Some((_, neutral)) = NEUTRAL.iter().find(|(known, _)| *known == name) {
                let default_tier = name == "service_tier" && value == "default";
                if !neutral.accepts(&value) && !default_tier {
                    let message = format!(
                        "only {} is supported so far, got {}",
                        neutral.describe(),
                        brief(&value)
                    );
                    return Err(ApiError::unsupported(self.path(&name), message));
                }
            } else if UNSUPPORTED.contains(&name.as_str()) {
                return Err(ApiError::unsupported(self.path(&name), "it is not supported yet"));
            } else {
                return Err(ApiError::unknown(self.path(&brief_text(&name, 100))));
            }
        }
        Ok(())
    }
}

/// A value of a type that the field cannot have.
pub(crate) fn wrong_type(name: &str, expected: &str, value: &Value) -> ApiError {
    ApiError::invalid(name, format!("expected {expected}, got {}", type_name(value)))
}

/// A token id.
pub(crate) fn token_id(name: &str, value: &Value) -> Result<oarlock_types::TokenId> {
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
    id.map(oarlock_types::TokenId).ok_or_else(|| {
        ApiError::invalid(name, format!("expected a token id, got {}", brief(value)))
    })
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A value for an error message, cut where it is long.
fn brief(value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => type_name(value).to_owned(),
        _ => brief_text(&value.to_string(), 60),
    }
}

fn brief_text(text: &str, max_chars: usize) -> String {
    let mut brief: String = text.chars().take(max_chars).collect();
    if brief.len() < text.len() {
        brief.push('…');
    }
    brief
}
