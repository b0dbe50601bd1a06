//! A model on disk, opened and checked, and the way from it to a running one.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use oarlock_backend::{Backend, WeightKind};
use oarlock_collective::Collective;
use oarlock_types::{LoadProgress, ModelCard, Shard};

use crate::families::DecoderSpec;
use crate::gguf::{self, Header, TensorInfo};
use crate::hugging_face::{self, Config, Tensors};
use crate::mapping::Mapping;
use crate::rope::RopeFrequencies;
use crate::sharding::{RankRanges, check_degree, degrees};
use crate::weights::WeightLoader;
use crate::{Decoder, ModelError, card, families, hash};

/// An opened model: a GGUF file, or a folder of the Hugging Face hub.
pub struct Checkpoint {
    path: PathBuf,
    /// Files of weights, mapped.
    files: Vec<(PathBuf, Mapping)>,
    source: Source,
    spec: DecoderSpec,
}

enum Source {
    Gguf(Header),
    Folder { config: Config, tensors: Tensors },
}

/// One tensor.
#[derive(Clone, Copy)]
pub(crate) struct Tensor<'a> {
    /// As the file calls it.
    pub(crate) name: &'a str,
    pub(crate) info: &'a TensorInfo,
    pub(crate) data: &'a [u8],
}

impl Checkpoint {
    /// Maps a model's weights and checks its headers.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let info = std::fs::metadata(path)
            .map_err(|source| ModelError::Io { path: path.to_owned(), source })?;
        if info.is_dir() { Self::open_folder(path) } else { Self::open_gguf(path) }
    }

    /// Has angles computed from frequencies of this precision.
    #[must_use]
    pub fn with_rope_frequencies(mut self, frequencies: RopeFrequencies) -> Self {
        self.spec.rope_frequencies = frequencies;
        self
    }

    fn open_gguf(path: &Path) -> Result<Self, ModelError> {
        let mapping = map(path)?;
        let header = gguf::parse(mapping.bytes())
            .map_err(|reason| ModelError::Format { path: path.to_owned(), reason })?;
        let spec = families::spec(&header.metadata)?;
        let files = vec![(path.to_owned(), mapping)];
        Ok(Self { path: path.to_owned(), files, source: Source::Gguf(header), spec })
    }

    fn open_folder(path: &Path) -> Result<Self, ModelError> {
        let config = Config::read(path)?;
        let spec = hugging_face::spec(&config)?;
        let mut files = Vec::new();
        let mut tensors = Tensors::new();
        let weight_files = hugging_face::weight_files(path)?;
        for (index, file) in weight_files.paths.iter().enumerate() {
            let mapping = map(file)?;
            hugging_face::tensor_table(mapping.bytes(), index, &mut tensors)
                .map_err(|reason| ModelError::Format { path: file.clone(), reason })?;
            files.push((file.clone(), mapping));
        }
        weight_files.check(&tensors)?;
        Ok(Self { path: path.to_owned(), files, source: Source::Folder { config, tensors }, spec })
    }

    /// What the gateway needs to know of the model.
    pub fn card(&self) -> Result<ModelCard, ModelError> {
        match &self.source {
            Source::Gguf(header) => card::read(header),
            Source::Folder { config, tensors } => {
                let num_parameters = tensors.values().map(|tensor| tensor.info.parameters()).sum();
                hugging_face::card(&self.path, config, &self.spec, num_parameters)
            }
        }
    }

    /// Hash of all weights, hexadecimal; of a folder also of the files that decide what its answers are
    /// and where they end. Ends early, with an
    /// error, once `stop` is set. `progress` hears of every mebibyte.
    pub fn hash(&self, stop: &AtomicBool, progress: &dyn Fn()) -> Result<String, ModelError> {
        let one = |path: &Path, file: &std::fs::File| {
            let hash = hash::hash(file, stop, progress);
            hash.map_err(|source| ModelError::Io { path: path.to_owned(), source })
        };
        if let (Source::Gguf(_), [(path, mapping)]) = (&self.source, &self.files[..]) {
            return one(path, mapping.file());
        }
        let mut hashes = String::new();
        for name in hugging_face::TEXT_FILES {
            let path = self.path.join(name);
            match std::fs::File::open(&path) {
                Ok(file) => hashes.extend([name, " ", &one(&path, &file)?, " "]),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(ModelError::Io { path, source }),
            }
        }
        for (path, mapping) in &self.files {
            hashes.push_str(&one(path, mapping.file())?);
        }
        Ok(blake3::hash(hashes.as_bytes()).to_hex().to_string())
    }

    /// Keys and values that one token puts into a rank's cache, over all layers, in elements.
    pub fn kv_elements_per_token(&self, shard: Shard) -> usize {
        let kv_heads = RankRanges::new(&self.spec, shard).kv_heads.len();
        self.spec.num_layers * 2 * kv_heads * self.spec.head_dim
    }

    /// The tensor-parallel degrees that the model allows, ascending.
    pub fn tensor_parallel_degrees(&self) -> Vec<u32> {
        let kind = |layer: usize, part: &str| {
            self.tensor(&format!("blk.{layer}.{part}.weight")).map(|tensor| tensor.info.kind)
        };
        // A tensor that is missing is not what makes a degree impossible; see `check_shard`.
        let kinds = (0..self.spec.num_layers)
            .filter_map(|layer| Some((kind(layer, "attn_output")?, kind(layer, "ffn_down")?)));
        degrees(&self.spec, kinds)
    }

    /// Refuses a part of a group of a degree that the model does not allow, and a model without the
    /// layers that decide it.
    pub fn check_shard(&self, shard: Shard) -> Result<(), ModelError> {
        for part in ["attn_output", "ffn_down"] {
            for layer in 0..self.spec.num_layers {
                let name = format!("blk.{layer}.{part}.weight");
                if self.tensor(&name).is_none() {
                    return Err(ModelError::tensor(self.name_in_file(&name), "missing"));
                }
            }
        }
        check_degree(shard, &self.tensor_parallel_degrees())
    }

    /// A tensor by this crate's name for it.
    pub(crate) fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        let (file, (name, info)) = match &self.source {
            Source::Gguf(header) => (0, header.tensors.get_key_value(name)?),
            Source::Folder { tensors, .. } => {
                let tensor = tensors.get(name)?;
                (tensor.file, (&tensor.name, &tensor.info))
            }
        };
        Some(Tensor { name, info, data: &self.files[file].1.bytes()[info.range.clone()] })
    }

    /// What the file calls a tensor.
    pub(crate) fn name_in_file(&self, name: &str) -> String {
        match &self.source {
            Source::Gguf(_) => name.to_owned(),
            Source::Folder { .. } => hugging_face::to_file(name),
        }
    }

    /// This crate's names of all tensors.
    pub(crate) fn tensor_names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match &self.source {
            Source::Gguf(header) => Box::new(header.tensors.keys().map(String::as_str)),
            Source::Folder { tensors, .. } => Box::new(tensors.keys().map(String::as_str)),
        }
    }

    /// Bytes of the tensors that one rank takes.
    pub fn shard_bytes(&self, shard: Shard) -> u64 {
        self.sum_of_shard(shard, &|_, info| info.range.len() as u64)
    }

    /// Bytes that one rank's part takes once it is packed. `packed_bits` says what a value of a linear layer
    /// becomes; tables and vectors stay as they are stored.
    pub fn packed_shard_bytes(
        &self,
        shard: Shard,
        packed_bits: &dyn Fn(WeightKind) -> Option<u64>,
    ) -> u64 {
        let tied = self.spec.tied_output.unwrap_or_else(|| self.tensor("output.weight").is_none());
        self.sum_of_shard(shard, &|name, info| {
            let stored = info.range.len() as u64;
            let packed = packed_bits(info.kind).map_or(stored, |bits| info.parameters() * bits / 8);
            match name {
                "token_embd.weight" if tied => stored + packed,
                "token_embd.weight" => stored,
                "output.weight" if tied => 0,
                _ if info.rows == 1 => stored,
                _ => packed,
            }
        })
    }

    /// The sum of `bytes` over all tensors, each cut to what one rank takes of it.
    fn sum_of_shard(&self, shard: Shard, bytes: &dyn Fn(&str, &TensorInfo) -> u64) -> u64 {
        let ranges = RankRanges::new(&self.spec, shard);
        let share = |name: &str| {
            let (own, whole) = match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'))
            {
                None => match name {
                    "token_embd.weight" | "output.weight" => {
                        (ranges.own_vocabulary().len(), self.spec.vocab_size)
                    }
                    _ => (1, 1),
                },
                Some((_, part)) => match part.split_once('.').map_or(part, |(part, _)| part) {
                    "attn_q" | "attn_output" => (ranges.heads.len(), self.spec.num_heads),
                    "attn_k" | "attn_v" => (ranges.kv_heads.len(), self.spec.num_kv_heads),
                    "ffn_gate" | "ffn_up" | "ffn_down" => {
                        (ranges.feed_forward.len(), self.spec.feed_forward)
                    }
                    _ => (1, 1),
                },
            };
            let bytes = self.tensor(name).map_or(0, |tensor| bytes(name, tensor.info));
            (u128::from(bytes) * own as u128 / whole as u128) as u64
        };
        self.tensor_names().map(share).sum()
    }

    /// Drops the mapped pages of a tensor that was packed.
    pub(crate) fn release(&self, name: &str) {
        let (file, info) = match &self.source {
            Source::Gguf(header) => (0, header.tensors.get(name)),
            Source::Folder { tensors, .. } => {
                let tensor = tensors.get(name);
                (tensor.map_or(0, |tensor| tensor.file), tensor.map(|tensor| &tensor.info))
            }
        };
        if let Some(info) = info {
            self.files[file].1.drop_pages(info.range.clone());
        }
    }
}

