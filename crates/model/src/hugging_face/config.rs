//! `config.json`: which family, which shape. What is not supported is refused by its field.

use std::path::Path;

use oarlock_backend::{Activation, RotaryStyle};
use serde_json::Value;

use super::read_json;
use crate::ModelError;
use crate::families::{self, DecoderSpec};
use crate::rope::RopeFrequencies;

const FILE: &str = "config.json";
/// Families that folders may have; GGUF files have more.
const SUPPORTED: &str = "llama, qwen2";

/// The fields of a `config.json`.
#[derive(Clone, Debug)]
pub(crate) struct Config(Value);

impl Config {
    /// Reads the folder's.
    pub(crate) fn read(folder: &Path) -> Result<Self, ModelError> {
        let value = read_json(folder, FILE)?.ok_or_else(|| {
            let reason = format!("it has no {FILE}; --model takes a GGUF file or a model's folder");
            ModelError::Format { path: folder.to_owned(), reason }
        })?;
        Ok(Self(value))
    }

    /// A field that is there and not null.
    pub(crate) fn get(&self, field: &str) -> Option<&Value> {
        self.0.get(field).filter(|value| !value.is_null())
    }

    fn wrong(field: &str, reason: impl Into<String>) -> ModelError {
        ModelError::metadata(format!("{FILE}: {field}"), reason)
    }

    pub(crate) fn model_type(&self) -> Result<&str, ModelError> {
        let value = self.get("model_type").and_then(Value::as_str);
        value.ok_or_else(|| Self::wrong("model_type", "missing, or not a string"))
    }

    fn find_positive(&self, field: &str) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let number = value.as_u64().filter(|number| (1..=u64::from(u32::MAX)).contains(number));
        let number = number.ok_or_else(|| {
            Self::wrong(field, format!("{value} is not a positive number of 32 bits"))
        })?;
        Ok(Some(number as usize))
    }

    fn positive(&self, field: &str) -> Result<usize, ModelError> {
        self.find_positive(field)?.ok_or_else(|| Self::wrong(field, "missing"))
    }

    fn positive_float(field: &str, value: Option<&Value>) -> Result<f32, ModelError> {
        let value = value.ok_or_else(|| Self::wrong(field, "missing"))?;
        let number = value.as_f64().map(|number| number as f32);
        let number = number.filter(|number| number.is_finite() && *number > 0.0);
        number.ok_or_else(|| Self::wrong(field, format!("{value} is not a positive number")))
    }

    fn flag(&self, field: &str) -> Result<bool, ModelError> {
        match self.get(field) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(Self::wrong(field, format!("{other} is neither true nor false"))),
        }
    }

    /// A flag that must not be set.
    fn refuse_flag(&self, field: &str) -> Result<(), ModelError> {
        if self.flag(field)? {
            return Err(Self::wrong(field, "true is not supported yet"));
        }
        Ok(())
    }

    /// Heads that are rotated in part only.
    fn refuse_partial(field: &str, factor: Option<&Value>) -> Result<(), ModelError> {
        match factor {
            Some(value) if value.as_f64() != Some(1.0) => {
                let reason = format!("partial rotation, {value}, is not supported yet");
                Err(Self::wrong(field, reason))
            }
            _ => Ok(()),
        }
    }

    fn vocab_size(&self) -> Result<usize, ModelError> {
        self.positive("vocab_size")
    }

    /// The base of the angles. Scaled or partial ones are refused, and so is all that might mean them.
    fn rope_theta(&self) -> Result<f32, ModelError> {
        Self::refuse_partial("partial_rotary_factor", self.get("partial_rotary_factor"))?;
        for field in ["rope_scaling", "rope_parameters"] {
            let Some(parameters) = self.get(field) else { continue };
            let parameters = parameters
                .as_object()
                .ok_or_else(|| Self::wrong(field, format!("{parameters} is not an object")))?;
            let set = || parameters.iter().filter(|(_, value)| !value.is_null());
            for (name, value) in set().filter(|(name, _)| matches!(&name[..], "rope_type" | "type"))
            {
                if value != "default" {
                    let reason = format!("{name} {value} is not supported yet; default is");
                    return Err(Self::wrong(field, reason));
                }
            }
            for (name, value) in set() {
                match &name[..] {
                    "rope_type" | "type" | "rope_theta" => {}
                    "partial_rotary_factor" => Self::refuse_partial(field, Some(value))?,
                    other => {
                        let reason = format!("{other} is not supported yet");
                        return Err(Self::wrong(field, reason));
                    }
                }
            }
        }
        let nested = self.get("rope_parameters").and_then(|value| value.get("rope_theta"));
        match nested.or_else(|| self.get("rope_theta")) {
            // What both families' configurations mean by leaving it out.
            None => Ok(10_000.0),
            value => Self::positive_float("rope_theta", value),
        }
    }
}

/// The description of a folder's model.
pub(crate) fn spec(config: &Config) -> Result<DecoderSpec, ModelError> {
    let qkv_bias = match config.model_type()? {
        "llama" => {
            config.refuse_flag("attention_bias")?;
            false
        }
        "qwen2" => true,
        other => {
            return Err(ModelError::Architecture {
                architecture: other.to_owned(),
                supported: SUPPORTED.to_owned(),
            });
        }
    };
    for field in ["mlp_bias", "use_sliding_window"] {
        config.refuse_flag(field)?;
    }
    if config.get("quantization_config").is_some() {
        let reason = "quantized folders are not supported yet; take a GGUF file of the model";
        return Err(Config::wrong("quantization_config", reason));
    }
    if let Some(act) = config.get("hidden_act").filter(|act| *act != "silu") {
        return Err(Config::wrong("hidden_act", format!("{act} is not supported; silu is")));
    }
    let hidden = config.positive("hidden_size")?;
    let num_heads = config.positive("num_attention_heads")?;
    let head_dim = match config.find_positive("head_dim")? {
        Some(width) => width,
        None if hidden.is_multiple_of(num_heads) => hidden / num_heads,
        None => {
            let reason = format!("{num_heads} do not divide hidden_size, {hidden}");
            return Err(Config::wrong("num_attention_heads", reason));
        }
    };
    let spec = DecoderSpec {
        num_layers: config.positive("num_hidden_layers")?,
        hidden,
        num_heads,
        num_kv_heads: config.find_positive("num_key_value_heads")?.unwrap_or(num_heads),
        head_dim,
        feed_forward: config.positive("intermediate_size")?,
        vocab_size: config.vocab_size()?,
        // Where the field is missing, both families mean that it is not.
        tied_output: Some(config.flag("tie_word_embeddings")?),
        context_length: config.positive("max_position_embeddings")?,
        norm_eps: Config::positive_float("rms_norm_eps", config.get("rms_norm_eps"))?,
        rope_theta: config.rope_theta()?,
        rope_frequencies: RopeFrequencies::Float32,
        rope_divisor: 1.0,
        rotary_style: RotaryStyle::Half,
        windowed: None,
        qkv_bias,
        head_norms: false,
        post_norms: false,
        activation: Activation::Silu,
        embedding_scale: 1.0,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        attention_soft_cap: None,
        logit_soft_cap: None,
    };
    families::check(&spec)?;
    Ok(spec)
}
