//! `config.json`: typed access that names the field, and what most families have in common.

use std::path::Path;

use oarlock_backend::Activation;
use serde_json::Value;

use super::{read_json, rope};
use crate::ModelError;
use crate::buffers::BufferType;
use crate::spec::{DecoderSpec, WindowedLayers, check_layers, llama_like};

pub(super) const FILE: &str = "config.json";

/// The fields of a `config.json`, or of an object inside of it.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Where these fields are, for messages: empty, or `text_config.`.
    place: String,
    fields: Value,
}

impl Config {
    /// Reads the folder's.
    pub(crate) fn read(folder: &Path) -> Result<Self, ModelError> {
        let fields = read_json(folder, FILE)?.ok_or_else(|| {
            let reason = format!("it has no {FILE}; --model takes a GGUF file or a model's folder");
            ModelError::Format { path: folder.to_owned(), reason }
        })?;
        Ok(Self { place: String::new(), fields })
    }

    /// Fields that are no file's, for tests.
    #[cfg(test)]
    pub(crate) fn of(fields: Value) -> Self {
        Self { place: String::new(), fields }
    }

    /// An object inside of this one.
    pub(crate) fn nested(&self, field: &str) -> Result<Self, ModelError> {
        match self.get(field) {
            Some(fields @ Value::Object(_)) => {
                Ok(Self { place: format!("{}{field}.", self.place), fields: fields.clone() })
            }
            Some(other) => Err(self.wrong(field, format!("{other} is not an object"))),
            None => Err(self.wrong(field, "missing")),
        }
    }

    /// The same with these fields where they are absent (null is not absent): a family's defaults.
    pub(crate) fn with_defaults(&self, defaults: Value) -> Self {
        let mut fields = self.fields.clone();
        if let (Some(fields), Value::Object(defaults)) = (fields.as_object_mut(), defaults) {
            for (field, value) in defaults {
                fields.entry(field).or_insert(value);
            }
        }
        Self { place: self.place.clone(), fields }
    }

    /// The same with another value of a field.
    pub(crate) fn with_field(&self, field: &str, value: Value) -> Self {
        let mut fields = self.fields.clone();
        fields[field] = value;
        Self { place: self.place.clone(), fields }
    }

    /// A field that is there and not null.
    pub(crate) fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// An error about a field. Values in a reason may be of any length, and are cut.
    pub(crate) fn wrong(&self, field: &str, reason: impl Into<String>) -> ModelError {
        const LONGEST: usize = 300;
        let mut reason = reason.into();
        if reason.len() > LONGEST {
            reason.truncate(reason.floor_char_boundary(LONGEST));
            reason.push('…');
        }
        ModelError::metadata(format!("{FILE}: {}{field}", self.place), reason)
    }

    pub(crate) fn model_type(&self) -> Result<&str, ModelError> {
        let value = self.get("model_type").and_then(Value::as_str);
        value.ok_or_else(|| self.wrong("model_type", "missing, or not a string"))
    }

