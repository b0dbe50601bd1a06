//! A decoder-only transformer over a backend's operations: one step from tokens to results. Of a
//! tensor-parallel group it computes one rank's part, and joins it with the others' by a collective.

use oarlock_backend::{
    AttentionParams, Backend, BackendError, InnerSplit, KvCacheShape, LogitRow, RowResult, RowSet,
    StepInput,
};
use oarlock_collective::{Collective, CollectiveError};
use oarlock_types::{Shard, SlotError, TokenId};
use thiserror::Error;

use crate::layer::{Dense, FeedForward, Layer, LayerLoader, experts_shape};
use crate::layout::is_tied;
use crate::rope::Rope;
use crate::sharding::RankRanges;
use crate::spec::DecoderSpec;
use crate::trace::Trace;
use crate::weights::{Part, WeightLoader};
use crate::{ModelError, Tracer};

/// What rank 0 tells the others of a logit row that failed. No vocabulary is as large.
const FAILED_ROW: u32 = u32::MAX;

/// A loaded model, or a rank's part of one, and its KV cache.
pub struct Decoder<B: Backend> {
    spec: DecoderSpec,
    ranges: RankRanges,
    collective: Box<dyn Collective<B>>,
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
    /// One word per logit row, from rank 0 to the others.
    words: Vec<u32>,
    trace: Trace,
}

/// Why a step failed; nothing of it counts.
#[derive(Debug, Error)]
pub enum StepError {
    /// The device failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The ranks lost each other.
    #[error("the group of ranks broke: {0}")]
    Collective(#[from] CollectiveError),
}

/// The rules of one kind of attention layers.
struct Attention<B: Backend> {
    params: AttentionParams,
    rotary: B::Rotary,
}

/// Buffers of one step, planned once.
struct Activations<B: Backend> {
    residual: B::Tensor,
    normed: B::Tensor,
    qkv: B::Tensor,
    attention: B::Tensor,
    delta: B::Tensor,
    /// Gate and up, and their product, of layers without experts.
    dense: Option<[B::Tensor; 2]>,
    /// Of layers with experts.
    routing: Option<B::Routing>,
    gathered: B::Tensor,
    /// Of this rank's part of the vocabulary.
    logits: B::Tensor,
    /// Of all of it, where rank 0 puts those of several ranks together.
    all_logits: Option<B::Tensor>,
}

impl<B: Backend> Activations<B> {
    fn new(spec: &DecoderSpec, ranges: &RankRanges, backend: &mut B) -> Result<Self, BackendError> {
        let float = |backend: &mut B, rows, width| backend.float_tensor(rows, width);
        let residual = float(backend, RowSet::Tokens, spec.hidden)?;
        let delta = float(backend, RowSet::Tokens, spec.hidden)?;
        let mut tokens = |width| backend.tensor(RowSet::Tokens, width);
        let heads = ranges.heads.len() * spec.head_dim;
        let kv_heads = ranges.kv_heads.len() * spec.head_dim;
        let (normed, qkv) = (tokens(spec.hidden)?, tokens(heads + 2 * kv_heads)?);
        let attention = tokens(heads)?;
        let width = ranges.feed_forward.len();
        let dense =
            if spec.has_dense_layers() { Some([tokens(2 * width)?, tokens(width)?]) } else { None };
        let routing = spec.experts.as_ref().map(|experts| {
            backend.routing(&experts_shape(spec, ranges, experts, InnerSplit::WHOLE))
        });
        let puts_together = ranges.shard.ranks > 1 && ranges.shard.rank == 0;
        Ok(Self {
            residual,
            normed,
            qkv,
            attention,
            delta,
            dense,
            routing: routing.transpose()?,
            gathered: backend.tensor(RowSet::Gathered, spec.hidden)?,
            logits: float(backend, RowSet::Gathered, ranges.own_vocabulary().len())?,
            all_logits: puts_together
                .then(|| float(backend, RowSet::Gathered, spec.vocab_size))
                .transpose()?,
        })
    }
}

impl<B: Backend> Decoder<B> {
    pub(crate) fn load(
        spec: DecoderSpec,
        ranges: RankRanges,
        loader: &mut WeightLoader<'_>,
        backend: &mut B,
        collective: Box<dyn Collective<B>>,
        num_blocks: usize,
    ) -> Result<Self, ModelError> {
        let DecoderSpec { hidden, vocab_size, head_dim, num_layers, .. } = spec;
        let num_kv_heads = ranges.kv_heads.len();
        let cache = KvCacheShape { num_layers, num_blocks, num_kv_heads, head_dim };
        let vocabulary =
            |name: &str| Part::range(name.to_owned(), vocab_size, ranges.own_vocabulary());
        let tied = is_tied(&spec, &|name| loader.has(name));
        let output = vocabulary(if tied { "token_embd.weight" } else { "output.weight" });
        let output_norm = Part::whole("output_norm.weight".to_owned(), hidden);
        Ok(Self {
            embedding: loader.table(backend, &vocabulary("token_embd.weight"), hidden)?,
            output: loader.linear(backend, &[output], hidden)?,
            layers: (0..num_layers)
                .map(|index| {
                    LayerLoader { spec: &spec, ranges: &ranges, loader, backend, index }.load()
                })
                .collect::<Result<_, _>>()?,
            output_norm: loader.vector(backend, &[output_norm], spec.norm_offset)?,
            whole: Attention::new(&spec, &ranges, (&spec.rope, None), backend)?,
            windowed: spec
                .windowed
                .as_ref()
                .map(|layers| {
                    let rope = layers.rope.as_ref().unwrap_or(&spec.rope);
                    Attention::new(&spec, &ranges, (rope, Some(layers.window)), backend)
                })
                .transpose()?,
            activations: Activations::new(&spec, &ranges, backend)?,
            // Last, since it is the largest that may be too large.
            cache: backend.kv_cache(cache)?,
            words: Vec::with_capacity(backend.limits().max_tokens + backend.limits().max_chunks),
            trace: Trace::default(),
            spec,
            ranges,
            collective,
        })
    }

