//! Model families: each says, as data, what its decoder looks like and what its tensors are called.

mod gemma3;
mod qwen2;

use oarlock_backend::{Activation, RotaryStyle};

use crate::ModelError;
use crate::gguf::Metadata;
use crate::rope::RopeFrequencies;

/// A decoder-only transformer with pre-norm, grouped-query attention and a gated feed-forward layer.
/// What sets one family apart from another is data here, not a branch in a backend.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DecoderSpec {
    pub(crate) num_layers: usize,
    pub(crate) hidden: usize,
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) feed_forward: usize,
    pub(crate) vocab_size: usize,
    /// Whether the output layer is the embedding; `None` where the file shows it by having no output.
    pub(crate) tied_output: Option<bool>,
    pub(crate) context_length: usize,
    pub(crate) norm_eps: f32,
    pub(crate) rope_theta: f32,
    /// What the frequencies of angles are rounded to.
    pub(crate) rope_frequencies: RopeFrequencies,
    /// Linear scaling: positions are divided by this before they become angles.
    pub(crate) rope_divisor: f32,
    pub(crate) rotary_style: RotaryStyle,
    /// Layers that see a window; `None` where all see the whole context.
    pub(crate) windowed: Option<WindowedLayers>,
    /// Queries, keys and values have biases.
    pub(crate) qkv_bias: bool,
    /// Query heads and key heads are normed before they are rotated.
    pub(crate) head_norms: bool,
    /// Outputs of attention and feed-forward layers are normed before they join the residual.
    pub(crate) post_norms: bool,
    pub(crate) activation: Activation,
    /// Factor of the embedding.
    pub(crate) embedding_scale: f32,
    /// Factor of the scores.
    pub(crate) attention_scale: f32,
    pub(crate) attention_soft_cap: Option<f32>,
    pub(crate) logit_soft_cap: Option<f32>,
}

/// Layers whose tokens see the last `window` positions only, with angles of their own, not scaled.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct WindowedLayers {
    pub(crate) window: u32,
    /// By layer: whether it is one of them.
    pub(crate) layers: Vec<bool>,
    pub(crate) rope_theta: f32,
}

/// The family's description of the model that `metadata` belong to.
pub(crate) fn spec(metadata: &Metadata) -> Result<DecoderSpec, ModelError> {
    let spec = match metadata.str("general.architecture")? {
        "gemma3" => gemma3::spec(metadata)?,
        "qwen2" => qwen2::spec(metadata)?,
        other => {
            return Err(ModelError::Architecture {
                architecture: other.to_owned(),
                supported: "gemma3, qwen2".to_owned(),
            });
        }
    };
    check(&spec)?;
    Ok(spec)
}

/// Size of the vocabulary: that of the file's tokenizer, or what `key` says where it has none.
fn vocab_size(metadata: &Metadata, key: &str) -> Result<usize, ModelError> {
    match metadata.find_array("tokenizer.ggml.tokens")? {
        Some(tokens) => Ok(tokens.len()),
        None => metadata.positive(key),
    }
}

/// Tokens of a vocabulary at most: what sums of 64-bit sampling weights have room for.
const MAX_VOCABULARY: usize = (1 << 19) - 1;

/// Bounds that every backend relies on, each generous for any known model: a damaged header must not
/// ask for more memory than there is.
pub(crate) fn check(spec: &DecoderSpec) -> Result<(), ModelError> {
    let limits = [
        ("block_count", spec.num_layers, 1024),
        ("embedding_length", spec.hidden, 1 << 17),
        ("attention.head_count", spec.num_heads, 1024),
        ("feed_forward_length", spec.feed_forward, 1 << 20),
        ("context_length", spec.context_length, 1 << 24),
        ("vocabulary", spec.vocab_size, MAX_VOCABULARY),
    ];
    for (key, value, limit) in limits {
        if value > limit {
            return Err(ModelError::metadata(key, format!("{value} is more than {limit}")));
        }
    }
    if !spec.num_heads.is_multiple_of(spec.num_kv_heads) {
        let reason =
            format!("{} heads do not divide among {} key heads", spec.num_heads, spec.num_kv_heads);
        return Err(ModelError::metadata("attention.head_count_kv", reason));
    }
    if !spec.head_dim.is_multiple_of(16) || !(16..=256).contains(&spec.head_dim) {
        let reason = format!("{} is not a multiple of 16 up to 256", spec.head_dim);
        return Err(ModelError::metadata("attention.key_length", reason));
    }
    Ok(())
}

/// Fixtures of tests.
#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The shape of Qwen2.5-0.5B.
    pub(crate) fn demo_spec() -> DecoderSpec {
        DecoderSpec {
            num_layers: 24,
            hidden: 896,
            num_heads: 14,
            num_kv_heads: 2,
            head_dim: 64,
            feed_forward: 4864,
            vocab_size: 151_936,
            tied_output: None,
            context_length: 32_768,
            norm_eps: 1e-6,
            rope_theta: 1e6,
            rope_frequencies: RopeFrequencies::Float32,
            rope_divisor: 1.0,
            rotary_style: RotaryStyle::Half,
            windowed: None,
            qkv_bias: true,
            head_norms: false,
            post_norms: false,
            activation: Activation::Silu,
            embedding_scale: 1.0,
            attention_scale: 0.125,
            attention_soft_cap: None,
            logit_soft_cap: None,
        }
    }
}
