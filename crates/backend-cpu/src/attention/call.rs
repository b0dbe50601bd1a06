//! Which thread computes which part of an attention layer.
//!
//! A task is one row and one key/value head. Where there are tasks for every thread, each does all its
//! parts in order; otherwise (a few long sequences, one token each) the parts of a task are spread over
//! the threads and joined afterwards, in the same order and so with the same bits.

use oarlock_backend::{AttentionParams, StepRecord};

use crate::buffer::SharedSlice;
use crate::isa::Isa;
use crate::threads::{ThreadPool, quarter_share};

use super::CpuKvCache;
use super::kernel::{HeadGroup, PART, PartState, attend, join_parts};

/// Query heads of one set at most: its states live on the stack.
const MAX_HEADS: usize = 8;
/// Width of a head at most.
const MAX_HEAD_DIM: usize = 256;

/// Memory for parts that are joined later: `[task][part][head]`.
#[derive(Debug)]
pub(crate) struct PartialSums {
    max_parts: usize,
    states: Vec<PartState>,
    sums: Vec<f32>,
}

impl PartialSums {
    /// Nothing yet; the first use makes room for every later one.
    pub(crate) fn new(max_positions: usize) -> Self {
        Self {
            max_parts: max_positions.div_ceil(PART).max(1),
            states: Vec::new(),
            sums: Vec::new(),
        }
    }

    fn reserve(&mut self, tasks: usize, heads: usize, dim: usize) {
        let states = tasks * self.max_parts * heads;
        if self.states.len() < states {
            self.states.resize(states, PartState::default());
        }
        if self.sums.len() < states * dim {
            self.sums.resize(states * dim, 0.0);
        }
    }
}

/// One attention layer of one step.
#[derive(Clone, Copy)]
pub(crate) struct AttentionCall<'a> {
    pub(crate) isa: Isa,
    pub(crate) step: &'a StepRecord,
    pub(crate) cache: &'a CpuKvCache,
    pub(crate) layer: usize,
    pub(crate) params: &'a AttentionParams,
}

impl<'a> AttentionCall<'a> {
    /// Computes all rows: `qkv` and `out` are those of the step.
    pub(crate) fn run(
        self,
        pool: &mut ThreadPool,
        partials: &mut PartialSums,
        qkv: &[f32],
        out: &mut [f32],
    ) -> Result<(), String> {
        let (rows, threads) = (self.step.num_rows(), pool.threads());
        assert_eq!(
            out.len(),
            rows * self.params.num_heads * self.params.head_dim,
            "attention output"
        );
        assert!(
            self.params.num_heads.is_multiple_of(self.params.num_kv_heads),
            "heads in whole groups"
        );
        let dim = self.params.head_dim;
        assert!(dim <= MAX_HEAD_DIM && dim.is_multiple_of(16), "width of a head");
        let tasks = rows * self.params.num_kv_heads;
        let parts = (0..tasks).map(|task| self.group(task).parts().len()).max().unwrap_or(0);
        // Also where this step has no use for it, so that the first step makes room and no later one.
        partials.reserve(threads, self.heads(), dim);
        if tasks < threads && parts > 1 {
            return self.run_spread(pool, partials, qkv, out);
        }
        let shared = SharedSlice::new(out);
        pool.run(tasks, quarter_share(tasks, threads).min(32), &|_, range| {
            for task in range {
                let heads = self.heads() * dim;
                // SAFETY: tasks write their own heads of their own row, in order of tasks.
                let out = unsafe { shared.range(task * heads..(task + 1) * heads) };
                self.all_parts(task, self.queries(task, qkv), out);
            }
        })
    }

    /// Query heads per key/value head.
    fn heads(&self) -> usize {
        self.params.num_heads / self.params.num_kv_heads
    }