    /// Which part of the model this is.
    pub fn shard(&self) -> Shard {
        self.ranges.shard
    }

    /// From now on, tells `tracer` of everything that is computed. Slow.
    pub fn set_tracer(&mut self, tracer: Box<dyn Tracer>) {
        self.trace.set(tracer);
    }

    /// Computes one step: keys and values of its tokens go into the cache, and each of its logit rows
    /// is sampled or scored. All ranks learn what was sampled; scores, and why a row failed, are
    /// rank 0's alone.
    pub fn step(
        &mut self,
        backend: &mut B,
        input: &StepInput<'_>,
        results: &mut Vec<RowResult>,
    ) -> Result<(), StepError> {
        backend.begin_step(input);
        self.layers(backend)?;
        self.sample(backend, input.logit_rows)?;
        backend.finish_step(results)?;
        self.share(input.logit_rows.len(), results)
    }

    fn layers(&mut self, backend: &mut B) -> Result<(), CollectiveError> {
        self.trace.layer = None;
        let scale = self.spec.buffer_type.round(self.spec.embedding_scale);
        let residual = &mut self.activations.residual;
        backend.embed(residual, &self.embedding, scale);
        self.collective.all_reduce(backend, residual)?;
        self.trace.rows(backend, "embed", residual, self.spec.hidden);
        for index in 0..self.layers.len() {
            self.trace.layer = Some(index as u32);
            self.attention(backend, index)?;
            self.feed_forward(backend, index)?;
        }
        Ok(())
    }

    fn attention(&mut self, backend: &mut B, index: usize) -> Result<(), CollectiveError> {
        let Self { spec, ranges, collective, trace, .. } = self;
        let layer = &self.layers[index];
        let (eps, hidden) = (spec.norm_eps, spec.hidden);
        let heads = (&*ranges, spec.head_dim);
        let a = &mut self.activations;
        let windowed = self.windowed.as_ref().filter(|_| layer.is_windowed);
        let Attention { params, rotary } = windowed.unwrap_or(&self.whole);
        let delta = (index > 0).then_some(&a.delta);
        backend.add_rms_norm(&mut a.normed, &mut a.residual, delta, &layer.attention_norm, eps);
        trace.rows(backend, "attention_norm", &a.normed, hidden);
        backend.linear(&mut a.qkv, &a.normed, &layer.qkv, layer.qkv_bias.as_ref());
        trace.heads(backend, "qkv", &a.qkv, heads, true);
        if let Some([query_norm, key_norm]) = &layer.head_norms {
            backend.head_rms_norm(&mut a.qkv, query_norm, key_norm, eps, params);
        }
        backend.rotary_kv_write(&mut a.qkv, &mut self.cache, index, rotary, params);
        trace.heads(backend, "rotary", &a.qkv, heads, true);
        backend.paged_attention(&mut a.attention, &a.qkv, &self.cache, index, params);
        trace.heads(backend, "attention", &a.attention, heads, false);
        backend.linear(&mut a.delta, &a.attention, &layer.attention_output, None);
        collective.all_reduce(backend, &mut a.delta)?;
        // What ranks add up gets its bias once.
        if let Some(bias) = &layer.attention_output_bias {
            backend.add_bias(&mut a.delta, bias);
        }
        trace.rows(backend, "attention_output", &a.delta, hidden);
        if let Some([norm, _]) = &layer.post_norms {
            backend.rms_norm(&mut a.delta, norm, eps);
        }
        Ok(())
    }

