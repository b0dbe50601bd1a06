//! Qwen2 and Qwen2.5: Llama's shape with biases on queries, keys and values.

use oarlock_backend::{Activation, RotaryStyle};

use super::{DecoderSpec, vocab_size};
use crate::ModelError;
use crate::gguf::Metadata;
use crate::rope::RopeFrequencies;

pub(super) fn spec(metadata: &Metadata) -> Result<DecoderSpec, ModelError> {
    let hidden = metadata.positive("qwen2.embedding_length")?;
    let num_heads = metadata.positive("qwen2.attention.head_count")?;
    let num_kv_heads = match metadata.find_u32("qwen2.attention.head_count_kv")? {
        None => num_heads,
        Some(_) => metadata.positive("qwen2.attention.head_count_kv")?,
    };
    let head_dim = match metadata.find_u32("qwen2.attention.key_length")? {
        None => hidden / num_heads,
        Some(len) => len as usize,
    };
    if let Some(scaling) = metadata.find_str("qwen2.rope.scaling.type")?
        && scaling != "none"
    {
        let reason = format!("scaling {scaling} is not supported yet");
        return Err(ModelError::metadata("qwen2.rope.scaling.type", reason));
    }
    Ok(DecoderSpec {
        num_layers: metadata.positive("qwen2.block_count")?,
        hidden,
        num_heads,
        num_kv_heads,
        head_dim,
        feed_forward: metadata.positive("qwen2.feed_forward_length")?,
        vocab_size: vocab_size(metadata, "qwen2.vocab_size")?,
        tied_output: None,
        context_length: metadata.positive("qwen2.context_length")?,
        norm_eps: metadata.f32("qwen2.attention.layer_norm_rms_epsilon")?,
        rope_theta: metadata.find_f32("qwen2.rope.freq_base")?.unwrap_or(10_000.0),
        rope_frequencies: RopeFrequencies::Float32,
        rope_divisor: 1.0,
        rotary_style: RotaryStyle::Half,
        windowed: None,
        qkv_bias: true,
        head_norms: false,
        post_norms: false,
        activation: Activation::Silu,
        embedding_scale: 1.0,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        attention_soft_cap: None,
        logit_soft_cap: None,
    })
}
