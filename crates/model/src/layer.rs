//! One layer's weights, as a rank holds them.

use std::ops::Range;

use oarlock_backend::{Backend, ExpertsShape};

use crate::ModelError;
use crate::layout::ExpertStorage;
use crate::sharding::{RankRanges, attention_split, feed_forward_split};
use crate::spec::{DecoderSpec, ExpertsSpec};
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
    pub(crate) attention_output_bias: Option<B::Vector>,
    /// Of the outputs of attention and feed-forward layer.
    pub(crate) post_norms: Option<[B::Vector; 2]>,
    pub(crate) feed_forward_norm: B::Vector,
    pub(crate) feed_forward: FeedForward<B>,
}

/// What follows attention.
pub(crate) enum FeedForward<B: Backend> {
    Dense(Dense<B>),
    Experts(B::Experts),
}

/// A gated feed-forward layer.
pub(crate) struct Dense<B: Backend> {
    pub(crate) gate_up: B::Weight,
    pub(crate) gate_up_bias: Option<B::Vector>,
    pub(crate) down: B::Weight,
    pub(crate) down_bias: Option<B::Vector>,
    /// Columns of one of the contract's segments of the down projection.
    pub(crate) segment: usize,
}

/// What a layer is loaded with.
pub(crate) struct LayerLoader<'l, 'a, B> {
    pub(crate) spec: &'l DecoderSpec,
    pub(crate) ranges: &'l RankRanges,
    pub(crate) loader: &'l mut WeightLoader<'a>,
    pub(crate) backend: &'l mut B,
    pub(crate) index: usize,
}

impl<B: Backend> LayerLoader<'_, '_, B> {
    /// All of one layer.
    pub(crate) fn load(&mut self) -> Result<Layer<B>, ModelError> {
        let spec = self.spec;
        let (heads, dim) = (&self.ranges.heads, spec.head_dim);
        let own_heads = heads.start * dim..heads.end * dim;
        let qkv = self.qkv("weight");
        let qkv_bias = if spec.qkv_bias { Some(self.vector(&self.qkv("bias"))?) } else { None };
        let hidden = spec.hidden;
        let attention_output = Part::whole(self.name("attn_output.weight"), hidden);
        let split = attention_split(spec, self.loader.kind(&attention_output.name)?);
        let output_split = self.ranges.own_split(split);
        Ok(Layer {
            is_windowed: spec.windowed.as_ref().is_some_and(|windowed| windowed.layers[self.index]),
            head_norms: self.norms(spec.head_norms, ["attn_q_norm", "attn_k_norm"], dim)?,
            post_norms: self.norms(
                spec.post_norms,
                ["post_attention_norm", "post_ffw_norm"],
                hidden,
            )?,
            attention_norm: self.norm("attn_norm", hidden)?,
            qkv: self.loader.linear(self.backend, &qkv, hidden)?,
            qkv_bias,
            attention_output: self.loader.row_parallel(
                self.backend,
                &attention_output,
                (spec.num_heads * dim, own_heads),
                output_split,
            )?,
            attention_output_bias: self.bias(spec.attention_output_bias, "attn_output.bias")?,
            feed_forward_norm: self.norm("ffn_norm", hidden)?,
            feed_forward: match &spec.experts {
                Some(experts) if experts.layers[self.index] => {
                    FeedForward::Experts(self.experts(experts)?)
                }
                _ => FeedForward::Dense(self.dense()?),
            },
        })
    }

    fn name(&self, part: &str) -> String {
        format!("blk.{}.{part}", self.index)
    }

    fn vector(&mut self, parts: &[Part]) -> Result<B::Vector, ModelError> {
        self.loader.vector(self.backend, parts, 0.0)
    }

    fn norm(&mut self, name: &str, width: usize) -> Result<B::Vector, ModelError> {
        let part = Part::whole(self.name(&format!("{name}.weight")), width);
        self.loader.vector(self.backend, &[part], self.spec.norm_offset)
    }

    fn norms(
        &mut self,
        is_there: bool,
        names: [&str; 2],
        width: usize,
    ) -> Result<Option<[B::Vector; 2]>, ModelError> {
        if !is_there {
            return Ok(None);
        }
        Ok(Some([self.norm(names[0], width)?, self.norm(names[1], width)?]))
    }

    /// A bias of the layer's width, which all ranks have.
    fn bias(&mut self, is_there: bool, name: &str) -> Result<Option<B::Vector>, ModelError> {
        let part = Part::whole(self.name(name), self.spec.hidden);
        if is_there { Ok(Some(self.vector(&[part])?)) } else { Ok(None) }
    }

