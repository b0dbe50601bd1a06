//! The metadata of one architecture, and what all of them have in common.

use oarlock_backend::RotaryStyle;

use super::{Metadata, Model, Value};
use crate::ModelError;
use crate::rope::{Rope, RopeScaling, Yarn, long_attention_factor, yarn_attention_factor};
use crate::spec::{DecoderSpec, ExpertsSpec, check_layers, llama_like};
use crate::tensors::StoredTensor;
use crate::weights::floats;

const EPSILON: &str = "attention.layer_norm_rms_epsilon";

/// Metadata keys that begin with the name of the architecture, and the tensors that belong to them.
pub(crate) struct Keys<'a> {
    model: &'a Model,
    /// The whole files.
    files: Vec<&'a [u8]>,
    architecture: &'a str,
}

impl<'a> Keys<'a> {
    /// The keys of a model, the bytes of whose files these are.
    pub(super) fn new(model: &'a Model, files: Vec<&'a [u8]>) -> Result<Self, ModelError> {
        let architecture = model.metadata.str("general.architecture")?;
        Ok(Self { model, files, architecture })
    }

    pub(crate) fn architecture(&self) -> &'a str {
        self.architecture
    }

    fn metadata(&self) -> &'a Metadata {
        &self.model.metadata
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

    /// A count, of which 0 is none.
    pub(crate) fn find_count(&self, name: &str) -> Result<Option<usize>, ModelError> {
        let count = self.metadata().find_u32(&self.key(name))?;
        Ok(count.filter(|count| *count > 0).map(|count| count as usize))
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has_tensor(&self, name: &str) -> bool {
        self.model.tensors.contains_key(name)
    }

    pub(crate) fn find_f32(&self, name: &str) -> Result<Option<f32>, ModelError> {
        self.metadata().find_f32(&self.key(name))
    }

    pub(crate) fn find_positive_f32(&self, name: &str) -> Result<Option<f32>, ModelError> {
        match self.find_f32(name)? {
            Some(value) if value <= 0.0 => {
                Err(self.wrong(name, format!("{value} is not positive")))
            }
            value => Ok(value),
        }
    }

    /// The floats of a tensor that belongs to the metadata, such as factors of frequencies.
    fn floats(&self, name: &str) -> Result<Option<Vec<f32>>, ModelError> {
        let Some(StoredTensor { file, info, .. }) = self.model.tensors.get(name) else {
            return Ok(None);
        };
        let mut values = Vec::new();
        floats(name, info.kind, &self.files[*file][info.range.clone()], &mut values)?;
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
        // Files whose layers all have experts may say nothing else.
        let feed_forward = match self.find_count("feed_forward_length")? {
            Some(width) => width,
            None if self.find_count("expert_count")?.is_some() => {
                self.positive("expert_feed_forward_length")?
            }
            None => self.positive("feed_forward_length")?,
        };
        let widths = [num_layers, hidden, num_heads, num_kv_heads, head_dim, feed_forward];
        let context_length = self.positive("context_length")?;
        Ok(DecoderSpec {
            vocab_size: self.vocab_size()?,
            context_length,
            norm_eps: self
                .find_positive_f32(EPSILON)?
                .ok_or_else(|| self.wrong(EPSILON, "missing"))?,
            qkv_bias: self.has_tensor("blk.0.attn_q.bias"),
            attention_output_bias: self.has_tensor("blk.0.attn_output.bias"),
            feed_forward_bias: self.has_tensor("blk.0.ffn_down.bias"),
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
        let original = self.find_count("rope.scaling.original_context_length")?;
        let original = original.unwrap_or(context_length);
        if let Some(scaling) = self.long_rope(context_length, original)? {
            return Ok(scaling);
        }
        // One of 0 is none.
        let factor = self.find_f32(FACTOR)?.filter(|factor| *factor != 0.0);
        let required = || match factor {
            Some(factor) if factor > 0.0 => Ok(factor),
            Some(factor) => Err(self.wrong(FACTOR, format!("{factor} is not positive"))),
            None => Err(self.wrong(FACTOR, "missing, or 0")),
        };
        match self.metadata().find_str(&self.key(TYPE))? {
            None | Some("none") => match self.find_positive_f32("rope.scale_linear")? {
                Some(factor) => Ok(RopeScaling::Linear { factor }),
                None => Ok(RopeScaling::None),
            },
            Some("linear") => Ok(RopeScaling::Linear { factor: required()? }),
            Some("yarn") => Ok(RopeScaling::Yarn(self.yarn(required()?, original)?)),
            Some("longrope") => {
                let reason = "longrope, but rope_factors_long.weight and rope_factors_short.weight are missing";
                Err(self.wrong(TYPE, reason))
            }
            Some(other) => {
                let reason = format!("{other} is not supported (none, linear, yarn, longrope are)");
                Err(self.wrong(TYPE, reason))
            }
        }
    }

    /// LongRoPE's factors are tensors.
    fn long_rope(
        &self,
        context: usize,
        original: usize,
    ) -> Result<Option<RopeScaling>, ModelError> {
        let factors = |which: &str| {
            let name = format!("rope_factors_{which}.weight");
            let values = self.floats(&name)?;
            Ok::<_, ModelError>((name, values))
        };
        let (long, short) = match (factors("long")?, factors("short")?) {
            ((_, Some(long)), (_, Some(short))) => (long, short),
            ((_, None), (_, None)) => return Ok(None),
            ((missing, None), _) | (_, (missing, None)) => {
                return Err(ModelError::tensor(
                    missing,
                    "missing, although its counterpart is there",
                ));
            }
        };
        let by_lengths = context as f32 / original as f32;
        let attention = self.find_positive_f32("rope.scaling.attn_factor")?;
        let attention_factor =
            attention.unwrap_or_else(|| long_attention_factor(by_lengths, original));
        Ok(Some(RopeScaling::LongRope {
            short,
            long,
            original_context: original,
            attention_factor,
        }))
    }

    fn yarn(&self, factor: f32, original: usize) -> Result<Yarn, ModelError> {
        // What changes the paper's factors, which files of the families here leave alone.
        for (name, neutral) in [
            ("rope.scaling.attn_factor", 1.0),
            ("rope.scaling.yarn_attn_factor", 1.0),
            ("rope.scaling.yarn_ext_factor", 1.0),
            ("rope.scaling.yarn_log_multiplier", 0.0),
        ] {
            if let Some(value) = self.find_f32(name)?.filter(|value| *value != neutral) {
                return Err(self.wrong(name, format!("{value} is not supported; {neutral} is")));
            }
        }
        let beta = |name, by_default| {
            Ok::<_, ModelError>(self.find_positive_f32(name)?.unwrap_or(by_default))
        };
        Ok(Yarn {
            factor,
            original_context: original as f32,
            beta_fast: beta("rope.scaling.yarn_beta_fast", 32.0)?,
            beta_slow: beta("rope.scaling.yarn_beta_slow", 1.0)?,
            truncate: true,
            attention_factor: yarn_attention_factor(factor, 1.0),
        })
    }

    /// Experts in every layer, where the file has any; `normalize` is what the family does.
    pub(crate) fn experts(
        &self,
        spec: &DecoderSpec,
        normalize: bool,
    ) -> Result<Option<ExpertsSpec>, ModelError> {
        let Some(num_experts) = self.find_count("expert_count")? else { return Ok(None) };
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
