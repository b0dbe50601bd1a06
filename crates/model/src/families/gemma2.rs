//! Gemma 2: norms after each block as well, soft caps, and a window on every other layer (Gemma team 2024).
//!
//! GGUF files have the `+ 1` of norm weights in them already, and leave the scale of the scores to the reader.

use oarlock_backend::Activation;
use serde_json::json;

use super::{Family, PLAIN, with_gemma};
use crate::spec::WindowedLayers;

/// Gemma's norms of outputs: what Llama calls the norm after attention is that before the feed-forward layer.
pub(super) const NAMES: &[(&str, &str)] = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

pub(super) const FAMILY: Family = Family {
    name: "Gemma 2",
    hub: &["gemma2"],
    gguf: &["gemma2"],
    names: NAMES,
    from_config: |config| {
        let config = config.with_defaults(json!({
            "head_dim": 256, "query_pre_attn_scalar": 256, "tie_word_embeddings": true,
            "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 4096,
            "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
        }));
        config.refuse_flag("use_bidirectional_attention")?;
        let mut spec = with_gemma(config.decoder()?);
        spec.norm_offset = 1.0;
        spec.attention_scale = 1.0 / config.float("query_pre_attn_scalar")?.sqrt();
        spec.attention_soft_cap = config.find_float("attn_logit_softcapping")?;
        spec.logit_soft_cap = config.find_float("final_logit_softcapping")?;
        spec.windowed = config.windowed(&spec, |layer| layer.is_multiple_of(2))?;
        Ok(spec)
    },
    from_gguf: |keys| {
        let mut spec = with_gemma(keys.decoder()?);
        spec.activation = Activation::GeluTanh;
        let is_27b = (spec.num_layers, spec.hidden, spec.num_heads) == (46, 4608, 32);
        let scalar = if is_27b { spec.hidden / spec.num_heads } else { spec.head_dim };
        spec.attention_scale = 1.0 / (scalar as f32).sqrt();
        spec.attention_soft_cap = keys.soft_cap("attn_logit_softcapping")?;
        spec.logit_soft_cap = keys.soft_cap("final_logit_softcapping")?;
        let window = keys.find_count("attention.sliding_window")?.unwrap_or(4096);
        let layers = (0..spec.num_layers).map(|layer| layer.is_multiple_of(2)).collect();
        spec.windowed = WindowedLayers::new(window as u32, layers);
        Ok(spec)
    },
    ..PLAIN
};
