//! A model in one GGUF file, or in several as llama.cpp's `gguf-split` writes them: `NAME-00001-of-00003.gguf`
//! has the metadata of all, and each file has some of the tensors and says which part it is.

use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

use super::header::{Header, TensorTable, parse};
use super::{Keys, Metadata};
use crate::ModelError;
use crate::mapping::{Mapping, map};
use crate::tensors::{StoredTensor, Tensors};

const COUNT: &str = "split.count";
const NUMBER: &str = "split.no";
const TENSORS: &str = "split.tensors.count";
/// Files at most.
const MAX_FILES: u32 = 4096;

/// Metadata and tensors of all files.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) metadata: Metadata,
    pub(crate) tensors: Tensors,
}

impl Model {
    /// Opens the file at `path` and those that belong to it.
    pub(crate) fn open(path: &Path) -> Result<(Self, Vec<(PathBuf, Mapping)>), ModelError> {
        let (first, mapping) = read(path)?;
        let mut files = vec![(path.to_owned(), mapping)];
        let parts = first.metadata.find_u32(COUNT)?.unwrap_or(1);
        let mut model = Self { metadata: first.metadata, tensors: Tensors::new() };
        model.add(first.tensors, path, 0)?;
        if parts <= 1 {
            return Ok((model, files));
        }
        let names = names(path, &model.metadata, parts)?;
        for (number, path) in names.into_iter().enumerate().skip(1) {
            let (header, mapping) = read(&path)?;
            let said = [NUMBER, COUNT].map(|key| header.metadata.find_u32(key).ok().flatten());
            if said != [Some(number as u32), Some(parts)] {
                let reason = format!("it does not say that it is part {} of {parts}", number + 1);
                return Err(ModelError::Format { path, reason });
            }
            model.add(header.tensors, &path, number)?;
            files.push((path, mapping));
        }
        let found = model.tensors.len();
        match model.metadata.find_u32(TENSORS)? {
            Some(expected) if expected as usize != found => {
                let reason = format!("{expected}, but the {parts} files have {found} tensors");
                Err(ModelError::metadata(TENSORS, reason))
            }
            _ => Ok((model, files)),
        }
    }

    /// The model whose only file these bytes are.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Result<Self, ModelError> {
        let path = PathBuf::from("(in memory)");
        let header =
            parse(bytes).map_err(|reason| ModelError::Format { path: path.clone(), reason })?;
        if header.metadata.find_u32(COUNT)?.is_some_and(|parts| parts > 1) {
            return Err(ModelError::metadata(
                COUNT,
                "one of several files, which is no model alone",
            ));
        }
        let mut model = Self { metadata: header.metadata, tensors: Tensors::new() };
        model.add(header.tensors, &path, 0)?;
        Ok(model)
    }

    /// What the model's metadata says; `files` are the bytes of all.
    pub(crate) fn keys<'a>(&'a self, files: Vec<&'a [u8]>) -> Result<Keys<'a>, ModelError> {
        Keys::new(self, files)
    }

    fn add(&mut self, tensors: TensorTable, path: &Path, file: usize) -> Result<(), ModelError> {
        for (name, info) in tensors {
            match self.tensors.entry(name) {
                Entry::Vacant(place) => {
                    let name = place.key().clone();
                    place.insert(StoredTensor { file, name, info });
                }
                Entry::Occupied(other) => {
                    let reason = format!("is in two files, the second is {}", path.display());
                    return Err(ModelError::tensor(other.key(), reason));
                }
            }
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<(Header, Mapping), ModelError> {
    let mapping = map(path)?;
    let header = parse(mapping.bytes())
        .map_err(|reason| ModelError::Format { path: path.to_owned(), reason })?;
    Ok((header, mapping))
}

/// The paths of all parts of a model whose first is at `path`.
fn names(path: &Path, metadata: &Metadata, parts: u32) -> Result<Vec<PathBuf>, ModelError> {
    if parts > MAX_FILES {
        let reason = format!("{parts} files; {MAX_FILES} are possible");
        return Err(ModelError::metadata(COUNT, reason));
    }
    let number = metadata.u32(NUMBER)?;
    let name_of = |prefix: &str, part: u32| format!("{prefix}-{part:05}-of-{parts:05}.gguf");
    let wrong = |reason| ModelError::Format { path: path.to_owned(), reason };
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let ending = name_of("", number.saturating_add(1));
    let Some(prefix) = name.strip_suffix(&ending) else {
        let reason = format!(
            "it is part {} of {parts} and must be called NAME{ending}, beside the others",
            number.saturating_add(1)
        );
        return Err(wrong(reason));
    };
    if number != 0 {
        let reason = format!("it is a part of a model; open the first one, {}", name_of(prefix, 1));
        return Err(wrong(reason));
    }
    Ok((1..=parts).map(|part| path.with_file_name(name_of(prefix, part))).collect())
}
