//! A decoder-only transformer over a backend's operations: one step from tokens to results.

use oarlock_backend::{
    AttentionParams, Backend, BackendError, InnerSplit, KvCacheShape, RowResult, RowSet, StepInput,
    WeightKind,
};

use crate::ModelError;
use crate::families::DecoderSpec;
use crate::weights::WeightLoader;

/// Columns that share a scale in quantized weights; see the numbers contract.
const SUB_BLOCK: usize = 32;

/// A loaded model and its KV cache.
pub struct Decoder<B: Backend> {
    spec: DecoderSpec,
    attention: AttentionParams,
    embedding: B::Table,
    layers: Vec<Layer<B>>,
    output_norm: B::Vector,
    output: B::Weight,
    rotary: B::Rotary,
    cache: B::KvCache,
    activations: Activations<B>,
}

struct Layer<B: Backend> {
    attention_norm: B::Vector,
    qkv: B::Weight,
    qkv_bias: Option<B::Vector>,
    attention_output: B::Weight,
    feed_forward_norm: B::Vector,
    gate_up: B::Weight,
    down: B::Weight,
}

/// Buffers of one step, planned once.
struct Activations<B: Backend> {
    residual: B::Tensor,
    normed: B::Tensor,
    qkv: B::Tensor,
    attention: B::Tensor,
    delta: B::Tensor,
    gate_up: B::Tensor,
    gated: B::Tensor,
    gathered: B::Tensor,
    logits: B::Tensor,
}

impl<B: Backend> Activations<B> {
    fn new(spec: &DecoderSpec, backend: &mut B) -> Result<Self, BackendError> {
        let mut tokens = |width| backend.tensor(RowSet::Tokens, width);
        let heads = spec.num_heads * spec.head_dim;
        let kv_heads = spec.num_kv_heads * spec.head_dim;
        Ok(Self {
            residual: tokens(spec.hidden)?,
            normed: tokens(spec.hidden)?,
            qkv: tokens(heads + 2 * kv_heads)?,
            attention: tokens(heads)?,
            delta: tokens(spec.hidden)?,
            gate_up: tokens(2 * spec.feed_forward)?,
            gated: tokens(spec.feed_forward)?,
            gathered: backend.tensor(RowSet::Gathered, spec.hidden)?,
            logits: backend.tensor(RowSet::Gathered, spec.vocab_size)?,
        })
    }
}

impl<B: Backend> Decoder<B> {
    pub(crate) fn load(
        spec: DecoderSpec,
        loader: &mut WeightLoader<'_>,
        backend: &mut B,
        num_blocks: usize,
    ) -> Result<Self, ModelError> {
        let DecoderSpec { hidden, vocab_size, head_dim, num_kv_heads, .. } = spec;
        let cache =
            KvCacheShape { num_layers: spec.num_layers, num_blocks, num_kv_heads, head_dim };
        let attention = AttentionParams {
            num_heads: spec.num_heads,
            num_kv_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            sliding_window: None,
            soft_cap: None,
        };
        // Embedding and output share a tensor where the file has no output of its own.
        let tied = !loader.has("output.weight");
        let output_name = if tied { "token_embd.weight" } else { "output.weight" };
        let whole = |_| InnerSplit::WHOLE;
        Ok(Self {
            attention,
            embedding: loader.table(backend, "token_embd.weight", vocab_size, hidden)?,
            output: loader.linear(backend, &[(output_name, vocab_size)], hidden, whole)?,
            layers: (0..spec.num_layers)
                .map(|index| Layer::load(&spec, index, loader, backend))
                .collect::<Result<_, _>>()?,
            output_norm: loader.vector(backend, &[("output_norm.weight", hidden)])?,
            rotary: backend.rotary(&inverse_frequencies(&spec), 1.0, spec.rotary_style)?,
            cache: backend.kv_cache(cache)?,
            activations: Activations::new(&spec, backend)?,
            spec,
        })
    }

    /// Computes one step: keys and values of its tokens go into the cache, and each of its logit rows
    /// is sampled or scored.
    pub fn step(
        &mut self,
        backend: &mut B,
        input: &StepInput<'_>,
        results: &mut Vec<RowResult>,
    ) -> Result<(), BackendError> {
        backend.begin_step(input);
        self.layers(backend);
        self.sample(backend, input.logit_rows.len());
        backend.finish_step(results)
    }

    fn layers(&mut self, backend: &mut B) {
        let eps = self.spec.norm_eps;
        let a = &mut self.activations;
        backend.embed(&mut a.residual, &self.embedding, 1.0);
        for (index, layer) in self.layers.iter().enumerate() {
            let delta = (index > 0).then_some(&a.delta);
            backend.add_rms_norm(&mut a.normed, &mut a.residual, delta, &layer.attention_norm, eps);
            backend.linear(&mut a.qkv, &a.normed, &layer.qkv, layer.qkv_bias.as_ref());
            backend.rotary_kv_write(
                &mut a.qkv,
                &mut self.cache,
                index,
                &self.rotary,
                &self.attention,
            );
            backend.paged_attention(&mut a.attention, &a.qkv, &self.cache, index, &self.attention);
            backend.linear(&mut a.delta, &a.attention, &layer.attention_output, None);
            let norm = &layer.feed_forward_norm;
            backend.add_rms_norm(&mut a.normed, &mut a.residual, Some(&a.delta), norm, eps);
            backend.linear(&mut a.gate_up, &a.normed, &layer.gate_up, None);
            backend.gated_activation(&mut a.gated, &a.gate_up, self.spec.activation);
            backend.linear(&mut a.delta, &a.gated, &layer.down, None);
        }
    }

