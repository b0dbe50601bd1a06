//! Layers of experts: rows are sorted by expert, so that each expert's weights are read once per step.

mod feed_forward;
mod route;

use oarlock_backend::{BackendError, BackendLimits, ExpertChecks, ExpertsShape, WeightView};

use crate::Dtype;
use crate::buffer::AlignedBuffer;
use crate::isa::Isa;
use crate::linear::ActivationBuffers;
use crate::pack::{CpuWeight, F32Part, TILE};
use crate::threads::ThreadPool;

pub(crate) use feed_forward::FeedForward;

/// A layer's router and experts.
#[derive(Debug)]
pub struct CpuExperts {
    pub(crate) checks: ExpertChecks,
    router: F32Part,
    experts: Vec<Expert>,
}

#[derive(Debug)]
struct Expert {
    gate_up: CpuWeight,
    down: CpuWeight,
}

/// Experts of each row in order of their index, `top_k` for each, and their weights.
#[derive(Debug)]
pub struct CpuRouting {
    top_k: usize,
    rows: usize,
    ids: Vec<u32>,
    weights: Vec<f32>,
}

impl CpuRouting {
    pub(crate) fn new(limits: &BackendLimits, shape: &ExpertsShape) -> Self {
        let choices = limits.max_tokens * shape.top_k;
        Self { top_k: shape.top_k, rows: 0, ids: vec![0; choices], weights: vec![0.0; choices] }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        8 * self.ids.len() as u64
    }

    /// All choices of the step's rows.
    pub(crate) fn choices(&self) -> impl Iterator<Item = (u32, f32)> + '_ {
        let len = self.rows * self.top_k;
        self.ids[..len].iter().copied().zip(self.weights[..len].iter().copied())
    }
}

impl CpuExperts {
    pub(crate) fn new(
        shape: &ExpertsShape,
        router: &WeightView<'_>,
        isa: Isa,
        pool: &mut ThreadPool,
    ) -> Result<Self, BackendError> {
        let checks = ExpertChecks::new(shape, router)?;
        let router = F32Part::pack(router, isa, pool)?;
        Ok(Self { checks, router, experts: Vec::with_capacity(shape.num_experts) })
    }

    /// Packs the next expert; gives the bytes that it takes.
    pub(crate) fn pack(
        &mut self,
        gate_up: &[WeightView<'_>; 2],
        down: &WeightView<'_>,
        (dtype, isa): (Dtype, Isa),
        pool: &mut ThreadPool,
    ) -> Result<u64, BackendError> {
        self.checks.next(gate_up, down)?;
        let whole = oarlock_backend::InnerSplit::WHOLE;
        let expert = Expert {
            gate_up: CpuWeight::pack(gate_up, whole, dtype, isa, pool)?,
            down: CpuWeight::pack(&[*down], self.checks.shape().split, dtype, isa, pool)?,
        };
        let bytes = expert.gate_up.bytes() + expert.down.bytes();
        self.experts.push(expert);
        Ok(bytes)
    }

    /// Bytes of the router.
    pub(crate) fn router_bytes(&self) -> u64 {
        self.router.bytes()
    }
}

/// Memory for one layer of experts at a time, shared by all of a model. An assignment is a row with one of
/// its experts; they are sorted by expert, then by row.
#[derive(Debug)]
pub(crate) struct ExpertWorkspace {
    max_tokens: usize,
    threads: usize,
    /// Assignments at most.
    assignments: usize,
    /// `[row][expert]`, padded to tiles.
    logits: AlignedBuffer<f32>,
    /// First assignment of each expert, and the end.
    starts: Vec<usize>,
    /// Experts that have any.
    active: Vec<usize>,
    /// Row and weight of each assignment.
    rows: Vec<u32>,
    weights: Vec<f32>,
    /// First assignment and length of groups that kernels take at once; none spans two experts.
    groups: Vec<(usize, usize)>,
    /// Input rows by assignment, where experts are in float32.
    gathered: AlignedBuffer<f32>,
    input: ActivationBuffers,
    gate_up: AlignedBuffer<f32>,
    gated: AlignedBuffer<f32>,
    hidden: ActivationBuffers,
    /// `[thread][row][segment][output of a tile]`.
    sums: AlignedBuffer<f32>,
}

impl ExpertWorkspace {
    pub(crate) fn new(limits: &BackendLimits, threads: usize) -> Result<Self, BackendError> {
        let empty = || AlignedBuffer::zeroed(0, "experts");
        Ok(Self {
            max_tokens: limits.max_tokens,
            threads,
            assignments: 0,
            logits: empty()?,
            starts: Vec::new(),
            active: Vec::new(),
            rows: Vec::new(),
            weights: Vec::new(),
            groups: Vec::new(),
            gathered: empty()?,
            input: ActivationBuffers::new(0)?,
            gate_up: empty()?,
            gated: empty()?,
            hidden: ActivationBuffers::new(0)?,
            sums: empty()?,
        })
    }

    /// Makes room for layers like this one, whose first expert is packed.
    pub(crate) fn reserve(&mut self, layer: &CpuExperts) -> Result<(), BackendError> {
        let ExpertsShape { num_experts, top_k, hidden, feed_forward, split, .. } =
            *layer.checks.shape();
        let assignments = self.max_tokens * top_k;
        if assignments > self.assignments {
            self.assignments = assignments;
            self.rows = vec![0; assignments];
            self.weights = vec![0.0; assignments];
            self.groups = Vec::with_capacity(assignments);
            self.input.raise_max_rows(assignments)?;
            self.hidden.raise_max_rows(assignments)?;
        }
        if num_experts >= self.starts.len() {
            self.starts = vec![0; num_experts + 1];
            self.active = Vec::with_capacity(num_experts);
        }
        let padded = num_experts.next_multiple_of(TILE);
        grow(&mut self.logits, self.max_tokens * padded, "router logits")?;
        grow(&mut self.gate_up, assignments * 2 * feed_forward, "experts' activations")?;
        grow(&mut self.gated, assignments * feed_forward, "experts' activations")?;
        let sums = self.threads * self.max_tokens * split.segments * TILE;
        grow(&mut self.sums, sums, "experts' sums")?;
        if let Some(expert) = layer.experts.first() {
            self.input.reserve(&expert.gate_up)?;
            self.hidden.reserve(&expert.down)?;
            if expert.gate_up.has_float32() {
                grow(&mut self.gathered, assignments * hidden, "experts' inputs")?;
            }
        }
        Ok(())
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        let floats = [&self.logits, &self.gathered, &self.gate_up, &self.gated, &self.sums]
            .map(AlignedBuffer::bytes);
        floats.iter().sum::<u64>() + self.input.bytes() + self.hidden.bytes()
    }
}

fn grow(buffer: &mut AlignedBuffer<f32>, len: usize, what: &str) -> Result<(), BackendError> {
    if buffer.len() < len {
        *buffer = AlignedBuffer::zeroed(len, what)?;
    }
    Ok(())
}
