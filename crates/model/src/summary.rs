//! What a checkpoint is, for a person or a program that looks at it before it is served.

use std::collections::BTreeMap;

use oarlock_backend::WeightKind;
use oarlock_types::Shard;
use serde::Serialize;

use crate::checkpoint::{Checkpoint, Source};
use crate::rope::RopeScaling;

/// What a checkpoint is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// `Qwen3-MoE`.
    pub family: &'static str,
    /// As the file names it: `qwen3_moe`.
    pub architecture: String,
    /// `gguf` or `safetensors`.
    pub format: &'static str,
    /// Files of weights.
    pub files: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Values of all tensors.
    pub parameters: u64,
    /// Values that one token is computed with: without the experts that it does not take.
    pub active_parameters: u64,
    /// How values are stored.
    pub types: Vec<StoredType>,
    /// Positions that the model was made for.
    pub context_length: usize,
    /// Widths and numbers of parts.
    pub shape: Shape,
    /// Scaling of rotary angles: `none`, `linear`, `llama3`, `yarn`, `longrope`, `factors`.
    pub rope_scaling: &'static str,
    /// The window that some layers see, if any.
    pub sliding_window: Option<Window>,
    /// Experts, if any.
    pub experts: Option<Experts>,
    /// What the degrees of tensor parallelism that the model allows ask of each rank.
    pub tensor_parallel: Vec<Degree>,
}

/// Tensors that are stored in one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StoredType {
    /// `BF16`, `Q4_K`.
    pub name: &'static str,
    /// How many.
    pub tensors: u64,
    /// Their values.
    pub parameters: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Widths and numbers of parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Shape {
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Inner width of feed-forward layers without experts.
    pub feed_forward: usize,
    /// Tokens.
    pub vocabulary: usize,
    /// Whether the output layer is the embedding.
    pub tied_output: bool,
}

/// Layers that see a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Window {
    /// Positions.
    pub positions: u32,
    /// How many layers.
    pub layers: usize,
}

/// Layers with experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Experts {
    /// Experts of a layer.
    pub experts: usize,
    /// Experts of a token.
    pub experts_per_token: usize,
    /// Inner width of one.
    pub feed_forward: usize,
    /// How many layers.
    pub layers: usize,
}

/// What a degree asks of the rank that needs most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Degree {
    /// Ranks.
    pub ranks: u32,
    /// Bytes that it reads of the files.
    pub read_bytes: u64,
    /// Bytes of its weights once they are packed.
    pub weight_bytes: u64,
    /// Bytes that one token puts into its cache.
    pub kv_bytes_per_token: u64,
}

impl Checkpoint {
    /// What this is. `packed_kind` says what a linear layer becomes on the device, `kv_element_bytes`
    /// what an element of the cache takes.
    pub fn summary(
        &self,
        packed_kind: &dyn Fn(WeightKind) -> WeightKind,
        kv_element_bytes: u64,
    ) -> Result<Summary, crate::ModelError> {
        let spec = &self.spec;
        let mut types: BTreeMap<&str, StoredType> = BTreeMap::new();
        let (mut bytes, mut parameters, mut of_experts) = (0, 0, 0);
        let tensors = self.tensor_names().filter_map(|name| Some((name, self.tensor(name)?)));
        for (name, tensor) in tensors {
            let (of_tensor, len) = (tensor.info.parameters(), tensor.info.range.len() as u64);
            let kind = type_name(tensor.info.kind);
            let entry =
                types.entry(kind).or_insert(StoredType { name: kind, ..StoredType::default() });
            entry.tensors += 1;
            entry.parameters += of_tensor;
            entry.bytes += len;
            bytes += len;
            parameters += of_tensor;
            if is_expert(name) {
                of_experts += of_tensor;
            }
        }
        let share = spec
            .experts
            .as_ref()
            .map_or(0, |experts| of_experts / experts.num_experts as u64 * experts.top_k as u64);
        let has = |name: &str| self.tensor(name).is_some();
        let format = match self.source() {
            Source::Gguf(_) => "gguf",
            Source::Folder { .. } => "safetensors",
        };
        let degree = |ranks: u32| self.degree(ranks, packed_kind, kv_element_bytes);
        Ok(Summary {
            family: self.family.name,
            architecture: self.card()?.architecture,
            format,
            files: self.num_files(),
            bytes,
            parameters,
            active_parameters: parameters - of_experts + share,
            types: types.into_values().collect(),
            context_length: spec.context_length,
            shape: Shape {
                layers: spec.num_layers,
                hidden: spec.hidden,
                heads: spec.num_heads,
                kv_heads: spec.num_kv_heads,
                head_dim: spec.head_dim,
                feed_forward: spec.feed_forward,
                vocabulary: spec.vocab_size,
                tied_output: crate::layout::is_tied(spec, &has),
            },
            rope_scaling: match spec.rope.scaling {
                RopeScaling::None => "none",
                RopeScaling::Linear { .. } => "linear",
                RopeScaling::Factors(_) => "factors",
                RopeScaling::Llama3 { .. } => "llama3",
                RopeScaling::Yarn(_) => "yarn",
                RopeScaling::LongRope { .. } => "longrope",
            },
            sliding_window: spec.windowed.as_ref().map(|windowed| Window {
                positions: windowed.window,
                layers: windowed.layers.iter().filter(|windowed| **windowed).count(),
            }),
            experts: spec.experts.as_ref().map(|experts| Experts {
                experts: experts.num_experts,
                experts_per_token: experts.top_k,
                feed_forward: experts.feed_forward,
                layers: experts.layers.iter().filter(|has_experts| **has_experts).count(),
            }),
            tensor_parallel: self.tensor_parallel_degrees().into_iter().map(degree).collect(),
        })
    }

    fn degree(
        &self,
        ranks: u32,
        packed_kind: &dyn Fn(WeightKind) -> WeightKind,
        kv_element_bytes: u64,
    ) -> Degree {
        let most = |bytes: &dyn Fn(Shard) -> u64| {
            (0..ranks).map(|rank| bytes(Shard { rank, ranks })).max().unwrap_or(0)
        };
        let kv = |shard: Shard| self.kv_elements_per_token(shard) as u64 * kv_element_bytes;
        Degree {
            ranks,
            read_bytes: most(&|shard| self.shard_bytes(shard)),
            weight_bytes: most(&|shard| self.packed_shard_bytes(shard, packed_kind)),
            kv_bytes_per_token: most(&kv),
        }
    }
}

/// Whether a tensor is of some experts only.
fn is_expert(name: &str) -> bool {
    let Some((_, part)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
        return false;
    };
    part.contains("_exps.") || part.starts_with("ffn_") && part.split('.').count() == 3
}

fn type_name(kind: WeightKind) -> &'static str {
    match kind {
        WeightKind::F32 => "F32",
        WeightKind::F16 => "F16",
        WeightKind::Bf16 => "BF16",
        WeightKind::Q4_0 => "Q4_0",
        WeightKind::Q4_1 => "Q4_1",
        WeightKind::Q5_0 => "Q5_0",
        WeightKind::Q5_1 => "Q5_1",
        WeightKind::Q8_0 => "Q8_0",
        WeightKind::Q2K => "Q2_K",
        WeightKind::Q3K => "Q3_K",
        WeightKind::Q4K => "Q4_K",
        WeightKind::Q5K => "Q5_K",
        WeightKind::Q6K => "Q6_K",
        WeightKind::Iq4Nl => "IQ4_NL",
        WeightKind::Iq4Xs => "IQ4_XS",
    }
}