    /// Queries of a task, `[head][head_dim]`.
    fn queries<'q>(&self, task: usize, qkv: &'q [f32]) -> &'q [f32] {
        let AttentionParams { num_heads, num_kv_heads, head_dim, .. } = *self.params;
        let (row, kv_head) = (task / num_kv_heads, task % num_kv_heads);
        let width = (num_heads + 2 * num_kv_heads) * head_dim;
        &qkv[row * width + kv_head * self.heads() * head_dim..][..self.heads() * head_dim]
    }

    fn group(&self, task: usize) -> HeadGroup<'a> {
        let (row, kv_head) = (task / self.params.num_kv_heads, task % self.params.num_kv_heads);
        let end = self.step.position(row) + 1;
        let window = self.params.sliding_window.map_or(usize::MAX, |window| window as usize);
        HeadGroup {
            cache: self.cache,
            layer: self.layer,
            kv_head,
            table: self.step.table(row),
            visible: (end.saturating_sub(window), end),
            scale: self.params.scale,
            soft_cap: self.params.soft_cap,
            head_dim: self.params.head_dim,
        }
    }

    /// One task on one thread.
    fn all_parts(&self, task: usize, queries: &[f32], out: &mut [f32]) {
        let group = self.group(task);
        let dim = group.head_dim;
        let mut next_out = [0.0; MAX_HEADS * MAX_HEAD_DIM];
        for (queries, out) in queries.chunks(MAX_HEADS * dim).zip(out.chunks_mut(MAX_HEADS * dim)) {
            let heads = queries.len() / dim;
            let mut states = [PartState::default(); MAX_HEADS];
            let parts = group.parts();
            attend(self.isa, &group, parts.start, queries, &mut states[..heads], out);
            for part in parts.skip(1) {
                let mut next = [PartState::default(); MAX_HEADS];
                attend(
                    self.isa,
                    &group,
                    part,
                    queries,
                    &mut next[..heads],
                    &mut next_out[..heads * dim],
                );
                self.join(&mut states[..heads], out, &next[..heads], &next_out[..heads * dim]);
            }
            divide(&states[..heads], out, dim);
        }
    }

    fn join(
        &self,
        states: &mut [PartState],
        out: &mut [f32],
        next: &[PartState],
        next_out: &[f32],
    ) {
        let dim = self.params.head_dim;
        let outs = out.chunks_exact_mut(dim).zip(next_out.chunks_exact(dim));
        for ((state, next), (out, next_out)) in states.iter_mut().zip(next).zip(outs) {
            join_parts(self.isa, state, out, *next, next_out);
        }
    }

    /// The parts of every task over all threads, then the joins on the caller's.
    fn run_spread(
        self,
        pool: &mut ThreadPool,
        partials: &mut PartialSums,
        qkv: &[f32],
        out: &mut [f32],
    ) -> Result<(), String> {
        let (heads, dim) = (self.heads(), self.params.head_dim);
        let tasks = self.step.num_rows() * self.params.num_kv_heads;
        let max_parts = partials.max_parts;
        let states = SharedSlice::new(&mut partials.states);
        let sums = SharedSlice::new(&mut partials.sums);
        pool.run(tasks * max_parts, 1, &|_, range| {
            for unit in range {
                let (task, part) = (unit / max_parts, unit % max_parts);
                let group = self.group(task);
                if !group.parts().contains(&part) {
                    continue;
                }
                let first = unit * heads;
                // SAFETY: each part of each task is taken by one thread.
                let (states, sums) = unsafe {
                    (
                        states.range(first..first + heads),
                        sums.range(first * dim..(first + heads) * dim),
                    )
                };
                attend(self.isa, &group, part, self.queries(task, qkv), states, sums);
            }
        })?;
        for (task, out) in out.chunks_exact_mut(heads * dim).enumerate() {
            let parts = self.group(task).parts();
            let first = (task * max_parts + parts.start) * heads;
            let (now, later) = partials.states[first..].split_at_mut(heads);
            out.copy_from_slice(&partials.sums[first * dim..][..heads * dim]);
            for part in 0..parts.len() - 1 {
                let next_out = &partials.sums[(first + (part + 1) * heads) * dim..][..heads * dim];
                self.join(now, out, &later[part * heads..][..heads], next_out);
            }
            divide(now, out, dim);
        }
        Ok(())
    }
}

/// Weighted sums to means.
fn divide(states: &[PartState], out: &mut [f32], dim: usize) {
    for (state, out) in states.iter().zip(out.chunks_exact_mut(dim)) {
        for value in out {
            *value /= state.sum;
        }
    }
}