    /// Queries, keys and values of this rank: of three tensors, or of one.
    fn qkv(&self, ending: &str) -> [Part; 3] {
        let DecoderSpec { num_heads, num_kv_heads, head_dim: dim, fused_qkv, .. } = *self.spec;
        let (heads, kv) = (num_heads * dim, num_kv_heads * dim);
        let own =
            |range: &Range<usize>, first: usize| first + range.start * dim..first + range.end * dim;
        let (own_heads, own_kv) = (&self.ranges.heads, &self.ranges.kv_heads);
        if fused_qkv {
            let name = self.name(&format!("attn_qkv.{ending}"));
            return [(own_heads, 0), (own_kv, heads), (own_kv, heads + kv)].map(
                |(range, first)| Part::range(name.clone(), heads + 2 * kv, own(range, first)),
            );
        }
        [("attn_q", heads, own_heads), ("attn_k", kv, own_kv), ("attn_v", kv, own_kv)].map(
            |(name, rows, range)| {
                Part::range(self.name(&format!("{name}.{ending}")), rows, own(range, 0))
            },
        )
    }

    /// Gate and up of this rank: of two tensors, or of one.
    fn gate_up(&self, ending: &str) -> [Part; 2] {
        let (width, own) = (self.spec.feed_forward, &self.ranges.feed_forward);
        if self.spec.fused_gate_up {
            let name = self.name(&format!("ffn_up.{ending}"));
            return [0, width].map(|first| {
                Part::range(name.clone(), 2 * width, first + own.start..first + own.end)
            });
        }
        ["ffn_gate", "ffn_up"]
            .map(|name| Part::range(self.name(&format!("{name}.{ending}")), width, own.clone()))
    }

    fn dense(&mut self) -> Result<Dense<B>, ModelError> {
        let DecoderSpec { hidden, feed_forward, feed_forward_bias, .. } = *self.spec;
        let gate_up = self.gate_up("weight");
        let biases = self.gate_up("bias");
        let down = Part::whole(self.name("ffn_down.weight"), hidden);
        let split = feed_forward_split(feed_forward, self.loader.kind(&down.name)?);
        let columns = (feed_forward, self.ranges.feed_forward.clone());
        let own_split = self.ranges.own_split(split);
        Ok(Dense {
            gate_up: self.loader.linear(self.backend, &gate_up, hidden)?,
            gate_up_bias: if feed_forward_bias { Some(self.vector(&biases)?) } else { None },
            down: self.loader.row_parallel(self.backend, &down, columns, own_split)?,
            down_bias: self.bias(feed_forward_bias, "ffn_down.bias")?,
            segment: feed_forward / split.segments,
        })
    }

    fn experts(&mut self, experts: &ExpertsSpec) -> Result<B::Experts, ModelError> {
        let hidden = self.spec.hidden;
        let storage = ExpertStorage::of(self.index, &|name| self.loader.has(name));
        let (_, first_down) = self.expert_parts(storage, experts, 0);
        let split = feed_forward_split(experts.feed_forward, self.loader.kind(&first_down.name)?);
        let shape = experts_shape(self.spec, self.ranges, experts, self.ranges.own_split(split));
        let router = self.name("ffn_gate_inp.weight");
        let mut layer = self.loader.router(self.backend, &shape, &router)?;
        for expert in 0..experts.num_experts {
            let (gate_up, down) = self.expert_parts(storage, experts, expert);
            let own = self.ranges.expert_feed_forward.clone();
            let down = (&down, experts.feed_forward, own);
            self.loader.expert(self.backend, &mut layer, (&gate_up, hidden), down)?;
        }
        Ok(layer)
    }

    /// Gate and up of one expert, of this rank, and all of its down.
    fn expert_parts(
        &self,
        storage: ExpertStorage,
        experts: &ExpertsSpec,
        expert: usize,
    ) -> ([Part; 2], Part) {
        let (count, width, hidden) = (experts.num_experts, experts.feed_forward, self.spec.hidden);
        let own = &self.ranges.expert_feed_forward;
        let rows = |first: usize| first + own.start..first + own.end;
        let stacked_down = || {
            let name = self.name("ffn_down_exps.weight");
            Part::range(name, count * hidden, expert * hidden..(expert + 1) * hidden)
        };
        match storage {
            ExpertStorage::Single => {
                let part = |name: &str| self.name(&format!("{name}.{expert}.weight"));
                let gate_up =
                    ["ffn_gate", "ffn_up"].map(|name| Part::range(part(name), width, rows(0)));
                (gate_up, Part::whole(part("ffn_down"), hidden))
            }
            ExpertStorage::Stacked => {
                let gate_up = ["ffn_gate_exps.weight", "ffn_up_exps.weight"]
                    .map(|name| Part::range(self.name(name), count * width, rows(expert * width)));
                (gate_up, stacked_down())
            }
            ExpertStorage::StackedGateUp => {
                let name = self.name("ffn_gate_up_exps.weight");
                let gate_up = [2 * expert, 2 * expert + 1]
                    .map(|at| Part::range(name.clone(), 2 * count * width, rows(at * width)));
                (gate_up, stacked_down())
            }
        }
    }
}

/// A rank's shape of a layer of experts.
pub(crate) fn experts_shape(
    spec: &DecoderSpec,
    ranges: &RankRanges,
    experts: &ExpertsSpec,
    split: oarlock_backend::InnerSplit,
) -> ExpertsShape {
    ExpertsShape {
        num_experts: experts.num_experts,
        top_k: experts.top_k,
        normalize: experts.normalize,
        hidden: spec.hidden,
        feed_forward: ranges.expert_feed_forward.len(),
        split,
    }
}
