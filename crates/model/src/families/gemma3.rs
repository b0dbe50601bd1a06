//! Gemma 3 (text): norms after each block as well, norms on query and key heads, and mostly layers
//! that see a window only, with rotary angles of their own.
//!
//! What the files keep and what they leave to the reader follows llama.cpp's converter: norm weights
//! have Gemma's `+ 1` in them already; the scale of the embedding, the scale of the scores, the order
//! of layers and the angles of the windowed layers are constants where no key says otherwise.

use oarlock_backend::{Activation, RotaryStyle};

use super::{DecoderSpec, WindowedLayers, vocab_size};
use crate::ModelError;
use crate::gguf::{Metadata, Value};
use crate::rope::RopeFrequencies;

/// Every so many layers, one sees the whole context.
const PERIOD: usize = 6;
/// Rotary base of windowed layers.
const WINDOWED_ROPE_THETA: f32 = 10_000.0;

pub(super) fn spec(metadata: &Metadata) -> Result<DecoderSpec, ModelError> {
    let num_layers = metadata.positive("gemma3.block_count")?;
    let hidden = metadata.positive("gemma3.embedding_length")?;
    let num_heads = metadata.positive("gemma3.attention.head_count")?;
    let head_dim = metadata.positive("gemma3.attention.key_length")?;
    let value_dim = match metadata.find_u32("gemma3.attention.value_length")? {
        None => head_dim,
        Some(len) => len as usize,
    };
    if value_dim != head_dim {
        let reason = format!("{value_dim}, but keys have {head_dim}; other widths do not occur");
        return Err(ModelError::metadata("gemma3.attention.value_length", reason));
    }
    Ok(DecoderSpec {
        num_layers,
        hidden,
        num_heads,
        num_kv_heads: metadata.positive("gemma3.attention.head_count_kv")?,
        head_dim,
        feed_forward: metadata.positive("gemma3.feed_forward_length")?,
        vocab_size: vocab_size(metadata, "gemma3.vocab_size")?,
        tied_output: None,
        context_length: metadata.positive("gemma3.context_length")?,
        norm_eps: metadata.f32("gemma3.attention.layer_norm_rms_epsilon")?,
        rope_theta: metadata.find_f32("gemma3.rope.freq_base")?.unwrap_or(1_000_000.0),
        rope_frequencies: RopeFrequencies::Float32,
        rope_divisor: rope_divisor(metadata)?,
        rotary_style: RotaryStyle::Half,
        windowed: windowed_layers(metadata, num_layers)?,
        qkv_bias: false,
        head_norms: true,
        post_norms: true,
        activation: Activation::GeluTanh,
        // Not rounded to bfloat16, which the original does where it computes in bfloat16: float32
        // is what the weights are closest to, and what transformers and llama.cpp take as well.
        embedding_scale: (hidden as f32).sqrt(),
        attention_scale: attention_scale(metadata, num_layers, hidden, num_heads, head_dim)?,
        attention_soft_cap: soft_cap(metadata, "gemma3.attn_logit_softcapping")?,
        logit_soft_cap: soft_cap(metadata, "gemma3.final_logit_softcapping")?,
    })
}

/// `head_dim^-0.5`; the 27B model, which no key of its file tells apart, divides by the width per
/// head instead (`query_pre_attn_scalar` of 168).
fn attention_scale(
    metadata: &Metadata,
    num_layers: usize,
    hidden: usize,
    num_heads: usize,
    head_dim: usize,
) -> Result<f32, ModelError> {
    if let Some(scale) = metadata.find_f32("gemma3.attention.scale")? {
        return Ok(scale);
    }
    let is_27b = (num_layers, hidden, num_heads) == (62, 5376, 32);
    let scalar = if is_27b { hidden / num_heads } else { head_dim };
    Ok(1.0 / (scalar as f32).sqrt())
}

/// Linear scaling of positions; it applies to layers that see the whole context only.
fn rope_divisor(metadata: &Metadata) -> Result<f32, ModelError> {
    const TYPE: &str = "gemma3.rope.scaling.type";
    const FACTOR: &str = "gemma3.rope.scaling.factor";
    match metadata.find_str(TYPE)? {
        None | Some("none") => return Ok(1.0),
        Some("linear") => {}
        Some(other) => {
            return Err(ModelError::metadata(TYPE, format!("scaling {other} is not supported")));
        }
    }
    match metadata.f32(FACTOR)? {
        factor if factor > 0.0 => Ok(factor),
        factor => Err(ModelError::metadata(FACTOR, format!("{factor} is not positive"))),
    }
}

/// A cap of 0 is none.
fn soft_cap(metadata: &Metadata, key: &str) -> Result<Option<f32>, ModelError> {
    match metadata.find_f32(key)? {
        Some(cap) if cap < 0.0 => Err(ModelError::metadata(key, format!("{cap} is negative"))),
        cap => Ok(cap.filter(|cap| *cap > 0.0)),
    }
}

