//! One layer's weights, as a rank holds them.

use oarlock_backend::Backend;

use crate::ModelError;
use crate::families::DecoderSpec;
use crate::sharding::{RankRanges, attention_split, feed_forward_split};
use crate::weights::{Part, WeightLoader};

/// The weights of one layer.
pub(crate) struct Layer<B: Backend> {
    pub(crate) is_windowed: bool,
    pub(crate) attention_norm: B::Vector,
    pub(crate) qkv: B::Weight,
    pub(crate) qkv_bias: Option<B::Vector>,
    /// Of queries, of keys.
    pub(crate) head_norms: Option<[B::Vector; 2]>,
    pub(crate) attention_output: B::Weight,
    /// Of the outputs of attention and feed-forward layer.
    pub(crate) post_norms: Option<[B::Vector; 2]>,
    pub(crate) feed_forward_norm: B::Vector,
    pub(crate) gate_up: B::Weight,
    pub(crate) down: B::Weight,
    /// Columns of one of the contract's segments of the down projection.
    pub(crate) feed_forward_segment: usize,
}

impl<B: Backend> Layer<B> {
    pub(crate) fn load(
        spec: &DecoderSpec,
        ranges: &RankRanges,
        index: usize,
        loader: &mut WeightLoader<'_>,
        backend: &mut B,
    ) -> Result<Self, ModelError> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let dim = spec.head_dim;
        let (heads, kv) = (spec.num_heads * dim, spec.num_kv_heads * dim);
        let (hidden, feed_forward) = (spec.hidden, spec.feed_forward);
        let own_heads = ranges.heads.start * dim..ranges.heads.end * dim;
        let own_kv = ranges.kv_heads.start * dim..ranges.kv_heads.end * dim;
        let [q, k, v] = ["attn_q", "attn_k", "attn_v"].map(name);
        let qkv = |ending: &str| {
            [(&q, heads, &own_heads), (&k, kv, &own_kv), (&v, kv, &own_kv)]
                .map(|(name, rows, own)| Part::range(format!("{name}.{ending}"), rows, own.clone()))
        };
        let [gate, up] = ["ffn_gate.weight", "ffn_up.weight"]
            .map(|part| Part::range(name(part), feed_forward, ranges.feed_forward.clone()));
        let qkv_bias = spec.qkv_bias.then(|| loader.vector(backend, &qkv("bias"))).transpose()?;
        let mut norms = |wanted: bool, names: [&str; 2], width| {
            let mut load = |part| loader.vector(backend, &[Part::whole(name(part), width)]);
            wanted.then(|| Ok::<_, ModelError>([load(names[0])?, load(names[1])?])).transpose()
        };
        let head_norm_names = ["attn_q_norm.weight", "attn_k_norm.weight"];
        let post_norm_names = ["post_attention_norm.weight", "post_ffw_norm.weight"];
        let head_norms = norms(spec.head_norms, head_norm_names, dim)?;
        let post_norms = norms(spec.post_norms, post_norm_names, hidden)?;
        let mut norm = |part| loader.vector(backend, &[Part::whole(name(part), hidden)]);
        let (attention_norm, feed_forward_norm) =
            (norm("attn_norm.weight")?, norm("ffn_norm.weight")?);
        let attention_output = Part::whole(name("attn_output.weight"), hidden);
        let output_split = attention_split(spec, loader.kind(&attention_output)?);
        let down = Part::whole(name("ffn_down.weight"), hidden);
        let down_split = feed_forward_split(spec, loader.kind(&down)?);
        Ok(Self {
            is_windowed: spec.windowed.as_ref().is_some_and(|windowed| windowed.layers[index]),
            head_norms,
            post_norms,
            attention_norm,
            qkv: loader.linear(backend, &qkv("weight"), hidden)?,
            qkv_bias,
            attention_output: loader.row_parallel(
                backend,
                &attention_output,
                (heads, own_heads),
                ranges.own_split(output_split),
            )?,
            feed_forward_norm,
            gate_up: loader.linear(backend, &[gate, up], hidden)?,
            down: loader.row_parallel(
                backend,
                &down,
                (feed_forward, ranges.feed_forward.clone()),
                ranges.own_split(down_split),
            )?,
            feed_forward_segment: feed_forward / down_split.segments,
        })
    }
}
