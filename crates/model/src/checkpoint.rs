//! A model on disk, opened and checked, and the way from it to a running one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use oarlock_backend::{Backend, InnerSplit, WeightKind, WeightView};
use oarlock_collective::Collective;
use oarlock_types::{LoadProgress, ModelCard, Shard};

use crate::buffers::BufferType;
use crate::families::Family;
use crate::gguf;
use crate::hugging_face::{self, Config, Names};
use crate::layout::{Place, Role, layout};
use crate::mapping::{Mapping, map};
use crate::quantization::{Quantization, Quantized};
use crate::sharding::{RankRanges, attention_split, check_degree, degrees, feed_forward_split};
use crate::spec::DecoderSpec;
use crate::tensors::{StoredTensor, TensorInfo, Tensors, num_parameters};
use crate::weights::WeightLoader;
use crate::{Decoder, HashCache, ModelError, card, families, hash};

/// An opened model: a GGUF file or several, or a folder of the Hugging Face hub.
pub struct Checkpoint {
    path: PathBuf,
    /// Files of weights, mapped.
    files: Vec<(PathBuf, Mapping)>,
    source: Source,
    pub(crate) family: &'static Family,
    pub(crate) spec: DecoderSpec,
    quantization: Quantization,
}

/// Tensors of GGUF files that belong to the metadata.
const ROPE_FACTORS: [&str; 3] =
    ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

