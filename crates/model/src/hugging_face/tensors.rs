//! Where each tensor of a folder lies: which file, which bytes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

use oarlock_backend::WeightKind;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::Deserialize;

use super::{Names, read_json_as};
use crate::ModelError;
use crate::tensors::{StoredTensor, TensorInfo, Tensors};

/// Files of weights at most.
const MAX_FILES: usize = 4096;
/// Bytes before the header: its length.
const LENGTH_BYTES: usize = 8;

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// The safetensors files of a folder, in order of their names, and which of them the folder's index says
/// that a tensor is in.
pub(crate) struct WeightFiles {
    pub(crate) paths: Vec<PathBuf>,
    /// Names in the file, each with the index of its file; empty where there is no index.
    places: Vec<(String, usize)>,
}

impl WeightFiles {
    /// Refuses tables of tensors that contradict the index.
    pub(crate) fn check(&self, tensors: &Tensors, names: Names) -> Result<(), ModelError> {
        for (name, file) in &self.places {
            let Some(own) = names.to_own(name) else { continue };
            if tensors.get(&own).is_none_or(|tensor| tensor.file != *file) {
                let reason =
                    format!("missing in {}, where {INDEX} has it", self.paths[*file].display());
                return Err(ModelError::tensor(name.clone(), reason));
            }
        }
        Ok(())
    }
}

/// What is read of an index. All else in it is passed over, and takes no memory.
#[derive(Deserialize)]
struct Index {
    /// Of each tensor, the file.
    weight_map: BTreeMap<String, String>,
}

/// Finds a folder's files.
pub(crate) fn weight_files(folder: &Path) -> Result<WeightFiles, ModelError> {
    let path = folder.join(SINGLE);
    let Some(Index { weight_map }) = read_json_as(folder, INDEX)? else {
        if path.is_file() {
            return Ok(WeightFiles { paths: vec![path], places: Vec::new() });
        }
        let reason = "it has neither model.safetensors nor model.safetensors.index.json; --model takes a \
                      GGUF file or a folder with config.json and safetensors files";
        return Err(ModelError::Format { path: folder.to_owned(), reason: reason.to_owned() });
    };
    let wrong = |reason: String| ModelError::Format { path: folder.join(INDEX), reason };
    let mut files: BTreeMap<&str, Vec<&String>> = BTreeMap::new();
    for (tensor, file) in &weight_map {
        if !is_plain(file) {
            return Err(wrong(format!("weight_map.{tensor}: not a file's name")));
        }
        files.entry(file).or_default().push(tensor);
    }
    if files.is_empty() || files.len() > MAX_FILES {
        return Err(wrong(format!("{} files; 1 to {MAX_FILES} are possible", files.len())));
    }
    if path.is_file() && !files.contains_key(SINGLE) {
        // Nothing says which of the two is the model.
        return Err(wrong(format!("it does not name {SINGLE}, which is there, too: remove one")));
    }
    let paths = files.keys().map(|name| folder.join(name)).collect();
    let places = files.values().enumerate();
    let places = places.flat_map(|(file, names)| names.iter().map(move |name| (*name, file)));
    let places = places.map(|(name, file)| (name.clone(), file)).collect();
    Ok(WeightFiles { paths, places })
}

/// A name inside of the folder, without a path.
fn is_plain(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|own| own == name)
}

/// Adds the tensors of a file, whose bytes these are.
pub(crate) fn tensor_table(
    bytes: &[u8],
    file: usize,
    names: Names,
    tensors: &mut Tensors,
) -> Result<(), String> {
    let (header_len, metadata) =
        SafeTensors::read_metadata(bytes).map_err(|error| match error {
            SafeTensorError::MetadataIncompleteBuffer => {
                "it is truncated, or has bytes that belong to no tensor".to_owned()
            }
            error => format!("its safetensors header is damaged: {error}"),
        })?;
    let data_start = LENGTH_BYTES + header_len;
    for (name, info) in metadata.tensors() {
        let Some(own) = names.to_own(&name) else { continue };
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
        // Only experts of a layer in one tensor have three dimensions.
        if info.shape.len() > 2 && !own.contains("_exps.") {
            return Err(format!("tensor {name}: its shape has {} dimensions", info.shape.len()));
        }
        let (columns, outer) = info.shape.split_last().unwrap_or((&1, &[]));
        // Checked by the reader: the product of all fits.
        let rows = outer.iter().product();
        if rows == 0 || *columns == 0 {
            return Err(format!("tensor {name}: its shape {:?} is empty", info.shape));
        }
        let range = data_start + info.data_offsets.0..data_start + info.data_offsets.1;
        let info = TensorInfo { kind, rows, columns: *columns, range };
        match tensors.entry(own) {
            Entry::Vacant(place) => place.insert(StoredTensor { file, name, info }),
            Entry::Occupied(other) if other.get().name == name => {
                return Err(format!("tensor {name} is in two files"));
            }
            Entry::Occupied(other) => {
                return Err(format!("tensors {} and {name} are the same one", other.get().name));
            }
        };
    }
    Ok(())
}
