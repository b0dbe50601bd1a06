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
    embedding: B::Table,
    layers: Vec<Layer<B>>,
    output_norm: B::Vector,
    output: B::Weight,
    /// Attention of layers that see the whole context.
    whole: Attention<B>,
    /// Attention of windowed layers.
    windowed: Option<Attention<B>>,
    cache: B::KvCache,
    activations: Activations<B>,
}

/// The rules of one kind of attention layers.
struct Attention<B: Backend> {
    params: AttentionParams,
    rotary: B::Rotary,
}

struct Layer<B: Backend> {
    is_windowed: bool,
    attention_norm: B::Vector,
    qkv: B::Weight,
    qkv_bias: Option<B::Vector>,
    /// Of queries, of keys.
    head_norms: Option<[B::Vector; 2]>,
    attention_output: B::Weight,
    /// Of the outputs of attention and feed-forward layer.
    post_norms: Option<[B::Vector; 2]>,
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
        // Embedding and output share a tensor where the file has no output of its own.
        let tied = !loader.has("output.weight");
        let output_name = if tied { "token_embd.weight" } else { "output.weight" };
        let whole = |_| InnerSplit::WHOLE;
        Ok(Self {
            embedding: loader.table(backend, "token_embd.weight", vocab_size, hidden)?,
            output: loader.linear(backend, &[(output_name, vocab_size)], hidden, whole)?,
            layers: (0..spec.num_layers)
                .map(|index| Layer::load(&spec, index, loader, backend))
                .collect::<Result<_, _>>()?,
            output_norm: loader.vector(backend, &[("output_norm.weight", hidden)])?,
            whole: Attention::new(&spec, spec.rope_theta, spec.rope_divisor, None, backend)?,
            windowed: spec
                .windowed
                .as_ref()
                .map(|layers| {
                    Attention::new(&spec, layers.rope_theta, 1.0, Some(layers.window), backend)
                })
                .transpose()?,
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
        backend.embed(&mut a.residual, &self.embedding, self.spec.embedding_scale);
        for (index, layer) in self.layers.iter().enumerate() {
            let windowed = self.windowed.as_ref().filter(|_| layer.is_windowed);
            let Attention { params, rotary } = windowed.unwrap_or(&self.whole);
            let delta = (index > 0).then_some(&a.delta);
            backend.add_rms_norm(&mut a.normed, &mut a.residual, delta, &layer.attention_norm, eps);
            backend.linear(&mut a.qkv, &a.normed, &layer.qkv, layer.qkv_bias.as_ref());
            if let Some([query_norm, key_norm]) = &layer.head_norms {
                backend.head_rms_norm(&mut a.qkv, query_norm, key_norm, eps, params);
            }
            backend.rotary_kv_write(&mut a.qkv, &mut self.cache, index, rotary, params);
            backend.paged_attention(&mut a.attention, &a.qkv, &self.cache, index, params);
            backend.linear(&mut a.delta, &a.attention, &layer.attention_output, None);
            if let Some([norm, _]) = &layer.post_norms {
                backend.rms_norm(&mut a.delta, norm, eps);
            }
            let norm = &layer.feed_forward_norm;
            backend.add_rms_norm(&mut a.normed, &mut a.residual, Some(&a.delta), norm, eps);
            backend.linear(&mut a.gate_up, &a.normed, &layer.gate_up, None);
            backend.gated_activation(&mut a.gated, &a.gate_up, self.spec.activation);
            backend.linear(&mut a.delta, &a.gated, &layer.down, None);
            if let Some([_, norm]) = &layer.post_norms {
                backend.rms_norm(&mut a.delta, norm, eps);
            }
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
            if let Some(cap) = self.spec.logit_soft_cap {
                backend.soft_cap(&mut a.logits, cap);
            }
            backend.sample(&a.logits);
        }
    }
}

impl<B: Backend> Attention<B> {
    fn new(
        spec: &DecoderSpec,
        rope_theta: f32,
        rope_divisor: f32,
        sliding_window: Option<u32>,
        backend: &mut B,
    ) -> Result<Self, BackendError> {
        let frequencies = inverse_frequencies(spec.head_dim, rope_theta, rope_divisor);
        let params = AttentionParams {
            num_heads: spec.num_heads,
            num_kv_heads: spec.num_kv_heads,
            head_dim: spec.head_dim,
            scale: spec.attention_scale,
            sliding_window,
            soft_cap: spec.attention_soft_cap,
        };
        Ok(Self { params, rotary: backend.rotary(&frequencies, 1.0, spec.rotary_style)? })
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
        let mut norms = |wanted: bool, names: [&str; 2], width| {
            let mut load = |part| loader.vector(backend, &[(&name(part), width)]);
            wanted.then(|| Ok::<_, ModelError>([load(names[0])?, load(names[1])?])).transpose()
        };
        let head_norm_names = ["attn_q_norm.weight", "attn_k_norm.weight"];
        let post_norm_names = ["post_attention_norm.weight", "post_ffw_norm.weight"];
        let head_norms = norms(spec.head_norms, head_norm_names, spec.head_dim)?;
        let post_norms = norms(spec.post_norms, post_norm_names, hidden)?;
        Ok(Self {
            is_windowed: spec.windowed.as_ref().is_some_and(|windowed| windowed.layers[index]),
            head_norms,
            post_norms,
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

/// `theta^(-2 i / head_dim)` for each pair of elements (Su et al. 2021, RoFormer), over `divisor`
/// (Chen et al. 2023, position interpolation).
fn inverse_frequencies(head_dim: usize, theta: f32, divisor: f32) -> Vec<f32> {
    let exponent = |pair: usize| 2.0 * pair as f64 / head_dim as f64;
    let frequency = |pair| 1.0 / libm::pow(f64::from(theta), exponent(pair)) / f64::from(divisor);
    (0..head_dim / 2).map(|pair| frequency(pair) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaled_positions_turn_slower() {
        let frequencies = inverse_frequencies(4, 10_000.0, 1.0);
        assert_eq!(frequencies, [1.0, 0.01]);
        assert_eq!(inverse_frequencies(4, 10_000.0, 8.0), [0.125, 0.01 / 8.0]);
    }

    #[test]
    fn segments_follow_the_shape_of_the_demo_model() {
        assert_eq!(InnerSplit::of_units(14).segments, 2);
        assert_eq!(feed_forward_split(4864, WeightKind::Q6K).segments, 8);
        assert_eq!(feed_forward_split(160, WeightKind::Bf16).segments, 8);
        assert_eq!(InnerSplit::of_units(7).segments, 1);
    }
}
