//! Folders of the Hugging Face hub: `config.json`, one or several safetensors files, and, where the
//! model has texts, `tokenizer.json` and its companions.
//!
//! Tensors go by the names that this crate uses everywhere (GGUF's), translated once when the folder is
//! opened; messages name them as the file does.

mod card;
mod config;
mod names;
mod tensors;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::ModelError;

pub(crate) use card::card;
pub(crate) use config::{Config, spec};
pub(crate) use names::{to_file, to_own};
pub(crate) use tensors::{Tensors, tensor_table, weight_files};

/// Bytes of a JSON file at most: the largest tokenizers have some 35 MB.
const MAX_JSON_BYTES: u64 = 256 << 20;

/// A text file of the folder; `None` where there is none of that name.
fn read_text(folder: &Path, name: &str) -> Result<Option<String>, ModelError> {
    let path = folder.join(name);
    let io_error = |source| ModelError::Io { path: path.clone(), source };
    match std::fs::metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(error)),
        Ok(info) if info.len() > MAX_JSON_BYTES => {
            let reason = format!("{} bytes are more than {MAX_JSON_BYTES}", info.len());
            return Err(ModelError::Format { path, reason });
        }
        Ok(_) => {}
    }
    std::fs::read_to_string(&path).map(Some).map_err(io_error)
}

/// A JSON object of the folder; `None` where there is no file of that name.
fn read_json(folder: &Path, name: &str) -> Result<Option<Value>, ModelError> {
    let Some(text) = read_text(folder, name)? else { return Ok(None) };
    let path = || -> PathBuf { folder.join(name) };
    match serde_json::from_str(&text) {
        Ok(value @ Value::Object(_)) => Ok(Some(value)),
        Ok(_) => {
            Err(ModelError::Format { path: path(), reason: "it is no JSON object".to_owned() })
        }
        Err(error) => Err(ModelError::Format { path: path(), reason: error.to_string() }),
    }
}
