//! What a decoder looks like, as data: widths, which norms there are, which layers see a window, how angles
//! and embeddings are scaled, where there are experts.

use oarlock_backend::{Activation, MAX_EXPERTS, MAX_TOP_K, RotaryStyle};

use crate::ModelError;
use crate::buffers::BufferType;
use crate::rope::{Rope, RopeScaling};

/// A decoder-only transformer with pre-norm, grouped-query attention and gated feed-forward layers or experts.
/// What sets one family apart from another is data here, not a branch in a backend.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DecoderSpec {
    pub(crate) num_layers: usize,
    pub(crate) hidden: usize,
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Inner width of layers without experts.
    pub(crate) feed_forward: usize,
    pub(crate) vocab_size: usize,
    /// Whether the output layer is the embedding; `None` where the file shows it by having no output.
    pub(crate) tied_output: Option<bool>,
    pub(crate) context_length: usize,
    pub(crate) norm_eps: f32,
    /// What is added to all stored norm weights.
    pub(crate) norm_offset: f32,
    pub(crate) rope: Rope,
    /// What buffers are rounded to.
    pub(crate) buffer_type: BufferType,
    /// Layers that see a window; `None` where all see the whole context.
    pub(crate) windowed: Option<WindowedLayers>,
    /// Queries, keys and values have biases.
    pub(crate) qkv_bias: bool,
    /// The attention output has a bias.
    pub(crate) attention_output_bias: bool,
    /// Gate, up and down have biases.
    pub(crate) feed_forward_bias: bool,
    /// Queries, keys and values are rows of one tensor, in this order.
    pub(crate) fused_qkv: bool,
    /// Gate and up are rows of one tensor, in this order.
    pub(crate) fused_gate_up: bool,
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
    pub(crate) experts: Option<ExpertsSpec>,
}

/// Layers whose tokens see the last `window` positions only.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct WindowedLayers {
    pub(crate) window: u32,
    /// By layer: whether it is one of them.
    pub(crate) layers: Vec<bool>,
    /// Angles of their own, if they have any.
    pub(crate) rope: Option<Rope>,
}

impl WindowedLayers {
    /// `None` if no layer is one of them.
    pub(crate) fn new(window: u32, layers: Vec<bool>) -> Option<Self> {
        layers.contains(&true).then_some(Self { window, layers, rope: None })
    }
}

/// Layers that have experts instead of one feed-forward layer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ExpertsSpec {
    pub(crate) num_experts: usize,
    /// Experts of a token.
    pub(crate) top_k: usize,
    /// Whether the weights of a token's experts add up to one.
    pub(crate) normalize: bool,
    /// Inner width of an expert.
    pub(crate) feed_forward: usize,
    /// By layer: whether it is one of them.
    pub(crate) layers: Vec<bool>,
}

/// Layers at most. Checked before anything is made for each of them.
const MAX_LAYERS: usize = 1024;

/// Refuses more layers than there can be.
pub(crate) fn check_layers(num_layers: usize) -> Result<(), ModelError> {
    if num_layers > MAX_LAYERS {
        let reason = format!("{num_layers} is more than {MAX_LAYERS}");
        return Err(ModelError::metadata("block_count (num_hidden_layers)", reason));
    }
    Ok(())
}

/// Tokens of a vocabulary at most: what sums of 64-bit sampling weights have room for.
const MAX_VOCABULARY: usize = (1 << 19) - 1;

impl DecoderSpec {
    /// Whether a layer has experts.
    pub(crate) fn has_experts(&self, layer: usize) -> bool {
        self.experts.as_ref().is_some_and(|experts| experts.layers[layer])
    }

    /// Whether some layer has none.
    pub(crate) fn has_dense_layers(&self) -> bool {
        (0..self.num_layers).any(|layer| !self.has_experts(layer))
    }

    /// Bounds that every backend relies on, each generous for any known model: a damaged header must not
    /// ask for more memory than there is. Keys are named as GGUF and `config.json` end with, (GGUF, hub).
    pub(crate) fn check(&self) -> Result<(), ModelError> {
        check_layers(self.num_layers)?;
        let experts = self.experts.as_ref();
        let expert = |value: fn(&ExpertsSpec) -> usize| experts.map_or(1, value);
        let limits = [
            ("embedding_length (hidden_size)", self.hidden, 1 << 17),
            ("attention.head_count (num_attention_heads)", self.num_heads, 1024),
            ("feed_forward_length (intermediate_size)", self.feed_forward, 1 << 20),
            ("context_length (max_position_embeddings)", self.context_length, 1 << 24),
            ("vocabulary (vocab_size)", self.vocab_size, MAX_VOCABULARY),
            ("expert_count (num_experts)", expert(|e| e.num_experts), MAX_EXPERTS),
            (
                "expert_used_count (num_experts_per_tok)",
                expert(|e| e.top_k),
                MAX_TOP_K.min(expert(|e| e.num_experts)),
            ),
            (
                "expert_feed_forward_length (moe_intermediate_size)",
                expert(|e| e.feed_forward),
                1 << 20,
            ),
        ];
        for (key, value, limit) in limits {
            if value > limit {
                return Err(ModelError::metadata(key, format!("{value} is more than {limit}")));
            }
        }
        let (heads, kv_heads, head_dim) = (self.num_heads, self.num_kv_heads, self.head_dim);
        if !heads.is_multiple_of(kv_heads) {
            let reason = format!("{heads} heads do not divide among {kv_heads} key heads");
            let key = "attention.head_count_kv (num_key_value_heads)";
            return Err(ModelError::metadata(key, reason));
        }
        if !head_dim.is_multiple_of(16) || !(16..=256).contains(&head_dim) {
            let reason = format!("{head_dim} is not a multiple of 16 up to 256");
            return Err(ModelError::metadata("attention.key_length (head_dim)", reason));
        }
        self.check_rope(&self.rope)?;
        self.windowed.iter().filter_map(|w| w.rope.as_ref()).try_for_each(|r| self.check_rope(r))
    }