/// Maps a file of weights.
fn map(path: &Path) -> Result<Mapping, ModelError> {
    let io_error = |source| ModelError::Io { path: path.to_owned(), source };
    let info = std::fs::metadata(path).map_err(io_error)?;
    let wrong =
        |reason: &str| Err(ModelError::Format { path: path.to_owned(), reason: reason.to_owned() });
    if !info.is_file() {
        return wrong("it is neither a regular file nor a folder");
    }
    if info.len() == 0 {
        return wrong("it is empty");
    }
    Mapping::open(path).map_err(io_error)
}

/// What the gateway needs to know of a model whose whole GGUF file is in memory.
pub fn inspect(bytes: &[u8]) -> Result<ModelCard, ModelError> {
    let path = PathBuf::from("(in memory)");
    let header = gguf::parse(bytes).map_err(|reason| ModelError::Format { path, reason })?;
    card::read(&header)
}

/// Packs the weights of `checkpoint` that this rank of the `collective` takes into `backend`, and plans a
/// KV cache of `num_blocks` blocks. `progress` hears after each tensor.
pub fn load<B: Backend>(
    checkpoint: &Checkpoint,
    backend: &mut B,
    collective: Box<dyn Collective<B>>,
    num_blocks: usize,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Decoder<B>, ModelError> {
    let shard = collective.shard();
    checkpoint.check_shard(shard)?;
    let spec = checkpoint.spec.clone();
    let ranges = RankRanges::new(&spec, shard);
    let mut loader = WeightLoader::new(checkpoint, checkpoint.shard_bytes(shard), progress);
    let decoder = Decoder::load(spec, ranges, &mut loader, backend, collective, num_blocks)?;
    loader.finish()?;
    Ok(decoder)
}