    fn feed_forward(&mut self, backend: &mut B, index: usize) -> Result<(), CollectiveError> {
        let Self { spec, ranges, collective, trace, .. } = self;
        let layer = &self.layers[index];
        let (eps, hidden) = (spec.norm_eps, spec.hidden);
        let a = &mut self.activations;
        let norm = &layer.feed_forward_norm;
        backend.add_rms_norm(&mut a.normed, &mut a.residual, Some(&a.delta), norm, eps);
        trace.rows(backend, "feed_forward_norm", &a.normed, hidden);
        let mut down_bias = None;
        match &layer.feed_forward {
            FeedForward::Dense(Dense { gate_up, gate_up_bias, down, down_bias: bias, segment }) => {
                let [both, gated] = a.dense.as_mut().expect("planned where a layer is dense");
                backend.linear(both, &a.normed, gate_up, gate_up_bias.as_ref());
                let width = (&ranges.feed_forward, *segment);
                trace.segments(backend, "gate_up", both, width, 2);
                backend.gated_activation(gated, both, spec.activation);
                trace.segments(backend, "activation", gated, width, 1);
                backend.linear(&mut a.delta, gated, down, None);
                down_bias = bias.as_ref();
            }
            FeedForward::Experts(experts) => {
                let routing = a.routing.as_mut().expect("planned where there are experts");
                backend.route(routing, &a.normed, experts);
                trace.choices(backend, "routing", routing, spec.experts.as_ref());
                let activation = spec.activation;
                backend.expert_feed_forward(&mut a.delta, &a.normed, routing, experts, activation);
            }
        }
        collective.all_reduce(backend, &mut a.delta)?;
        if let Some(bias) = down_bias {
            backend.add_bias(&mut a.delta, bias);
        }
        trace.rows(backend, "down", &a.delta, hidden);
        if let Some([_, norm]) = &layer.post_norms {
            backend.rms_norm(&mut a.delta, norm, eps);
        }
        Ok(())
    }

    /// Logits in tiles: a long prompt's scores never need a matrix as wide as the vocabulary times
    /// its length. Rank 0 samples from the logits of all ranks.
    fn sample(&mut self, backend: &mut B, rows: &[LogitRow<'_>]) -> Result<(), CollectiveError> {
        if rows.is_empty() {
            return Ok(());
        }
        let eps = self.spec.norm_eps;
        let a = &mut self.activations;
        let norm = &self.output_norm;
        backend.add_rms_norm(&mut a.normed, &mut a.residual, Some(&a.delta), norm, eps);
        self.trace.layer = None;
        self.trace.rows(backend, "output_norm", &a.normed, self.spec.hidden);
        let tile = backend.limits().max_gathered;
        let is_whole = self.ranges.shard.ranks == 1;
        for first in (0..rows.len()).step_by(tile) {
            let tile = first..rows.len().min(first + tile);
            backend.gather(&mut a.gathered, &a.normed, tile.clone());
            backend.linear(&mut a.logits, &a.gathered, &self.output, None);
            if let Some(cap) = self.spec.logit_soft_cap {
                backend.soft_cap(&mut a.logits, cap);
            }
            self.trace.logits(backend, &a.logits, &self.ranges, &rows[tile]);
            if is_whole {
                backend.sample(&a.logits);
                continue;
            }
            let columns = &self.ranges.vocabulary;
            self.collective.gather_columns(backend, a.all_logits.as_mut(), &a.logits, columns)?;
            if let Some(logits) = &a.all_logits {
                backend.sample(logits);
            }
        }
        Ok(())
    }

    /// Tells the other ranks what rank 0 sampled, in one word per logit row.
    fn share(&mut self, num_rows: usize, results: &mut Vec<RowResult>) -> Result<(), StepError> {
        let shard = self.ranges.shard;
        if shard.ranks == 1 || num_rows == 0 {
            return Ok(());
        }
        self.words.clear();
        if shard.rank == 0 {
            let word = |result: &RowResult| match &result.outcome {
                Ok((token, _)) => token.0,
                Err(_) => FAILED_ROW,
            };
            self.words.extend(results.iter().map(word));
        } else {
            self.words.resize(num_rows, 0);
        }
        self.collective.broadcast(&mut self.words)?;
        if shard.rank > 0 {
            results.clear();
            results.extend(self.words.iter().map(|&word| RowResult {
                // Rank 0 knows the reason and reports it.
                outcome: if word == FAILED_ROW {
                    Err(SlotError::InvalidLogits)
                } else {
                    Ok((TokenId(word), None))
                },
            }));
        }
        Ok(())
    }
}

impl<B: Backend> Attention<B> {
    /// Layers with these angles, and the window that they see.
    fn new(
        spec: &DecoderSpec,
        ranges: &RankRanges,
        (rope, sliding_window): (&Rope, Option<u32>),
        backend: &mut B,
    ) -> Result<Self, BackendError> {
        let positions = backend.limits().max_positions;
        let (frequencies, factor) = rope.frequencies(positions, spec.buffer_type);
        let params = AttentionParams {
            num_heads: ranges.heads.len(),
            num_kv_heads: ranges.kv_heads.len(),
            head_dim: spec.head_dim,
            scale: spec.attention_scale,
            sliding_window,
            soft_cap: spec.attention_soft_cap,
        };
        backend.prepare_attention(&params)?;
        Ok(Self { params, rotary: backend.rotary(&frequencies, factor, rope.style)? })
    }
}
