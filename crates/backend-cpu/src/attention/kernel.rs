//! Attention of one row and a few query heads of one key/value head over one part of the context.

use std::ops::Range;

use oarlock_types::BLOCK_TOKENS;

use crate::isa::{Isa, multiversion};
use crate::lanes::{LANES, Lanes, exp, sum_lanes, tanh};

use super::CpuKvCache;
use super::cache::KvElement;

/// Positions of one part.
pub(crate) const PART: usize = 256;

/// What the heads of one task see.
#[derive(Clone, Copy)]
pub(crate) struct HeadGroup<'a> {
    pub(crate) cache: &'a CpuKvCache,
    pub(crate) layer: usize,
    pub(crate) kv_head: usize,
    /// Blocks of the sequence.
    pub(crate) table: &'a [u32],
    /// First and one past the last visible position.
    pub(crate) visible: (usize, usize),
    pub(crate) scale: f32,
    pub(crate) soft_cap: Option<f32>,
    pub(crate) head_dim: usize,
}

impl HeadGroup<'_> {
    /// The parts with a visible position, by number.
    pub(crate) fn parts(&self) -> Range<usize> {
        self.visible.0 / PART..self.visible.1.div_ceil(PART)
    }
}

/// Softmax state of one query head: greatest score, sum of weights; the weighted sum is kept apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct PartState {
    pub(crate) max: f32,
    pub(crate) sum: f32,
}

/// One part for consecutive query heads: `queries` and `out` are `[head][head_dim]`, one state each.
/// Heads go in sets that fit the registers; a head's bits do not depend on its set.
pub(crate) fn attend(
    isa: Isa,
    group: &HeadGroup<'_>,
    part: usize,
    queries: &[f32],
    states: &mut [PartState],
    out: &mut [f32],
) {
    if group.cache.is_f32() {
        attend_f32(isa, group, part, queries, states, out);
    } else {
        attend_f16(isa, group, part, queries, states, out);
    }
}

multiversion! {
    fn attend_f16 = attend_f16_generic(
        group: &HeadGroup<'_>, part: usize, queries: &[f32], states: &mut [PartState], out: &mut [f32],
    );
}

multiversion! {
    fn attend_f32 = attend_f32_generic(
        group: &HeadGroup<'_>, part: usize, queries: &[f32], states: &mut [PartState], out: &mut [f32],
    );
}

#[inline(always)]
fn attend_f16_generic<L: Lanes>(
    group: &HeadGroup<'_>,
    part: usize,
    queries: &[f32],
    states: &mut [PartState],
    out: &mut [f32],
) {
    attend_generic::<L, u16>(group, part, queries, states, out);
}

#[inline(always)]
fn attend_f32_generic<L: Lanes>(
    group: &HeadGroup<'_>,
    part: usize,
    queries: &[f32],
    states: &mut [PartState],
    out: &mut [f32],
) {
    attend_generic::<L, f32>(group, part, queries, states, out);
}

#[inline(always)]
fn attend_generic<L: Lanes, E: KvElement>(
    group: &HeadGroup<'_>,
    part: usize,
    queries: &[f32],
    states: &mut [PartState],
    out: &mut [f32],
) {
    let dim = group.head_dim;
    let mut first = 0;
    while first < states.len() {
        let left = states.len() - first;
        let count = left.min(L::MAX_SUMS);
        let queries = &queries[first * dim..(first + count) * dim];
        let states = &mut states[first..first + count];
        let out = &mut out[first * dim..(first + count) * dim];
        match count {
            8 => attend_heads::<L, E, 8>(group, part, queries, states, out),
            7 => attend_heads::<L, E, 7>(group, part, queries, states, out),
            6 => attend_heads::<L, E, 6>(group, part, queries, states, out),
            5 => attend_heads::<L, E, 5>(group, part, queries, states, out),
            4 => attend_heads::<L, E, 4>(group, part, queries, states, out),
            3 => attend_heads::<L, E, 3>(group, part, queries, states, out),
            2 => attend_heads::<L, E, 2>(group, part, queries, states, out),
            _ => attend_heads::<L, E, 1>(group, part, queries, states, out),
        }
        first += count;
    }
}

