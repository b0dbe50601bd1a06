//! Rows through their experts: gate and up, activation, down, and the weighted sum.

use oarlock_backend::{Activation, ExpertsShape};

use crate::activation::gated_activation;
use crate::buffer::SharedSlice;
use crate::isa::{Isa, multiversion};
use crate::lanes::Lanes;
use crate::linear::{
    MAX_GROUP, MAX_SEGMENTS, PANEL, Panel, Products, TileSums, WORK_PER_SIGN, configured_unit,
    group_len, join_segments,
};
use crate::pack::TILE;
use crate::tensor::CpuTensor;
use crate::threads::{ThreadPool, quarter_share};

use super::{CpuExperts, CpuRouting, ExpertWorkspace};

/// One layer of experts over the rows of a step.
pub(crate) struct FeedForward<'a> {
    pub(crate) isa: Isa,
    pub(crate) layer: &'a CpuExperts,
    pub(crate) routing: &'a CpuRouting,
    pub(crate) input: &'a CpuTensor,
    pub(crate) activation: Activation,
}

impl ExpertWorkspace {
    /// Writes what the rows' experts add up to into `out`, `[rows, hidden]`.
    pub(crate) fn feed_forward(
        &mut self,
        pool: &mut ThreadPool,
        call: &FeedForward<'_>,
        out: &mut [f32],
    ) -> Result<(), String> {
        let ExpertsShape { num_experts, hidden, .. } = *call.layer.checks.shape();
        assert_eq!(call.layer.experts.len(), num_experts, "all experts are packed");
        assert_eq!(out.len(), call.routing.rows * hidden, "output of the layer");
        self.assign(call.routing, num_experts);
        if self.groups.is_empty() {
            return Ok(());
        }
        self.gate_up(pool, call)?;
        self.activate(pool, call)?;
        self.down(pool, call, out)
    }

    /// Sorts the choices by expert, then by row.
    fn assign(&mut self, routing: &CpuRouting, num_experts: usize) {
        let starts = &mut self.starts[..=num_experts];
        starts.fill(0);
        let choices = || routing.choices().enumerate();
        choices().for_each(|(_, (expert, _))| starts[expert as usize + 1] += 1);
        for expert in 0..num_experts {
            starts[expert + 1] += starts[expert];
        }
        for (choice, (expert, weight)) in choices() {
            let at = &mut starts[expert as usize];
            self.rows[*at] = (choice / routing.top_k) as u32;
            self.weights[*at] = weight;
            *at += 1;
        }
        // Each has become the next one's.
        starts.rotate_right(1);
        starts[0] = 0;
        self.active.clear();
        self.groups.clear();
        for expert in 0..num_experts {
            let (mut first, end) = (self.starts[expert], self.starts[expert + 1]);
            if first < end {
                self.active.push(expert);
            }
            while first < end {
                let len = group_len(end - first);
                self.groups.push((first, len));
                first += len;
            }
        }
    }

    /// Items of work are tiles of each active expert.
    fn gate_up(&mut self, pool: &mut ThreadPool, call: &FeedForward<'_>) -> Result<(), String> {
        let FeedForward { isa, layer, input, .. } = *call;
        let Self { starts, active, rows, groups, gathered, input: buffers, gate_up, .. } = self;
        let weight = &layer.experts[active[0]].gate_up;
        let hidden = input.width;
        if weight.has_float32() {
            gather(pool, groups, (&*rows, input), gathered)?;
        }
        let source = |row: usize| input.row(rows[row] as usize);
        buffers.convert_groups(isa, pool, groups, &source, weight)?;
        let out = SharedSlice::new(gate_up);
        let (tiles, threads) = (weight.tiles(), pool.threads());
        let items = active.len() * tiles;
        let progress = pool.progress();
        let (buffers, gathered) = (&*buffers, &**gathered);
        pool.run(items, quarter_share(items, threads), &|_, taken| {
            let unit = configured_unit(isa);
            let mut work = 0;
            for item in taken {
                let (expert, tile) = (active[item / tiles], item % tiles);
                let weight = &layer.experts[expert].gate_up;
                for first in (starts[expert]..starts[expert + 1]).step_by(PANEL) {
                    let rows = first..starts[expert + 1].min(first + PANEL);
                    work += rows.len() * TILE * hidden;
                    let products = Products { isa, unit: &unit, weight, input: gathered, buffers };
                    Panel { products, bias: None, rows, out }.run(tile..tile + 1);
                    if work > WORK_PER_SIGN
                        && let Some(progress) = &progress
                    {
                        progress.advance();
                        work = 0;
                    }
                }
            }
        })
    }

