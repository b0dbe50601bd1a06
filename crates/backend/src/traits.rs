//! The `Backend` trait and the plain parameters of its operations.

use std::ops::Range;

use thiserror::Error;

use crate::{InnerSplit, RowResult, StepInput, WeightView};

/// Sizes that a backend plans its workspace for, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendLimits {
    /// Tokens (rows) of one step at most.
    pub max_tokens: usize,
    /// Rows whose logits are computed at once; more are done in tiles.
    pub max_gathered: usize,
    /// Chunks of one step at most.
    pub max_chunks: usize,
    /// Positions of one sequence at most.
    pub max_positions: usize,
}

/// Which rows a tensor has; their number is the step's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowSet {
    /// One row per token of the step.
    Tokens,
    /// One row per gathered row of the current tile (see [`Backend::gather`]).
    Gathered,
}

/// Shape of the paged KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCacheShape {
    /// Layers that have a cache.
    pub num_layers: usize,
    /// Blocks of [`oarlock_types::BLOCK_TOKENS`] tokens, each spanning all layers.
    pub num_blocks: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
}

/// Shape and rules of one layer's attention. A row of `qkv` is
/// `[num_heads * head_dim | num_kv_heads * head_dim | num_kv_heads * head_dim]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionParams {
    /// Query heads; a multiple of `num_kv_heads`.
    pub num_heads: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Width of one head, a multiple of 16 and at most 256.
    pub head_dim: usize,
    /// Factor of the scores, usually `head_dim^-0.5`.
    pub scale: f32,
    /// A query at position `p` sees positions greater than `p - window` only.
    pub sliding_window: Option<u32>,
    /// Scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
}

/// Which elements of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotaryStyle {
    /// Element `i` with `i + head_dim / 2` (GPT-NeoX; Qwen).
    Half,
    /// Element `2 i` with `2 i + 1` (the Llama paper; GGUF files of Llama).
    Interleaved,
}

/// `out = f(gate) * up`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// GELU by the tanh approximation.
    GeluTanh,
}

/// Shape and rules of a layer of experts, of which each token takes a few.
///
/// A row's router logits are float32 sums of the (working type's) input by float32 weights; the experts are the
/// `top_k` of the greatest logits, of equal ones those of the least index. Their weights are the softmax over
/// all experts, with `normalize` over the chosen ones. A row whose logits are no numbers gives none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertsShape {
    /// Experts of the layer.
    pub num_experts: usize,
    /// Experts that a row takes; at most [`MAX_TOP_K`].
    pub top_k: usize,
    /// Whether the weights of a row's experts add up to one.
    pub normalize: bool,
    /// Width of input and output.
    pub hidden: usize,
    /// Inner width of one expert, as far as this rank has it.
    pub feed_forward: usize,
    /// How the sum along the inner width is cut.
    pub split: InnerSplit,
}

/// Experts of a layer at most.
pub const MAX_EXPERTS: usize = 1024;
/// Experts of a row at most.
pub const MAX_TOP_K: usize = 32;

/// Why a backend could not do something.
#[derive(Debug, Error)]
pub enum BackendError {
    /// A weight that this backend cannot pack.
    #[error("tensor {name}: {reason}")]
    Weight {
        /// Name of the tensor in its file.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// No memory for a buffer.
    #[error("out of memory: {what} needs {bytes} bytes")]
    OutOfMemory {
        /// What it was for.
        what: String,
        /// Its size.
        bytes: usize,
    },
    /// The device failed; every result of the step is void.
    #[error("device failed: {0}")]
    Device(String),
}

/// A backend whose tensors lie in this process's memory: what ranks exchange is read and written there.
pub trait HostBackend: Backend {
    /// The step's rows of a tensor, `[rows, width]`.
    fn host_rows<'t>(&self, tensor: &'t Self::Tensor) -> &'t [f32];

    /// The same, to be changed.
    fn host_rows_mut<'t>(&self, tensor: &'t mut Self::Tensor) -> &'t mut [f32];
}