    fn check_rope(&self, rope: &Rope) -> Result<(), ModelError> {
        let wrong = |key: &str, reason: String| Err(ModelError::metadata(key, reason));
        let Rope { theta, rotated, .. } = *rope;
        if !theta.is_finite() || theta <= 1.0 {
            return wrong("rope.freq_base (rope_theta)", format!("{theta} is not greater than 1"));
        }
        if !rotated.is_multiple_of(8) || rotated == 0 || rotated > self.head_dim {
            let reason = format!(
                "{rotated} of {} elements of a head are rotated; multiples of 8 are possible",
                self.head_dim
            );
            return wrong("rope.dimension_count (partial_rotary_factor)", reason);
        }
        let lists: [&[f32]; 2] = match &rope.scaling {
            RopeScaling::Factors(factors) => [factors, factors],
            RopeScaling::LongRope { short, long, .. } => [short, long],
            _ => return Ok(()),
        };
        for factors in lists {
            if factors.len() != rotated / 2 {
                let reason = format!("{} factors for {} pairs", factors.len(), rotated / 2);
                return wrong("rope factors (short_factor, long_factor)", reason);
            }
            if let Some(bad) = factors.iter().find(|f| !f.is_finite() || **f <= 0.0) {
                let reason = format!("{bad} is no positive number");
                return wrong("rope factors (short_factor, long_factor)", reason);
            }
        }
        Ok(())
    }
}

/// A Llama-like spec of these widths, from which families differ.
pub(crate) fn llama_like(
    [num_layers, hidden, num_heads, num_kv_heads, head_dim, feed_forward]: [usize; 6],
) -> DecoderSpec {
    DecoderSpec {
        num_layers,
        hidden,
        num_heads,
        num_kv_heads,
        head_dim,
        feed_forward,
        vocab_size: 0,
        tied_output: None,
        context_length: 0,
        norm_eps: 1e-6,
        norm_offset: 0.0,
        rope: Rope {
            theta: 10_000.0,
            rotated: head_dim,
            style: RotaryStyle::Half,
            scaling: RopeScaling::None,
        },
        buffer_type: BufferType::Float32,
        windowed: None,
        qkv_bias: false,
        attention_output_bias: false,
        feed_forward_bias: false,
        fused_qkv: false,
        fused_gate_up: false,
        head_norms: false,
        post_norms: false,
        activation: Activation::Silu,
        embedding_scale: 1.0,
        attention_scale: 1.0 / (head_dim as f32).sqrt(),
        attention_soft_cap: None,
        logit_soft_cap: None,
        experts: None,
    }
}

/// Fixtures of tests.
#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The shape of Qwen2.5-0.5B.
    pub(crate) fn demo_spec() -> DecoderSpec {
        DecoderSpec {
            vocab_size: 151_936,
            context_length: 32_768,
            qkv_bias: true,
            ..llama_like([24, 896, 14, 2, 64, 4864])
        }
    }

    #[test]
    fn what_no_backend_can_hold_is_refused() {
        demo_spec().check().unwrap();
        let experts = |num_experts, top_k| ExpertsSpec {
            num_experts,
            top_k,
            normalize: true,
            feed_forward: 64,
            layers: vec![true; 24],
        };
        let spec = demo_spec();
        let rope = |rotated, scaling| Rope { rotated, scaling, ..spec.rope.clone() };
        let with_rope = |rope| DecoderSpec { rope, ..spec.clone() };
        for (bad, words) in [
            (DecoderSpec { vocab_size: 1 << 20, ..spec.clone() }, "vocab_size"),
            (DecoderSpec { num_kv_heads: 3, ..spec.clone() }, "3 key heads"),
            (DecoderSpec { head_dim: 24, ..spec.clone() }, "multiple of 16"),
            (DecoderSpec { experts: Some(experts(4000, 2)), ..spec.clone() }, "num_experts"),
            (DecoderSpec { experts: Some(experts(4, 5)), ..spec.clone() }, "num_experts_per_tok"),
            (with_rope(rope(20, RopeScaling::None)), "20 of 64"),
            (with_rope(rope(128, RopeScaling::None)), "128 of 64"),
            (with_rope(rope(64, RopeScaling::Factors(vec![1.0; 31]))), "31 factors"),
            (with_rope(rope(64, RopeScaling::Factors(vec![0.0; 32]))), "no positive"),
        ] {
            let error = bad.check().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