pub(crate) enum Source {
    Gguf(gguf::Model),
    Folder { config: Config, tensors: Tensors, names: Names },
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
    /// Maps a model's weights and checks its headers: all tensors are there, of the shapes that the model has,
    /// and no others.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let info = std::fs::metadata(path)
            .map_err(|source| ModelError::Io { path: path.to_owned(), source })?;
        let mut opened =
            if info.is_dir() { Self::open_folder(path) } else { Self::open_gguf(path) }?;
        opened.resolve_output()?;
        opened.check_tensors()?;
        Ok(opened)
    }

    /// Has buffers rounded to this type.
    #[must_use]
    pub fn with_buffers(mut self, buffers: BufferType) -> Self {
        self.spec.buffer_type = match (buffers, &self.source) {
            (BufferType::Stored, Source::Folder { config, .. }) => config.stored_type(),
            (BufferType::Stored, Source::Gguf(_)) => BufferType::Float32,
            (buffers, _) => buffers,
        };
        self
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// Files of weights.
    pub(crate) fn num_files(&self) -> usize {
        self.files.len()
    }

    /// What buffers are rounded to.
    pub fn buffers(&self) -> BufferType {
        self.spec.buffer_type
    }

    /// Has linear layers that are stored as floats quantized while they are loaded.
    #[must_use]
    pub fn with_quantization(mut self, quantization: Quantization) -> Self {
        self.quantization = quantization;
        self
    }

    fn open_gguf(path: &Path) -> Result<Self, ModelError> {
        let (model, files) = gguf::Model::open(path)?;
        let bytes = files.iter().map(|(_, mapping)| mapping.bytes()).collect();
        let (family, spec) = families::of_gguf(&model.keys(bytes)?)?;
        Ok(Self {
            path: path.to_owned(),
            files,
            source: Source::Gguf(model),
            family,
            spec,
            quantization: Quantization::None,
        })
    }

    fn open_folder(path: &Path) -> Result<Self, ModelError> {
        let config = Config::read(path)?;
        let (family, spec) = families::of_config(&config)?;
        let names = Names(family);
        let mut files = Vec::new();
        let mut tensors = Tensors::new();
        let weight_files = hugging_face::weight_files(path)?;
        for (index, file) in weight_files.paths.iter().enumerate() {
            let mapping = map(file)?;
            hugging_face::tensor_table(mapping.bytes(), index, names, &mut tensors)
                .map_err(|reason| ModelError::Format { path: file.clone(), reason })?;
            files.push((file.clone(), mapping));
        }
        weight_files.check(&tensors, names)?;
        Ok(Self {
            path: path.to_owned(),
            files,
            source: Source::Folder { config, tensors, names },
            family,
            spec,
            quantization: Quantization::None,
        })
    }

    /// An output layer beside an embedding that the configuration shares with it is a copy, or else the
    /// configuration is wrong: as in transformers, the tensor counts more.
    fn resolve_output(&mut self) -> Result<(), ModelError> {
        let tensors = (self.tensor("output.weight"), self.tensor("token_embd.weight"));
        let (Some(output), Some(embedding)) = tensors else { return Ok(()) };
        if self.spec.tied_output != Some(true) {
            return Ok(());
        }
        Self::check_shape(&output, (self.spec.vocab_size, self.spec.hidden))?;
        if output.info.kind != embedding.info.kind || output.data != embedding.data {
            self.spec.tied_output = Some(false);
        }
        Ok(())
    }

    /// What decides the bits of a server that has sequences of so many positions, beside the files: none, or a
    /// word for the fingerprint.
    pub fn variant(&self, positions: usize) -> Option<&'static str> {
        let ropes =
            [Some(&self.spec.rope), self.spec.windowed.as_ref().and_then(|w| w.rope.as_ref())];
        ropes.into_iter().flatten().any(|rope| rope.is_long(positions)).then_some("longrope")
    }

    /// Every tensor that the model has is there and has its shape, and there are no others.
    fn check_tensors(&self) -> Result<(), ModelError> {
        let mut wanted = BTreeSet::new();
        for Place { name, rows, columns, .. } in self.layout(&|name| self.tensor(name).is_some()) {
            let tensor = self.tensor(&name).ok_or_else(|| self.missing(&name))?;
            Self::check_shape(&tensor, (rows, columns))?;
            wanted.insert(name);
        }
        // Some files keep a copy of an embedding that is shared; factors belong to the metadata.
        let is_known = |name: &str| {
            name == "output.weight"
                || matches!(&self.source, Source::Gguf(_)) && ROPE_FACTORS.contains(&name)
        };
        match self.tensor_names().find(|name| !wanted.contains(*name) && !is_known(name)) {
            None => Ok(()),
            Some(name) => Err(ModelError::tensor(
                self.tensor(name).map_or(name, |tensor| tensor.name),
                format!(
                    "{} has no such tensor; the file is of another model or a newer one",
                    self.family.name
                ),
            )),
        }
    }

    fn layout<'a>(&'a self, has: &'a dyn Fn(&str) -> bool) -> impl Iterator<Item = Place> + 'a {
        layout(&self.spec, has)
    }

    pub(crate) fn missing(&self, name: &str) -> ModelError {
        ModelError::tensor(self.name_in_file(name), "missing")
    }

    pub(crate) fn check_shape(
        tensor: &Tensor<'_>,
        (rows, columns): (usize, usize),
    ) -> Result<(), ModelError> {
        let info = tensor.info;
        if (info.rows, info.columns) == (rows, columns) {
            return Ok(());
        }
        let reason = format!("shape is {}x{}, expected {rows}x{columns}", info.rows, info.columns);
        Err(ModelError::tensor(tensor.name, reason))
    }

    /// What the gateway needs to know of the model.
    pub fn card(&self) -> Result<ModelCard, ModelError> {
        match &self.source {
            Source::Gguf(model) => card::read(model, &self.spec),
            Source::Folder { config, tensors, .. } => {
                hugging_face::card(&self.path, config, &self.spec, num_parameters(tensors))
            }
        }
    }

    /// Hash of all weights, hexadecimal; of a folder also of the files that decide what its answers are and where
    /// they end. Files that the cache has are not read. Ends early, with an error, once `stop` is set. `progress`
    /// hears of every mebibyte.
    pub fn hash(
        &self,
        cache: Option<&HashCache>,
        stop: &AtomicBool,
        progress: &dyn Fn(),
    ) -> Result<String, ModelError> {
        let one = |path: &Path, file: &std::fs::File| {
            let hash = hash::hash(file, cache, stop, progress);
            hash.map_err(|source| ModelError::Io { path: path.to_owned(), source })
        };
        let is_folder = matches!(self.source, Source::Folder { .. });
        if let (false, [(path, mapping)]) = (is_folder, &self.files[..]) {
            return one(path, mapping.file());
        }
        let mut hashes = String::new();
        let text_files: &[_] = if is_folder { &hugging_face::TEXT_FILES } else { &[] };
        for &name in text_files {
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
        degrees(&self.spec, (0..self.spec.num_layers).flat_map(|layer| self.splits(layer)))
    }

    /// The splits of a layer's row-parallel parts.
    fn splits(&self, layer: usize) -> [InnerSplit; 2] {
        let kind = |part: &str| {
            let name = format!("blk.{layer}.{part}.weight");
            self.packed_kind(&name)
        };
        let experts = self.spec.experts.as_ref().filter(|experts| experts.layers[layer]);
        let (width, down) = match experts {
            None => (self.spec.feed_forward, kind("ffn_down")),
            Some(experts) => {
                (experts.feed_forward, kind("ffn_down_exps").or_else(|| kind("ffn_down.0")))
            }
        };
        // All are there, since the model is open.
        let float = WeightKind::F32;
        [
            attention_split(&self.spec, kind("attn_output").unwrap_or(float)),
            feed_forward_split(width, down.unwrap_or(float)),
        ]
    }

    /// Refuses a part of a group of a degree that the model does not allow.
    pub fn check_shard(&self, shard: Shard) -> Result<(), ModelError> {
        check_degree(shard, &self.tensor_parallel_degrees())
    }

    /// What a linear layer with this tensor is packed as; `None` where there is no such tensor.
    pub(crate) fn packed_kind(&self, name: &str) -> Option<WeightKind> {
        let info = self.tensor(name)?.info;
        let is_output = matches!(name, "output.weight" | "token_embd.weight");
        Some(self.quantization.packed(info.kind, info.columns, is_output))
    }

    /// Views of linear layers of these tensors, quantized as far as they are to be.
    pub(crate) fn quantized<'n>(
        &self,
        names: impl Iterator<Item = &'n str>,
        views: &[WeightView<'_>],
    ) -> Result<Quantized, ModelError> {
        let kinds =
            names.zip(views).map(|(name, view)| self.packed_kind(name).unwrap_or(view.kind));
        Quantized::new(views, kinds)
    }

    /// A tensor by this crate's name for it.
    pub(crate) fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        let StoredTensor { file, name, info } = self.tensors().get(name)?;
        Some(Tensor { name, info, data: &self.files[*file].1.bytes()[info.range.clone()] })
    }

    fn tensors(&self) -> &Tensors {
        match &self.source {
            Source::Gguf(model) => &model.tensors,
            Source::Folder { tensors, .. } => tensors,
        }
    }

    /// What the file calls a tensor.
    pub(crate) fn name_in_file(&self, name: &str) -> String {
        match &self.source {
            Source::Gguf(_) => name.to_owned(),
            Source::Folder { names, .. } => names.to_file(name),
        }
    }

    /// This crate's names of all tensors.
    pub(crate) fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors().keys().map(String::as_str)
    }

    /// Bytes of the tensors that one rank takes.
    pub fn shard_bytes(&self, shard: Shard) -> u64 {
        self.sum_of_shard(shard, &|_, info| info.range.len() as u64)
    }

    /// Bytes that one rank's part takes once it is packed. `packed_kind` says what a linear layer becomes;
    /// tables stay as they are stored, vectors are float32.
    pub fn packed_shard_bytes(
        &self,
        shard: Shard,
        packed_kind: &dyn Fn(WeightKind) -> WeightKind,
    ) -> u64 {
        self.sum_of_shard(shard, &|place, info| {
            let stored = info.range.len() as u64;
            let packed = || {
                let kind = self.packed_kind(&place.name).unwrap_or(info.kind);
                packed_kind(kind).bytes_of(info.parameters())
            };
            match place.role {
                Role::Table => stored,
                Role::TiedTable => stored + packed(),
                Role::Linear => packed(),
                Role::Vector => info.parameters() * 4,
            }
        })
    }

    /// The sum of `bytes` over all tensors, each cut to what one rank takes of it.
    fn sum_of_shard(&self, shard: Shard, bytes: &dyn Fn(&Place, &TensorInfo) -> u64) -> u64 {
        let ranges = RankRanges::new(&self.spec, shard);
        let share = |place: Place| {
            let (own, whole) = place.cut.share(&self.spec, &ranges);
            let bytes = self.tensor(&place.name).map_or(0, |tensor| bytes(&place, tensor.info));
            (u128::from(bytes) * own as u128 / whole as u128) as u64
        };
        self.layout(&|name| self.tensor(name).is_some()).map(share).sum()
    }

    /// Drops the mapped pages of a part of a tensor that was packed.
    pub(crate) fn release(&self, name: &str, data: &[u8]) {
        if let Some(tensor) = self.tensors().get(name) {
            let mapping = &self.files[tensor.file].1;
            let start = data.as_ptr().addr() - mapping.bytes().as_ptr().addr();
            mapping.drop_pages(start..start + data.len());
        }
    }
}

/// What the gateway needs to know of a model whose whole GGUF file is in memory.
pub fn inspect(bytes: &[u8]) -> Result<ModelCard, ModelError> {
    let model = gguf::Model::of_bytes(bytes)?;
    let (_, spec) = families::of_gguf(&model.keys(vec![bytes])?)?;
    card::read(&model, &spec)
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
    Decoder::load(spec, ranges, &mut loader, backend, collective, num_blocks)
}
