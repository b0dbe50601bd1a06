//! Folders of the Hugging Face hub: `config.json`, one or several safetensors files, and, where the
//! model has texts, `tokenizer.json` and its companions.
//!
//! Tensors go by the names that this crate uses everywhere (GGUF's), translated once when the folder is
//! opened; messages name them as the file does.

mod card;
mod config;
mod names;
mod rope;
mod tensors;
#[cfg(test)]
mod tests;
mod text_files;

use std::io::Read as _;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::ModelError;

pub(crate) use card::card;
pub(crate) use config::Config;
pub(crate) use names::Names;
pub(crate) use rope::of_layers as rope_of_layers;
pub(crate) use tensors::{tensor_table, weight_files};

/// The files of a folder beside its weights that decide what its answers are and where they end.
pub(crate) const TEXT_FILES: [&str; 5] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
];

/// Bytes of a text file at most; an index of weights with thousands of experts has some 10 MB.
const MAX_TEXT_BYTES: u64 = 32 << 20;
/// Bytes of a configuration at most: some have a hundred kilobytes. As a tree of values, JSON may take a hundred times
/// its bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
/// The largest tokenizers have some 35 MB.
const MAX_TOKENIZER_BYTES: u64 = 128 << 20;

/// A text file of the folder; `None` where there is none of that name.
fn read_text(folder: &Path, name: &str) -> Result<Option<String>, ModelError> {
    let path = folder.join(name);
    let limit = match name {
        "tokenizer.json" => MAX_TOKENIZER_BYTES,
        "config.json" | "generation_config.json" => MAX_CONFIG_BYTES,
        _ => MAX_TEXT_BYTES,
    };
    let io_error = |source| ModelError::Io { path: path.clone(), source };
    let wrong = |reason| Err(ModelError::Format { path: path.clone(), reason });
    match std::fs::metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(error)),
        // What is opened could block, or have no end.
        Ok(info) if !info.is_file() => return wrong("it is not a regular file".to_owned()),
        Ok(_) => {}
    }
    let mut text = String::new();
    let file = std::fs::File::open(&path).map_err(io_error)?;
    file.take(limit + 1).read_to_string(&mut text).map_err(io_error)?;
    if text.len() as u64 > limit {
        return wrong(format!("it has more than {limit} bytes"));
    }
    Ok(Some(text))
}

/// A JSON object of the folder; `None` where there is no file of that name.
fn read_json(folder: &Path, name: &str) -> Result<Option<Value>, ModelError> {
    match read_json_as(folder, name)? {
        None => Ok(None),
        Some(value @ Value::Object(_)) => Ok(Some(value)),
        Some(_) => {
            let reason = "it is no JSON object".to_owned();
            Err(ModelError::Format { path: folder.join(name), reason })
        }
    }
}

/// A JSON file of the folder; `None` where there is no file of that name.
fn read_json_as<T: DeserializeOwned>(folder: &Path, name: &str) -> Result<Option<T>, ModelError> {
    let Some(text) = read_text(folder, name)? else { return Ok(None) };
    let wrong = |reason: String| ModelError::Format { path: folder.join(name), reason };
    // A list would do for the fields of a structure, in order.
    if text.trim_start().starts_with('[') {
        return Err(wrong("it is no JSON object".to_owned()));
    }
    serde_json::from_str(&text).map(Some).map_err(|error| wrong(error.to_string()))
}
