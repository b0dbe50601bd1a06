//! The model card of a folder: tokenizer, chat template, special tokens.

use std::path::Path;

use oarlock_types::{ModelCard, TokenId, TokenizerSource};
use serde_json::Value;

use super::{Config, read_json, read_text};
use crate::ModelError;
use crate::families::DecoderSpec;

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
    let tokenizer_config = read_json(folder, "tokenizer_config.json")?.unwrap_or_default();
    let mut eos_token_ids =
        ids("generation_config.json", "eos_token_id", generation.get("eos_token_id"))?;
    eos_token_ids.extend(ids("config.json", "eos_token_id", config.get("eos_token_id"))?);
    eos_token_ids.sort_unstable();
    eos_token_ids.dedup();
    let bos = ids("config.json", "bos_token_id", config.get("bos_token_id"))?;
    Ok(ModelCard {
        name: name.unwrap_or_else(|| architecture.clone()),
        architecture,
        vocab_size: spec.vocab_size as u32,
        context_length: spec.context_length as u32,
        num_parameters,
        tokenizer: read_text(folder, "tokenizer.json")?.map(TokenizerSource::Json),
        chat_template: chat_template(folder, &tokenizer_config)?,
        eos_token_ids,
        bos_token_id: bos.first().copied(),
        add_bos: adds_bos(&tokenizer_config),
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

/// A file of its own, or a field of the tokenizer's configuration: one template, or several of which
/// one is called `default`.
fn chat_template(folder: &Path, tokenizer_config: &Value) -> Result<Option<String>, ModelError> {
    if let Some(text) = read_text(folder, "chat_template.jinja")? {
        return Ok(Some(text));
    }
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Ok(match tokenizer_config.get("chat_template") {
        Some(Value::Array(templates)) => templates
            .iter()
            .find(|template| template.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|template| template.get("template").and_then(text)),
        Some(one) => text(one),
        None => None,
    })
}

/// Whether a plain prompt begins with the bos token. Where the configuration is silent, it does not:
/// the tokenizers of both families then say so themselves.
fn adds_bos(tokenizer_config: &Value) -> bool {
    tokenizer_config.get("add_bos_token").and_then(Value::as_bool).unwrap_or(false)
}