fn windowed_layers(
    metadata: &Metadata,
    num_layers: usize,
) -> Result<Option<WindowedLayers>, ModelError> {
    const WINDOW: &str = "gemma3.attention.sliding_window";
    const PATTERN: &str = "gemma3.attention.sliding_window_pattern";
    if metadata.get(WINDOW).is_none() {
        return Ok(None);
    }
    let of_period = |period: usize| (1..=num_layers).map(|n| !n.is_multiple_of(period)).collect();
    let layers: Vec<bool> = match metadata.get(PATTERN) {
        None => of_period(PERIOD),
        // One flag per layer.
        Some(Value::Array(flags)) => flags
            .iter()
            .map(|flag| match flag {
                Value::Bool(windowed) => Ok(*windowed),
                _ => Err(ModelError::metadata(PATTERN, "not an array of booleans")),
            })
            .collect::<Result<_, _>>()?,
        Some(_) => of_period(metadata.positive(PATTERN)?),
    };
    if layers.len() != num_layers {
        let reason = format!("{} flags for {num_layers} layers", layers.len());
        return Err(ModelError::metadata(PATTERN, reason));
    }
    let rope_theta = metadata.find_f32("gemma3.rope.freq_base_swa")?.unwrap_or(WINDOWED_ROPE_THETA);
    let window = metadata.positive(WINDOW)? as u32;
    Ok(Some(WindowedLayers { window, layers, rope_theta }))
}

#[cfg(test)]
mod tests {
    use oarlock_testkit::GgufWriter;

    use super::*;
    use crate::families;
    use crate::gguf::parse;

    fn file() -> GgufWriter {
        GgufWriter::default()
            .string("general.architecture", "gemma3")
            .u32("gemma3.block_count", 13)
            .u32("gemma3.embedding_length", 64)
            .u32("gemma3.attention.head_count", 4)
            .u32("gemma3.attention.head_count_kv", 1)
            .u32("gemma3.attention.key_length", 32)
            .u32("gemma3.feed_forward_length", 128)
            .u32("gemma3.vocab_size", 100)
            .u32("gemma3.context_length", 512)
            .f32("gemma3.attention.layer_norm_rms_epsilon", 1e-6)
    }

    fn spec_of(file: GgufWriter) -> Result<DecoderSpec, ModelError> {
        families::spec(&parse(&file.finish()).unwrap().metadata)
    }

    #[test]
    fn constants_fill_what_the_file_leaves_out() {
        let spec = spec_of(file().u32("gemma3.attention.sliding_window", 7)).unwrap();
        assert_eq!((spec.embedding_scale, spec.attention_scale), (8.0, 1.0 / 32_f32.sqrt()));
        assert_eq!((spec.rope_theta, spec.rope_divisor), (1e6, 1.0));
        assert_eq!((spec.attention_soft_cap, spec.logit_soft_cap), (None, None));
        let windowed = spec.windowed.unwrap();
        assert_eq!((windowed.window, windowed.rope_theta), (7, 10_000.0));
        let whole: Vec<usize> = (0..13).filter(|layer| !windowed.layers[*layer]).collect();
        assert_eq!(whole, [5, 11]);
        assert_eq!(spec_of(file()).unwrap().windowed, None);
    }

    #[test]
    fn keys_replace_constants() {
        let spec = spec_of(
            file()
                .u32("gemma3.attention.sliding_window", 7)
                .u32("gemma3.attention.sliding_window_pattern", 2)
                .f32("gemma3.rope.freq_base_swa", 500.0)
                .f32("gemma3.rope.freq_base", 2e6)
                .string("gemma3.rope.scaling.type", "linear")
                .f32("gemma3.rope.scaling.factor", 8.0)
                .f32("gemma3.attention.scale", 0.25)
                .f32("gemma3.attn_logit_softcapping", 50.0)
                .f32("gemma3.final_logit_softcapping", 0.0),
        )
        .unwrap();
        let windowed = spec.windowed.unwrap();
        assert_eq!(windowed.layers[..4], [true, false, true, false]);
        assert_eq!(windowed.rope_theta, 500.0);
        assert_eq!((spec.rope_theta, spec.rope_divisor), (2e6, 8.0));
        assert_eq!(spec.attention_scale, 0.25);
        assert_eq!((spec.attention_soft_cap, spec.logit_soft_cap), (Some(50.0), None));
    }

    #[test]
    fn the_27b_models_scale_is_by_width_per_head() {
        let metadata = Metadata::default();
        let scale = attention_scale(&metadata, 62, 5376, 32, 128).unwrap();
        assert_eq!(scale, 1.0 / 168_f32.sqrt());
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_key() {
        let window = || file().u32("gemma3.attention.sliding_window", 7);
        let refused = |file| spec_of(file).unwrap_err().to_string();
        let pattern = |kind, value: &[u8]| {
            refused(window().raw_key("gemma3.attention.sliding_window_pattern", kind, value))
        };
        assert!(pattern(4, &[0; 4]).contains("must not be 0"));
        let flags = [&7_u32.to_le_bytes()[..], &2_u64.to_le_bytes(), &[1, 0]].concat();
        assert!(pattern(9, &flags).contains("2 flags for 13 layers"));
        assert!(refused(file().string("gemma3.rope.scaling.type", "yarn")).contains("yarn"));
        let zero = file()
            .string("gemma3.rope.scaling.type", "linear")
            .f32("gemma3.rope.scaling.factor", 0.0);
        assert!(refused(zero).contains("rope.scaling.factor"));
        let widths = file().u32("gemma3.attention.value_length", 16);
        assert!(refused(widths).contains("value_length"));
        let cap = file().f32("gemma3.final_logit_softcapping", -1.0);
        assert!(refused(cap).contains("negative"));
    }
}