    /// Logits in tiles: a long prompt's scores never need a matrix as wide as the vocabulary times
    /// its length.
    fn sample(&mut self, backend: &mut B, num_rows: usize) {
        if num_rows == 0 {
            return;
        }
        let eps = self.spec.norm_eps;
        let a = &mut self.activations;
        backend.add_rms_norm(
            &mut a.normed,
            &mut a.residual,
            Some(&a.delta),
            &self.output_norm,
            eps,
        );
        let tile = backend.limits().max_gathered;
        for first in (0..num_rows).step_by(tile) {
            backend.gather(&mut a.gathered, &a.normed, first..num_rows.min(first + tile));
            backend.linear(&mut a.logits, &a.gathered, &self.output, None);
            backend.sample(&a.logits);
        }
    }
}

impl<B: Backend> Layer<B> {
    fn load(
        spec: &DecoderSpec,
        index: usize,
        loader: &mut WeightLoader<'_>,
        backend: &mut B,
    ) -> Result<Self, ModelError> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let heads = spec.num_heads * spec.head_dim;
        let kv = spec.num_kv_heads * spec.head_dim;
        let (hidden, feed_forward) = (spec.hidden, spec.feed_forward);
        let whole = |_| InnerSplit::WHOLE;
        let [q, k, v] = ["attn_q.weight", "attn_k.weight", "attn_v.weight"].map(name);
        let [q_bias, k_bias, v_bias] = ["attn_q.bias", "attn_k.bias", "attn_v.bias"].map(name);
        let [gate, up] = ["ffn_gate.weight", "ffn_up.weight"].map(name);
        let qkv_bias = spec
            .qkv_bias
            .then(|| loader.vector(backend, &[(&q_bias, heads), (&k_bias, kv), (&v_bias, kv)]))
            .transpose()?;
        Ok(Self {
            attention_norm: loader.vector(backend, &[(&name("attn_norm.weight"), hidden)])?,
            qkv: loader.linear(backend, &[(&q, heads), (&k, kv), (&v, kv)], hidden, whole)?,
            qkv_bias,
            attention_output: loader.linear(
                backend,
                &[(&name("attn_output.weight"), hidden)],
                heads,
                |kind| attention_split(spec, kind),
            )?,
            feed_forward_norm: loader.vector(backend, &[(&name("ffn_norm.weight"), hidden)])?,
            gate_up: loader.linear(
                backend,
                &[(&gate, feed_forward), (&up, feed_forward)],
                hidden,
                whole,
            )?,
            down: loader.linear(
                backend,
                &[(&name("ffn_down.weight"), hidden)],
                feed_forward,
                |kind| feed_forward_split(feed_forward, kind),
            )?,
        })
    }
}

/// Segments of the attention output: units are heads, with quantized weights the fewest heads that
/// fill whole sub-blocks.
fn attention_split(spec: &DecoderSpec, kind: WeightKind) -> InnerSplit {
    let mut heads_per_unit = 1;
    if kind.is_quantized() {
        while !(heads_per_unit * spec.head_dim).is_multiple_of(SUB_BLOCK) {
            heads_per_unit += 1;
        }
    }
    if spec.num_heads.is_multiple_of(heads_per_unit) {
        InnerSplit::of_units(spec.num_heads / heads_per_unit)
    } else {
        InnerSplit::WHOLE
    }
}

/// Segments of the down projection: units are sub-blocks, or single columns in unquantized weights.
fn feed_forward_split(columns: usize, kind: WeightKind) -> InnerSplit {
    InnerSplit::of_units(if kind.is_quantized() { columns / SUB_BLOCK } else { columns })
}

/// `theta^(-2 i / head_dim)` for each pair of elements (Su et al. 2021, RoFormer).
fn inverse_frequencies(spec: &DecoderSpec) -> Vec<f32> {
    let exponent = |pair: usize| 2.0 * pair as f64 / spec.head_dim as f64;
    (0..spec.head_dim / 2)
        .map(|pair| (1.0 / libm::pow(f64::from(spec.rope_theta), exponent(pair))) as f32)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_follow_the_shape_of_the_demo_model() {
        assert_eq!(InnerSplit::of_units(14).segments, 2);
        assert_eq!(feed_forward_split(4864, WeightKind::Q6K).segments, 8);
        assert_eq!(feed_forward_split(160, WeightKind::Bf16).segments, 8);
        assert_eq!(InnerSplit::of_units(7).segments, 1);
    }
}