/// A device that computes a model.
///
/// Every operation works on the rows of the current step. Rows are independent of each other: an
/// output row has the same bits whatever other rows are in the step.
pub trait Backend: Sized + Send + 'static {
    /// Activations `[rows, width]` on the device.
    type Tensor: Send;
    /// A packed linear layer `[outputs, inner]`.
    type Weight: Send;
    /// An embedding table `[vocabulary, width]`.
    type Table: Send;
    /// A float32 vector: norm weights, biases.
    type Vector: Send;
    /// Cosines and sines for every position.
    type Rotary: Send;
    /// The paged KV cache of all layers.
    type KvCache: Send;
    /// A layer's router and experts.
    type Experts: Send;
    /// Which experts each row of the step takes, with which weights.
    type Routing: Send;

    /// The instruction set or device kind that decides the bits, as part of the fingerprint.
    fn instruction_set(&self) -> String;

    /// The limits that the workspace was planned for.
    fn limits(&self) -> BackendLimits;

    /// Packs a linear layer whose outputs are those of `parts`, one after the other; all have the
    /// same inner width. `split` says how the sum along the inner dimension is cut.
    fn pack_linear(
        &mut self,
        parts: &[WeightView<'_>],
        split: InnerSplit,
    ) -> Result<Self::Weight, BackendError>;

    /// Takes an embedding table, or the part of one whose first row is the token `first_token`.
    fn pack_table(
        &mut self,
        table: &WeightView<'_>,
        first_token: u32,
    ) -> Result<Self::Table, BackendError>;

    /// Takes a vector.
    fn vector(&mut self, values: &[f32]) -> Result<Self::Vector, BackendError>;

    /// A tensor for as many rows as the limits allow, of the type that the backend computes with: what the
    /// next linear layer or attention takes.
    fn tensor(&mut self, rows: RowSet, width: usize) -> Result<Self::Tensor, BackendError>;

    /// The same in float32: embeddings and the residual stream, what row-parallel layers give (ranks add
    /// it up), and logits.
    fn float_tensor(&mut self, rows: RowSet, width: usize) -> Result<Self::Tensor, BackendError> {
        self.tensor(rows, width)
    }

    /// Angles `position * inverse_frequencies[i]`, as cosine and sine times `scale`, for positions up to the
    /// limit. `inverse_frequencies` has half of the width that is rotated, a multiple of 4: all of a head's, or
    /// its first elements, whose others stay as they are.
    fn rotary(
        &mut self,
        inverse_frequencies: &[f32],
        scale: f32,
        style: RotaryStyle,
    ) -> Result<Self::Rotary, BackendError>;

    /// Plans memory for attention layers of this shape, before the cache takes what is left.
    fn prepare_attention(&mut self, _params: &AttentionParams) -> Result<(), BackendError> {
        Ok(())
    }

    /// A layer of experts: the router, `[num_experts, hidden]`, and as yet no expert.
    fn experts(
        &mut self,
        shape: &ExpertsShape,
        router: &WeightView<'_>,
    ) -> Result<Self::Experts, BackendError>;

    /// Packs the layer's next expert: gate and up, `[feed_forward, hidden]` each, and down,
    /// `[hidden, feed_forward]`. All experts of a layer are of the same kinds.
    fn pack_expert(
        &mut self,
        experts: &mut Self::Experts,
        gate_up: &[WeightView<'_>; 2],
        down: &WeightView<'_>,
    ) -> Result<(), BackendError>;

    /// Room for the choices of layers of this shape; a rank's part of the inner width makes no difference.
    fn routing(&mut self, shape: &ExpertsShape) -> Result<Self::Routing, BackendError>;

    /// A KV cache, contents undefined.
    fn kv_cache(&mut self, shape: KvCacheShape) -> Result<Self::KvCache, BackendError>;

    /// Starts a step: everything enqueued until `finish_step` is about these rows.
    fn begin_step(&mut self, input: &StepInput<'_>);

    /// `out[t] = table[token[t]] * scale` in float32; -0 for tokens that the table does not have, which another
    /// rank's value survives in a sum with all its bits.
    fn embed(&mut self, out: &mut Self::Tensor, table: &Self::Table, scale: f32);

    /// `residual += delta` (where given), both float32, then `out = residual / rms(residual) * weight`.
    /// `rms(x) = sqrt(mean(x^2) + eps)`.
    fn add_rms_norm(
        &mut self,
        out: &mut Self::Tensor,
        residual: &mut Self::Tensor,
        delta: Option<&Self::Tensor>,
        weight: &Self::Vector,
        eps: f32,
    );

    /// `values = values / rms(values) * weight`, row by row and in place: a layer's output, float32, before
    /// it joins the residual.
    fn rms_norm(&mut self, values: &mut Self::Tensor, weight: &Self::Vector, eps: f32);

    /// The same norm over each query head and each key head of `qkv`, in place. The weights are one
    /// head wide, shared by all heads; values stay as they are.
    fn head_rms_norm(
        &mut self,
        qkv: &mut Self::Tensor,
        query_weight: &Self::Vector,
        key_weight: &Self::Vector,
        eps: f32,
        params: &AttentionParams,
    );

    /// `out = input * weight^T + bias`; `out` may be of either type. A row-parallel layer's segments are joined by the fixed tree.
    fn linear(
        &mut self,
        out: &mut Self::Tensor,
        input: &Self::Tensor,
        weight: &Self::Weight,
        bias: Option<&Self::Vector>,
    );

    /// Rotates queries and keys of `qkv` in place and writes keys and values into the cache's pages.
    fn rotary_kv_write(
        &mut self,
        qkv: &mut Self::Tensor,
        cache: &mut Self::KvCache,
        layer: usize,
        rotary: &Self::Rotary,
        params: &AttentionParams,
    );

    /// `out[t] = softmax(q[t] k^T * scale) v` over the cached positions up to the token's own. The
    /// context is cut at absolute multiples of 256 positions; each part starts from an empty state
    /// and parts are joined in order.
    fn paged_attention(
        &mut self,
        out: &mut Self::Tensor,
        qkv: &Self::Tensor,
        cache: &Self::KvCache,
        layer: usize,
        params: &AttentionParams,
    );

    /// `out = activation(gate) * up` where a row of `gate_up` is `[gate | up]`.
    fn gated_activation(
        &mut self,
        out: &mut Self::Tensor,
        gate_up: &Self::Tensor,
        activation: Activation,
    );

    /// Chooses each row's experts, as [`ExpertsShape`] says.
    fn route(&mut self, routing: &mut Self::Routing, input: &Self::Tensor, experts: &Self::Experts);

    /// `out = sum over a row's experts of weight * down(activation(gate) * up)`, float32. Inside of a segment of
    /// the inner width, experts are added in order of their index, `sum = fma(weight, expert's, sum)` from zero;
    /// segments are joined by the fixed tree.
    fn expert_feed_forward(
        &mut self,
        out: &mut Self::Tensor,
        input: &Self::Tensor,
        routing: &Self::Routing,
        experts: &Self::Experts,
        activation: Activation,
    );

    /// `values += bias`, float32, row by row and in place: of layers whose parts several ranks add up.
    fn add_bias(&mut self, values: &mut Self::Tensor, bias: &Self::Vector);

    /// `values = cap * tanh(values / cap)`, float32, in place.
    fn soft_cap(&mut self, values: &mut Self::Tensor, cap: f32);

    /// Makes `tile` (a range of the step's `logit_rows`, at most `max_gathered` long) current, and
    /// copies the rows that it names into `out`.
    fn gather(&mut self, out: &mut Self::Tensor, input: &Self::Tensor, tile: Range<usize>);

    /// Samples or scores each row of the current tile from its logits, float32, as its [`crate::LogitRow`] says.
    fn sample(&mut self, logits: &Self::Tensor);

    /// Copies whole blocks of the cache, all layers; pairs are (from, to), and no block is in two of them.
    fn copy_blocks(&mut self, cache: &mut Self::KvCache, pairs: &[(u32, u32)]);

    /// Waits for the queue and moves the results, one per logit row in order, into `results`
    /// (cleared first).
    fn finish_step(&mut self, results: &mut Vec<RowResult>) -> Result<(), BackendError>;

    /// Waits, then reads the step's rows of a tensor. For tests and traces.
    fn read(&mut self, tensor: &Self::Tensor) -> Vec<f32>;

    /// Waits, then reads the choices of the step's rows, `top_k` for each in order of experts: (expert, weight).
    /// For tests and traces.
    fn read_routing(&mut self, routing: &Self::Routing) -> Vec<(u32, f32)>;

    /// Overwrites the step's rows of a tensor. For tests.
    fn write(&mut self, tensor: &mut Self::Tensor, values: &[f32]);

    /// Bytes that the backend holds for weights, cache and workspace.
    fn memory_bytes(&self) -> u64;
}
