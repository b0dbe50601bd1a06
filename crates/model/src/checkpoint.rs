//! A weight file on disk, opened and checked, and the way from it to a running model.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use oarlock_backend::Backend;
use oarlock_types::{LoadProgress, ModelCard};

use crate::gguf::{self, Header, TensorInfo};
use crate::mapping::Mapping;
use crate::weights::WeightLoader;
use crate::{Decoder, ModelError, card, families, hash};

/// An opened weight file.
pub struct Checkpoint {
    path: PathBuf,
    mapping: Mapping,
    header: Header,
}

impl Checkpoint {
    /// Maps a GGUF file and checks its header.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let io_error = |source| ModelError::Io { path: path.to_owned(), source };
        let info = std::fs::metadata(path).map_err(io_error)?;
        if !info.is_file() {
            let reason = "it is not a regular file; --model takes a .gguf file".to_owned();
            return Err(ModelError::Format { path: path.to_owned(), reason });
        }
        if info.len() == 0 {
            return Err(ModelError::Format {
                path: path.to_owned(),
                reason: "it is empty".to_owned(),
            });
        }
        let mapping = Mapping::open(path).map_err(io_error)?;
        let header = gguf::parse(mapping.bytes())
            .map_err(|reason| ModelError::Format { path: path.to_owned(), reason })?;
        Ok(Self { path: path.to_owned(), mapping, header })
    }

    /// What the gateway needs to know of the model.
    pub fn card(&self) -> Result<ModelCard, ModelError> {
        card::read(&self.header)
    }

    /// Hash of the file, hexadecimal. Ends early, with an error, once `stop` is set.
    pub fn hash(&self, stop: &AtomicBool) -> Result<String, ModelError> {
        let hash = hash::hash(self.mapping.file(), stop);
        hash.map_err(|source| ModelError::Io { path: self.path.clone(), source })
    }

    /// Keys and values that one token puts into the cache, over all layers, in elements.
    pub fn kv_elements_per_token(&self) -> Result<usize, ModelError> {
        let spec = families::spec(&self.header.metadata)?;
        Ok(spec.num_layers * 2 * spec.num_kv_heads * spec.head_dim)
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    pub(crate) fn tensor(&self, name: &str) -> Option<(&TensorInfo, &[u8])> {
        let info = self.header.tensors.get(name)?;
        Some((info, &self.mapping.bytes()[info.range.clone()]))
    }

    pub(crate) fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    /// Bytes of all tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.header.tensors.values().map(|info| info.range.len() as u64).sum()
    }

    /// Drops the mapped pages of a tensor that was packed; returns its size.
    pub(crate) fn release(&self, name: &str) -> u64 {
        let Some(info) = self.header.tensors.get(name) else { return 0 };
        self.mapping.drop_pages(info.range.clone());
        info.range.len() as u64
    }
}

/// What the gateway needs to know of a model whose whole file is in memory.
pub fn inspect(bytes: &[u8]) -> Result<ModelCard, ModelError> {
    let path = PathBuf::from("(in memory)");
    let header = gguf::parse(bytes).map_err(|reason| ModelError::Format { path, reason })?;
    card::read(&header)
}

/// Packs all weights of `checkpoint` into `backend` and plans a KV cache of `num_blocks` blocks.
/// `progress` hears after each tensor.
pub fn load<B: Backend>(
    checkpoint: &Checkpoint,
    backend: &mut B,
    num_blocks: usize,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Decoder<B>, ModelError> {
    let spec = families::spec(&checkpoint.header().metadata)?;
    let mut loader = WeightLoader::new(checkpoint, progress);
    let decoder = Decoder::load(spec, &mut loader, backend, num_blocks)?;
    loader.finish()?;
    Ok(decoder)
}