#[inline(always)]
fn attend_heads<L: Lanes, E: KvElement, const H: usize>(
    group: &HeadGroup<'_>,
    part: usize,
    queries: &[f32],
    states: &mut [PartState],
    out: &mut [f32],
) {
    let start = (part * PART).max(group.visible.0);
    let end = ((part + 1) * PART).min(group.visible.1);
    // Scores of whole blocks, by position inside the part.
    let mut scores = [[0.0_f32; PART]; H];
    let first_block = start / BLOCK_TOKENS;
    let end_block = end.div_ceil(BLOCK_TOKENS);
    for block in first_block..end_block {
        block_scores::<L, E, H>(group, block, queries, &mut scores);
    }
    let lanes = first_block * BLOCK_TOKENS % PART..(end_block - 1) * BLOCK_TOKENS % PART + LANES;
    for (scores, state) in scores.iter_mut().zip(states) {
        let scores = &mut scores[..];
        let begin = part * PART;
        scores[lanes.start..start - begin].fill(f32::NEG_INFINITY);
        scores[end - begin..lanes.end].fill(f32::NEG_INFINITY);
        *state = weights::<L>(&mut scores[lanes.clone()]);
    }
    for column in (0..group.head_dim).step_by(LANES) {
        let mut sums = [L::splat(0.0); H];
        for block in first_block..end_block {
            let (_, values) =
                group.cache.block::<E>(group.layer, group.table[block], group.kv_head);
            let from = start.max(block * BLOCK_TOKENS) - block * BLOCK_TOKENS;
            let to = end.min((block + 1) * BLOCK_TOKENS) - block * BLOCK_TOKENS;
            let at = block * BLOCK_TOKENS % PART;
            for token in from..to {
                let value = E::load::<L>(chunk(values, token * group.head_dim + column));
                for head in 0..H {
                    sums[head] = L::splat(scores[head][at + token]).mul_add(value, sums[head]);
                }
            }
        }
        for (head, sum) in sums.into_iter().enumerate() {
            sum.store(chunk_mut(out, head * group.head_dim + column));
        }
    }
}

/// Scores of the sixteen positions of one block: `q · k`, one FMA chain in order of elements, times the
/// scale, soft-capped.
#[inline(always)]
fn block_scores<L: Lanes, E: KvElement, const H: usize>(
    group: &HeadGroup<'_>,
    block: usize,
    queries: &[f32],
    scores: &mut [[f32; PART]; H],
) {
    let (keys, _) = group.cache.block::<E>(group.layer, group.table[block], group.kv_head);
    let dim = group.head_dim;
    let queries: [&[f32]; H] = std::array::from_fn(|head| &queries[head * dim..][..dim]);
    let mut sums = [L::splat(0.0); H];
    for (element, keys) in keys[..dim].iter().enumerate() {
        let key = E::load::<L>(keys);
        for head in 0..H {
            sums[head] = L::splat(queries[head][element]).mul_add(key, sums[head]);
        }
    }
    for (sum, scores) in sums.into_iter().zip(scores) {
        let mut score = sum.mul(L::splat(group.scale));
        if let Some(cap) = group.soft_cap {
            let cap = L::splat(cap);
            score = tanh(score.div(cap)).mul(cap);
        }
        score.store(chunk_mut(scores, block * BLOCK_TOKENS % PART));
    }
}

/// Scores to weights `exp(score - max)`; position j adds to lane j mod 16, lanes join by the fixed tree.
#[inline(always)]
fn weights<L: Lanes>(scores: &mut [f32]) -> PartState {
    let chunks = scores.as_chunks_mut::<LANES>().0;
    let mut max = L::splat(f32::NEG_INFINITY);
    for chunk in chunks.iter() {
        max = L::load(chunk).max(max);
    }
    let mut greatest = [0.0; LANES];
    max.store(&mut greatest);
    let max = greatest.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
    let mut sum = L::splat(0.0);
    for chunk in chunks {
        let weight = exp(L::load(chunk).sub(L::splat(max)));
        sum = sum.add(weight);
        weight.store(chunk);
    }
    PartState { max, sum: sum_lanes(sum) }
}

#[inline(always)]
fn chunk<T>(values: &[T], at: usize) -> &[T; LANES] {
    values[at..].first_chunk().expect("a head is a multiple of 16 wide")
}

#[inline(always)]
fn chunk_mut(values: &mut [f32], at: usize) -> &mut [f32; LANES] {
    values[at..].first_chunk_mut().expect("a head is a multiple of 16 wide")
}

multiversion! {
    /// Joins the next part into a head's state and weighted sum.
    pub(crate) fn join_parts = join_generic(
        state: &mut PartState, out: &mut [f32], next: PartState, next_out: &[f32],
    );
}

/// With M the greater maximum: `sum = fma(sum, exp(max - M), next_sum * exp(next_max - M))`, and the
/// weighted sums in the same way.
#[inline(always)]
fn join_generic<L: Lanes>(
    state: &mut PartState,
    out: &mut [f32],
    next: PartState,
    next_out: &[f32],
) {
    let max = if next.max > state.max { next.max } else { state.max };
    let old = oarlock_sampler::math::exp(state.max - max);
    let new = oarlock_sampler::math::exp(next.max - max);
    *state = PartState { max, sum: state.sum.mul_add(old, next.sum * new) };
    let (old, new) = (L::splat(old), L::splat(new));
    for (out, next) in
        out.as_chunks_mut::<LANES>().0.iter_mut().zip(next_out.as_chunks::<LANES>().0)
    {
        L::load(out).mul_add(old, L::load(next).mul(new)).store(out);
    }
}
