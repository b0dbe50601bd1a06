//! The model card of a folder: tokenizer, chat template, special tokens.

use std::path::Path;

use oarlock_types::{ModelCard, SamplingDefaults, TokenId, TokenizerSource};
use serde_json::Value;

use super::text_files::{TokenizerConfig, first_of_template};
use super::{Config, read_json, read_json_as, read_text};
use crate::ModelError;
use crate::spec::DecoderSpec;

/// What the gateway needs to know of a folder's model. `num_parameters` are counted by the caller.
pub(crate) fn card(
    folder: &Path,
    config: &Config,
    spec: &DecoderSpec,
    num_parameters: u64,
) -> Result<ModelCard, ModelError> {
    let architecture = config.model_type()?.to_owned();
    // `.` and `..` have names, too.
    let absolute = std::fs::canonicalize(folder)
        .map_err(|source| ModelError::Io { path: folder.to_owned(), source })?;
    let name = absolute.file_name().map(|name| name.to_string_lossy().into_owned());
    let generation = read_json(folder, "generation_config.json")?.unwrap_or_default();
    let tokenizer_config: TokenizerConfig =
        read_json_as(folder, "tokenizer_config.json")?.unwrap_or_default();
    let mut eos_token_ids =
        ids("generation_config.json", "eos_token_id", generation.get("eos_token_id"))?;
    eos_token_ids.extend(ids("config.json", "eos_token_id", config.get("eos_token_id"))?);
    eos_token_ids.sort_unstable();
    eos_token_ids.dedup();
    let tokenizer = read_text(folder, "tokenizer.json")?;
    let template = tokenizer.as_deref().and_then(first_of_template);
    let configured = ids("config.json", "bos_token_id", config.get("bos_token_id"))?;
    // Where the configuration is silent, the tokenizer's own template says it.
    let add_bos = tokenizer_config.add_bos_token.0.unwrap_or(template.is_some());
    let bos_token_id = template.filter(|_| add_bos).or(configured.first().copied());
    if add_bos && bos_token_id.is_none() {
        let reason =
            "true, but neither config.json's bos_token_id nor tokenizer.json says which token";
        return Err(ModelError::metadata("tokenizer_config.json: add_bos_token", reason));
    }
    let own_template = read_text(folder, "chat_template.jinja")?;
    Ok(ModelCard {
        name: name.unwrap_or_else(|| architecture.clone()),
        architecture,
        vocab_size: spec.vocab_size as u32,
        context_length: spec.context_length as u32,
        num_parameters,
        tokenizer: tokenizer.map(TokenizerSource::Json),
        chat_template: own_template.or(tokenizer_config.chat_template.0),
        eos_token_ids,
        bos_token_id,
        add_bos,
        sampling_defaults: sampling_defaults(&generation)?,
    })
}

/// What `generation_config.json` says of how tokens are drawn.
fn sampling_defaults(generation: &Value) -> Result<SamplingDefaults, ModelError> {
    let wrong = |field: &str, value: &Value, range: &str| {
        ModelError::metadata(
            format!("generation_config.json: {field}"),
            format!("{value} is not {range}; correct the field or remove it"),
        )
    };
    let float = |field: &str, least: f32, most: f32| {
        let Some(value) = generation.get(field).filter(|value| !value.is_null()) else {
            return Ok(None);
        };
        let number = value.as_f64().map(|number| number as f32);
        let number = number.filter(|number| (least..=most).contains(number));
        number.map(Some).ok_or_else(|| wrong(field, value, &format!("from {least} to {most}")))
    };
    let count = |field: &str| match generation.get(field) {
        None | Some(Value::Null) => Ok(None),
        // None are left out, as with 0.
        Some(value) if value.as_i64() == Some(-1) => Ok(Some(0)),
        Some(value) => {
            let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
            number.map(Some).ok_or_else(|| wrong(field, value, "a number of tokens"))
        }
    };
    Ok(SamplingDefaults {
        temperature: float("temperature", 0.0, 2.0)?,
        top_k: count("top_k")?,
        top_p: float("top_p", f32::MIN_POSITIVE, 1.0)?,
        min_p: float("min_p", 0.0, 1.0)?,
        repetition_penalty: float("repetition_penalty", 0.01, 100.0)?,
        max_tokens: count("max_new_tokens")?.filter(|tokens| *tokens > 0),
    })
}

/// One id or a list of them.
fn ids(file: &str, field: &str, value: Option<&Value>) -> Result<Vec<TokenId>, ModelError> {
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.map(TokenId).ok_or_else(|| {
            ModelError::metadata(format!("{file}: {field}"), format!("{value} is no token id"))
        })
    };
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(id).collect(),
        Some(one) => Ok(vec![id(one)?]),
    }
}