    pub(crate) fn find_positive(&self, field: &str) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let number = value.as_u64().filter(|number| (1..=u64::from(u32::MAX)).contains(number));
        let number = number.ok_or_else(|| {
            self.wrong(field, format!("{value} is not a positive number of 32 bits"))
        })?;
        Ok(Some(number as usize))
    }

    pub(crate) fn positive(&self, field: &str) -> Result<usize, ModelError> {
        self.find_positive(field)?.ok_or_else(|| self.wrong(field, "missing"))
    }

    /// A positive number, if the field is there.
    pub(crate) fn find_float(&self, field: &str) -> Result<Option<f32>, ModelError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let number = value.as_f64().map(|number| number as f32);
        let number = number.filter(|number| number.is_finite() && *number > 0.0);
        let number =
            number.ok_or_else(|| self.wrong(field, format!("{value} is not a positive number")))?;
        Ok(Some(number))
    }

    pub(crate) fn float(&self, field: &str) -> Result<f32, ModelError> {
        self.find_float(field)?.ok_or_else(|| self.wrong(field, "missing"))
    }

    pub(crate) fn flag(&self, field: &str) -> Result<bool, ModelError> {
        match self.get(field) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong(field, format!("{other} is neither true nor false"))),
        }
    }

    /// A flag that must not be set.
    pub(crate) fn refuse_flag(&self, field: &str) -> Result<(), ModelError> {
        if self.flag(field)? {
            return Err(self.wrong(field, "true is not supported"));
        }
        Ok(())
    }

    fn activation(&self) -> Result<Activation, ModelError> {
        // Gemma's first configurations had both, and the second is meant.
        let field = if self.get("hidden_activation").is_some() {
            "hidden_activation"
        } else {
            "hidden_act"
        };
        match self.get(field) {
            None => Ok(Activation::Silu),
            Some(name) if name == "silu" || name == "swish" => Ok(Activation::Silu),
            Some(name) if name == "gelu_pytorch_tanh" || name == "gelu_new" => {
                Ok(Activation::GeluTanh)
            }
            Some(other) => {
                let reason = format!("{other} is not supported; silu and gelu_pytorch_tanh are");
                Err(self.wrong(field, reason))
            }
        }
    }

    /// A model like Llama with the widths, biases and angles that the fields say.
    pub(crate) fn decoder(&self) -> Result<DecoderSpec, ModelError> {
        if self.get("quantization_config").is_some() {
            let reason = "quantized folders are not supported; take a GGUF file of the model, or the \
                          original with --quantize";
            return Err(self.wrong("quantization_config", reason));
        }
        let hidden = self.positive("hidden_size")?;
        let num_heads = self.positive("num_attention_heads")?;
        let head_dim = match self.find_positive("head_dim")? {
            Some(width) => width,
            None if hidden.is_multiple_of(num_heads) => hidden / num_heads,
            None => {
                let reason = format!("{num_heads} do not divide hidden_size, {hidden}");
                return Err(self.wrong("num_attention_heads", reason));
            }
        };
        let num_kv_heads = self.find_positive("num_key_value_heads")?.unwrap_or(num_heads);
        let num_layers = self.positive("num_hidden_layers")?;
        check_layers(num_layers)?;
        let feed_forward = self.positive("intermediate_size")?;
        let attention_bias = self.flag("attention_bias")?;
        let widths = [num_layers, hidden, num_heads, num_kv_heads, head_dim, feed_forward];
        let configured = self.positive("max_position_embeddings")?;
        let rope = rope::of_all_layers(self, head_dim, configured)?;
        Ok(DecoderSpec {
            vocab_size: self.positive("vocab_size")?,
            tied_output: Some(self.flag("tie_word_embeddings")?),
            context_length: rope.scaling.context(configured),
            norm_eps: self.float("rms_norm_eps")?,
            rope,
            qkv_bias: attention_bias,
            attention_output_bias: attention_bias,
            activation: self.activation()?,
            ..llama_like(widths)
        })
    }

    /// The type that the checkpoint says it is stored in.
    pub(crate) fn stored_type(&self) -> BufferType {
        let name = self.get("dtype").or_else(|| self.get("torch_dtype")).and_then(Value::as_str);
        match name {
            Some("bfloat16") => BufferType::Bfloat16,
            Some("float16") => BufferType::Float16,
            _ => BufferType::Float32,
        }
    }

    /// The layers that see a window of `sliding_window` positions: those of `layer_types` where the field is
    /// there, otherwise those that `is_windowed` by their index. None without a window.
    pub(crate) fn windowed(
        &self,
        spec: &DecoderSpec,
        is_windowed: impl Fn(usize) -> bool,
    ) -> Result<Option<WindowedLayers>, ModelError> {
        const TYPES: &str = "layer_types";
        let layers: Vec<bool> = match self.get(TYPES) {
            None => (0..spec.num_layers).map(is_windowed).collect(),
            Some(Value::Array(names)) => {
                let kind = |name: &Value| match name.as_str() {
                    Some("sliding_attention") => Ok(true),
                    Some("full_attention") => Ok(false),
                    _ => Err(self.wrong(TYPES, format!("{name} is not supported"))),
                };
                names.iter().map(kind).collect::<Result<_, _>>()?
            }
            Some(other) => return Err(self.wrong(TYPES, format!("{other} is not a list"))),
        };
        if layers.len() != spec.num_layers {
            let reason = format!("{} types for {} layers", layers.len(), spec.num_layers);
            return Err(self.wrong(TYPES, reason));
        }
        match self.find_positive("sliding_window")? {
            Some(window) => Ok(WindowedLayers::new(window as u32, layers)),
            None => Ok(None),
        }
    }

    /// A list of indices of layers.
    pub(crate) fn layers(&self, field: &str) -> Result<Vec<usize>, ModelError> {
        let wrong = |value: &Value| self.wrong(field, format!("{value} is not a list of layers"));
        match self.get(field) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => {
                let one = |value: &Value| value.as_u64().map(|index| index as usize);
                list.iter().map(|value| one(value).ok_or_else(|| wrong(value))).collect()
            }
            Some(other) => Err(wrong(other)),
        }
    }
}
