//! Gemma 3 (text): norms after each block as well, norms on query and key heads, and mostly layers
//! that see a window only, with rotary angles of their own.
//!
//! What the files keep and what they leave to the reader follows llama.cpp's converter: norm weights
//! have Gemma's `+ 1` in them already; the scale of the embedding, the scale of the scores, the order
//! of layers and the angles of the windowed layers are constants where no key says otherwise.

use oarlock_backend::Activation;
use serde_json::{Value, json};

use super::gemma2::NAMES;
use super::{Family, with_gemma};
use crate::ModelError;
use crate::gguf::{self, Keys};
use crate::hugging_face::{Config, rope_of_layers};
use crate::rope::{Rope, RopeScaling};
use crate::spec::{DecoderSpec, WindowedLayers};

/// Every so many layers, one sees the whole context.
const PERIOD: usize = 6;
/// Rotary base of windowed layers.
const WINDOWED_ROPE_THETA: f32 = 10_000.0;
/// Rotary base of the others.
const ROPE_THETA: f32 = 1_000_000.0;

pub(super) const FAMILY: Family = Family {
    name: "Gemma 3",
    // The second has images, too; its text model is served.
    hub: &["gemma3_text", "gemma3"],
    gguf: &["gemma3"],
    names: NAMES,
    ignored: &[
        "vision_tower.",
        "multi_modal_projector.",
        "model.vision_tower.",
        "model.multi_modal_projector.",
    ],
    from_config,
    from_gguf,
};

fn from_config(config: &Config) -> Result<DecoderSpec, ModelError> {
    let config = if config.model_type()? == "gemma3" {
        config.nested("text_config")?
    } else {
        config.clone()
    };
    // Folders with images leave out what is as here.
    let config = config.with_defaults(json!({
        "vocab_size": 262_208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "query_pre_attn_scalar": 256, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 4096, "tie_word_embeddings": true,
        "rope_theta": ROPE_THETA, "rope_local_base_freq": WINDOWED_ROPE_THETA,
        "sliding_window_pattern": PERIOD,
    }));
    config.refuse_flag("use_bidirectional_attention")?;
    let mut spec = with_gemma(config.decoder()?);
    spec.norm_offset = 1.0;
    spec.head_norms = true;
    spec.attention_scale = 1.0 / config.float("query_pre_attn_scalar")?.sqrt();
    spec.attention_soft_cap = config.find_float("attn_logit_softcapping")?;
    spec.logit_soft_cap = config.find_float("final_logit_softcapping")?;
    let period = config.positive("sliding_window_pattern")?;
    spec.windowed = config.windowed(&spec, |layer| !(layer + 1).is_multiple_of(period))?;
    let (head_dim, context) = (spec.head_dim, spec.context_length);
    spec.rope = rope_of_layers(&config, Some("full_attention"), head_dim, context)?;
    let by_kind =
        config.get("rope_parameters").and_then(|parameters| parameters.get("sliding_attention"));
    let windowed_rope = if by_kind.is_some_and(|parameters| !parameters.is_null()) {
        rope_of_layers(
            &config.with_field("rope_scaling", Value::Null).with_field(
                "rope_theta",
                config.get("rope_local_base_freq").cloned().unwrap_or_default(),
            ),
            Some("sliding_attention"),
            head_dim,
            context,
        )?
    } else {
        let theta = config.float("rope_local_base_freq")?;
        Rope { theta, scaling: RopeScaling::None, ..spec.rope.clone() }
    };
    if let Some(windowed) = &mut spec.windowed {
        windowed.rope = Some(windowed_rope);
    }
    Ok(spec)
}

fn from_gguf(keys: &Keys<'_>) -> Result<DecoderSpec, ModelError> {
    let mut spec = with_gemma(keys.decoder()?);
    spec.activation = Activation::GeluTanh;
    spec.head_norms = true;
    spec.rope.theta = keys.find_f32("rope.freq_base")?.unwrap_or(ROPE_THETA);
    spec.attention_scale = attention_scale(keys, &spec)?;
    spec.attention_soft_cap = keys.soft_cap("attn_logit_softcapping")?;
    spec.logit_soft_cap = keys.soft_cap("final_logit_softcapping")?;
    spec.windowed = windowed_layers(keys, &spec)?;
    Ok(spec)
}

/// `head_dim^-0.5`; the 27B model, which no key of its file tells apart, divides by the width per
/// head instead (`query_pre_attn_scalar` of 168).
fn attention_scale(keys: &Keys<'_>, spec: &DecoderSpec) -> Result<f32, ModelError> {
    if let Some(scale) = keys.find_positive_f32("attention.scale")? {
        return Ok(scale);
    }
    let is_27b = (spec.num_layers, spec.hidden, spec.num_heads) == (62, 5376, 32);
    let scalar = if is_27b { spec.hidden / spec.num_heads } else { spec.head_dim };
    Ok(1.0 / (scalar as f32).sqrt())
}

fn windowed_layers(
    keys: &Keys<'_>,
    spec: &DecoderSpec,
) -> Result<Option<WindowedLayers>, ModelError> {
    const PATTERN: &str = "attention.sliding_window_pattern";
    let Some(window) = keys.find_count("attention.sliding_window")? else { return Ok(None) };
    let num_layers = spec.num_layers;
    let of_period = |period: usize| (1..=num_layers).map(|n| !n.is_multiple_of(period)).collect();
    let layers: Vec<bool> = match keys.get(PATTERN) {
        None => of_period(PERIOD),
        // One flag per layer.
        Some(gguf::Value::Array(flags)) => flags
            .iter()
            .map(|flag| match flag {
                gguf::Value::Bool(windowed) => Ok(*windowed),
                _ => Err(keys.wrong(PATTERN, "not an array of booleans")),
            })
            .collect::<Result<_, _>>()?,
        Some(_) => of_period(keys.positive(PATTERN)?),
    };
    if layers.len() != num_layers {
        let reason = format!("{} flags for {num_layers} layers", layers.len());
        return Err(keys.wrong(PATTERN, reason));
    }
    let theta = keys.find_f32("rope.freq_base_swa")?.unwrap_or(WINDOWED_ROPE_THETA);
    // Linear scaling applies to layers that see the whole context only.
    let rope = Rope { theta, scaling: RopeScaling::None, ..spec.rope.clone() };
    let windowed = WindowedLayers::new(window as u32, layers);
    Ok(windowed.map(|layers| WindowedLayers { rope: Some(rope), ..layers }))
}