    fn activate(&mut self, pool: &mut ThreadPool, call: &FeedForward<'_>) -> Result<(), String> {
        let FeedForward { isa, layer, activation, .. } = *call;
        let width = layer.checks.shape().feed_forward;
        let Self { groups, gate_up, gated, .. } = self;
        let out = SharedSlice::new(gated);
        let threads = pool.threads();
        let gate_up = &**gate_up;
        pool.run(groups.len(), quarter_share(groups.len(), threads), &|_, taken| {
            for &(first, len) in &groups[taken] {
                for row in first..first + len {
                    // SAFETY: each row is written by one thread.
                    let out = unsafe { out.range(row * width..(row + 1) * width) };
                    let input = &gate_up[row * 2 * width..][..2 * width];
                    gated_activation(isa, out, input, activation);
                }
            }
        })
    }

    /// Items of work are tiles of the output, each over all experts in order.
    fn down(
        &mut self,
        pool: &mut ThreadPool,
        call: &FeedForward<'_>,
        out: &mut [f32],
    ) -> Result<(), String> {
        let FeedForward { isa, layer, routing, .. } = *call;
        let ExpertsShape { hidden, feed_forward, split, .. } = *layer.checks.shape();
        let segments = split.segments;
        let Self { starts, active, rows, weights, groups, gated, hidden: buffers, sums, .. } = self;
        let source = |row: usize| &gated[row * feed_forward..][..feed_forward];
        buffers.convert_groups(isa, pool, groups, &source, &layer.experts[active[0]].down)?;
        let (buffers, gated) = (&*buffers, &**gated);
        let out = SharedSlice::new(out);
        let share = self.max_tokens * segments * TILE;
        let sums = SharedSlice::new(sums);
        let (tiles, threads) = (hidden.div_ceil(TILE), pool.threads());
        let progress = pool.progress();
        pool.run(tiles, quarter_share(tiles, threads), &|thread, taken| {
            let unit = configured_unit(isa);
            let mut tile_sums = [[[0.0; TILE]; MAX_GROUP]; MAX_SEGMENTS];
            // SAFETY: each thread has its own part.
            let sums = unsafe { sums.range(thread * share..(thread + 1) * share) };
            let sums = &mut sums.as_chunks_mut::<TILE>().0[..routing.rows * segments];
            let mut work = 0;
            for tile in taken {
                sums.fill([0.0; TILE]);
                for &expert in active.iter() {
                    let weight = &layer.experts[expert].down;
                    let products = Products { isa, unit: &unit, weight, input: gated, buffers };
                    let (mut row, end) = (starts[expert], starts[expert + 1]);
                    while row < end {
                        let group = group_len(end - row);
                        products.sums(&weight.parts[0], tile, (row, group), &mut tile_sums);
                        let range = row..row + group;
                        let places = (&rows[range.clone()], &weights[range]);
                        accumulate(isa, places, &tile_sums[..segments], sums);
                        row += group;
                        work += group * TILE * feed_forward;
                    }
                    if work > WORK_PER_SIGN
                        && let Some(progress) = &progress
                    {
                        progress.advance();
                        work = 0;
                    }
                }
                let valid = TILE.min(hidden - tile * TILE);
                for (row, sums) in sums.chunks_exact_mut(segments).enumerate() {
                    join_segments(segments, |i| {
                        for lane in 0..TILE {
                            sums[i][lane] = sums[2 * i][lane] + sums[2 * i + 1][lane];
                        }
                    });
                    let at = row * hidden + tile * TILE;
                    // SAFETY: each tile is computed by one thread, and the output outlives the job.
                    unsafe { out.range(at..at + valid) }.copy_from_slice(&sums[0][..valid]);
                }
            }
        })
    }
}

/// Copies the input row of each assignment of some groups.
fn gather(
    pool: &mut ThreadPool,
    groups: &[(usize, usize)],
    (rows, input): (&[u32], &CpuTensor),
    out: &mut [f32],
) -> Result<(), String> {
    let width = input.width;
    let out = SharedSlice::new(out);
    let share = quarter_share(groups.len(), pool.threads());
    pool.run(groups.len(), share, &|_, taken| {
        for &(first, len) in &groups[taken] {
            for at in first..first + len {
                // SAFETY: each assignment is copied by one thread.
                let out = unsafe { out.range(at * width..(at + 1) * width) };
                out.copy_from_slice(input.row(rows[at] as usize));
            }
        }
    })
}

multiversion! {
    /// Adds one expert's sums of a tile to those of the rows: `sum = fma(weight, expert's, sum)`. `places`
    /// are the rows of a group and the expert's weight for each.
    fn accumulate = accumulate_generic(
        places: (&[u32], &[f32]), expert: &[TileSums], sums: &mut [[f32; TILE]],
    );
}

#[inline(always)]
fn accumulate_generic<L: Lanes>(
    (rows, weights): (&[u32], &[f32]),
    expert: &[TileSums],
    sums: &mut [[f32; TILE]],
) {
    for (index, (&row, &weight)) in rows.iter().zip(weights).enumerate() {
        let sums = &mut sums[row as usize * expert.len()..][..expert.len()];
        let weight = L::splat(weight);
        for (sum, expert) in sums.iter_mut().zip(expert) {
            weight.mul_add(L::load(&expert[index]), L::load(sum)).store(sum);
        }
    }
}
