//! Where each tensor of a folder lies: which file, which bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use oarlock_backend::WeightKind;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::{read_json, to_own};
use crate::ModelError;
use crate::gguf::TensorInfo;

/// Tensors by our name.
pub(crate) type Tensors = BTreeMap<String, FolderTensor>;

/// One tensor of a folder.
pub(crate) struct FolderTensor {
    /// Index of its file.
    pub(crate) file: usize,
    /// Its name there.
    pub(crate) name: String,
    pub(crate) info: TensorInfo,
}

/// Files of weights at most.
const MAX_FILES: usize = 4096;
/// Bytes before the header: its length.
const LENGTH_BYTES: usize = 8;

/// The safetensors files of a folder, in order of their names.
pub(crate) fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    const INDEX: &str = "model.safetensors.index.json";
    let Some(index) = read_json(folder, INDEX)? else {
        let path = folder.join("model.safetensors");
        if path.is_file() {
            return Ok(vec![path]);
        }
        let reason = "it has neither model.safetensors nor model.safetensors.index.json; --model takes a \
                      GGUF file or a folder with config.json and safetensors files";
        return Err(ModelError::Format { path: folder.to_owned(), reason: reason.to_owned() });
    };
    let wrong = |reason: String| ModelError::Format { path: folder.join(INDEX), reason };
    let map = index.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| wrong("weight_map: not an object".to_owned()))?;
    let mut names = BTreeSet::new();
    for (tensor, file) in map {
        let file = file.as_str().filter(|name| is_plain(name));
        let file = file.ok_or_else(|| wrong(format!("weight_map.{tensor}: not a file's name")))?;
        names.insert(file);
    }
    if names.is_empty() || names.len() > MAX_FILES {
        return Err(wrong(format!("{} files; 1 to {MAX_FILES} are possible", names.len())));
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// A name inside of the folder, without a path.
fn is_plain(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|own| own == name)
}

/// Adds the tensors of a file, whose bytes these are.
pub(crate) fn tensor_table(bytes: &[u8], file: usize, tensors: &mut Tensors) -> Result<(), String> {
    let (header_len, metadata) = SafeTensors::read_metadata(bytes)
        .map_err(|error| format!("its safetensors header is damaged: {error}"))?;
    let data_start = LENGTH_BYTES + header_len;
    for (name, info) in metadata.tensors() {
        let kind = match info.dtype {
            Dtype::F32 => WeightKind::F32,
            Dtype::F16 => WeightKind::F16,
            Dtype::BF16 => WeightKind::Bf16,
            other => {
                return Err(format!(
                    "tensor {name}: type {other:?} is not supported (F32, F16, BF16 are)"
                ));
            }
        };
        let (columns, outer) = info.shape.split_last().unwrap_or((&1, &[]));
        // Checked by the reader: the product of all fits.
        let rows = outer.iter().product();
        if rows == 0 || *columns == 0 {
            return Err(format!("tensor {name}: its shape {:?} is empty", info.shape));
        }
        let range = data_start + info.data_offsets.0..data_start + info.data_offsets.1;
        let info = TensorInfo { kind, rows, columns: *columns, range };
        let twice = format!("tensor {name} is in two files");
        if tensors.insert(to_own(&name), FolderTensor { file, name, info }).is_some() {
            return Err(twice);
        }
    }
    Ok(())
}
