//! The metadata of one architecture, and what all of them have in common.

use oarlock_backend::RotaryStyle;

use super::{Header, Metadata, Value};
use crate::ModelError;
use crate::rope::{Rope, RopeScaling, Yarn, long_attention_factor, yarn_attention_factor};
use crate::spec::{DecoderSpec, ExpertsSpec, check_layers, llama_like};
use crate::weights::floats;

/// Metadata keys that begin with the name of the architecture, and the tensors that belong to them.
pub(crate) struct Keys<'a> {
    header: &'a Header,
    /// The whole file.
    bytes: &'a [u8],
    architecture: &'a str,
}

impl<'a> Keys<'a> {
    /// The keys of a file.
    pub(crate) fn new(header: &'a Header, bytes: &'a [u8]) -> Result<Self, ModelError> {
        let architecture = header.metadata.str("general.architecture")?;
        Ok(Self { header, bytes, architecture })
    }

    pub(crate) fn architecture(&self) -> &'a str {
        self.architecture
    }

    fn metadata(&self) -> &'a Metadata {
        &self.header.metadata
    }

    /// The whole name of a key.
    pub(crate) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    /// An error about a key.
    pub(crate) fn wrong(&self, name: &str, reason: impl Into<String>) -> ModelError {
        ModelError::metadata(self.key(name), reason)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.metadata().get(&self.key(name))
    }

    pub(crate) fn positive(&self, name: &str) -> Result<usize, ModelError> {
        self.metadata().positive(&self.key(name))
    }

    pub(crate) fn find_positive(&self, name: &str) -> Result<Option<usize>, ModelError> {
        self.get(name).map(|_| self.positive(name)).transpose()
    }

    pub(crate) fn find_f32(&self, name: &str) -> Result<Option<f32>, ModelError> {
        self.metadata().find_f32(&self.key(name))
    }

    fn find_positive_f32(&self, name: &str) -> Result<Option<f32>, ModelError> {
        match self.find_f32(name)? {
            Some(value) if value <= 0.0 => {
                Err(self.wrong(name, format!("{value} is not positive")))
            }
            value => Ok(value),
        }
    }

    /// The floats of a tensor that belongs to the metadata, such as factors of frequencies.
    fn floats(&self, name: &str) -> Result<Option<Vec<f32>>, ModelError> {
        let Some(info) = self.header.tensors.get(name) else { return Ok(None) };
        let mut values = Vec::new();
        floats(name, info.kind, &self.bytes[info.range.clone()], &mut values)?;
        Ok(Some(values))
    }

    /// A cap; one of 0 is none.
    pub(crate) fn soft_cap(&self, name: &str) -> Result<Option<f32>, ModelError> {
        match self.find_f32(name)? {
            Some(cap) if cap < 0.0 => Err(self.wrong(name, format!("{cap} is negative"))),
            cap => Ok(cap.filter(|cap| *cap > 0.0)),
        }
    }

    /// A model like Llama with the widths that the file says.
    pub(crate) fn decoder(&self) -> Result<DecoderSpec, ModelError> {
        let hidden = self.positive("embedding_length")?;
        let num_heads = self.positive("attention.head_count")?;
        let head_dim = match self.find_positive("attention.key_length")? {
            Some(width) => width,
            None if hidden.is_multiple_of(num_heads) => hidden / num_heads,
            None => {
                let reason = format!("{num_heads} heads do not divide {hidden} columns");
                return Err(self.wrong("attention.head_count", reason));
            }
        };
        let value_dim = self.find_positive("attention.value_length")?.unwrap_or(head_dim);
        if value_dim != head_dim {
            let reason =
                format!("{value_dim}, but keys have {head_dim}; other widths do not occur");
            return Err(self.wrong("attention.value_length", reason));
        }
        let num_kv_heads = self.find_positive("attention.head_count_kv")?.unwrap_or(num_heads);
        let num_layers = self.positive("block_count")?;
        check_layers(num_layers)?;
        let feed_forward = self.positive("feed_forward_length")?;
        let widths = [num_layers, hidden, num_heads, num_kv_heads, head_dim, feed_forward];
        let context_length = self.positive("context_length")?;
        Ok(DecoderSpec {
            vocab_size: self.vocab_size()?,
            context_length,
            norm_eps: self.metadata().f32(&self.key("attention.layer_norm_rms_epsilon"))?,
            rope: Rope {
                theta: self.find_f32("rope.freq_base")?.unwrap_or(10_000.0),
                rotated: self.find_positive("rope.dimension_count")?.unwrap_or(head_dim),
                style: RotaryStyle::Half,
                scaling: self.rope_scaling(context_length)?,
            },
            ..llama_like(widths)
        })
    }

    /// Size of the vocabulary: that of the file's tokenizer, or what a key says where it has none.
    fn vocab_size(&self) -> Result<usize, ModelError> {
        match self.metadata().find_array("tokenizer.ggml.tokens")? {
            Some(tokens) => Ok(tokens.len()),
            None => self.positive("vocab_size"),
        }
    }

    fn rope_scaling(&self, context_length: usize) -> Result<RopeScaling, ModelError> {
        const TYPE: &str = "rope.scaling.type";
        const FACTOR: &str = "rope.scaling.factor";
        if let Some(factors) = self.floats("rope_freqs.weight")? {
            return Ok(RopeScaling::Factors(factors));
        }
        let original = self.find_positive("rope.scaling.original_context_length")?;
        let original = original.unwrap_or(context_length);
        let attention = self.find_positive_f32("rope.scaling.attn_factor")?;
        let [long, short] = ["long", "short"].map(|which| format!("rope_factors_{which}.weight"));
        if let (Some(long), Some(short)) = (self.floats(&long)?, self.floats(&short)?) {
            let factor = context_length as f32 / original as f32;
            let attention_factor =
                attention.unwrap_or_else(|| long_attention_factor(factor, original));
            return Ok(RopeScaling::LongRope {
                short,
                long,
                original_context: original,
                attention_factor,
            });
        }
        let required = || {
            let factor = self.find_positive_f32(FACTOR)?;
            factor.ok_or_else(|| self.wrong(FACTOR, "missing"))
        };
        match self.metadata().find_str(&self.key(TYPE))? {
            None | Some("none") => match self.find_positive_f32("rope.scale_linear")? {
                Some(factor) => Ok(RopeScaling::Linear { factor }),
                None => Ok(RopeScaling::None),
            },
            Some("linear") => Ok(RopeScaling::Linear { factor: required()? }),
            Some("yarn") => {
                let factor = required()?;
                let beta = |name, by_default| {
                    Ok::<_, ModelError>(self.find_positive_f32(name)?.unwrap_or(by_default))
                };
                Ok(RopeScaling::Yarn(Yarn {
                    factor,
                    original_context: original as f32,
                    beta_fast: beta("rope.scaling.yarn_beta_fast", 32.0)?,
                    beta_slow: beta("rope.scaling.yarn_beta_slow", 1.0)?,
                    truncate: true,
                    // Files give what is multiplied by the paper's factor, not what replaces it.
                    attention_factor: attention.unwrap_or(1.0) * yarn_attention_factor(factor, 1.0),
                }))
            }
            Some(other) => {
                let reason = format!("{other} is not supported (none, linear, yarn are)");
                Err(self.wrong(TYPE, reason))
            }
        }
    }

    /// Experts in every layer, where the file has any; `normalize` is what the family does.
    pub(crate) fn experts(
        &self,
        spec: &DecoderSpec,
        normalize: bool,
    ) -> Result<Option<ExpertsSpec>, ModelError> {
        let Some(num_experts) = self.find_positive("expert_count")? else { return Ok(None) };
        let width = self.find_positive("expert_feed_forward_length")?;
        Ok(Some(ExpertsSpec {
            num_experts,
            top_k: self.positive("expert_used_count")?,
            normalize,
            feed_forward: width.unwrap_or(spec.feed_forward),
            layers: vec![true; spec.num_layers],
        }))
    }
}
