//! The float32 kernel: one FMA chain per output, in order of columns.

use crate::isa::multiversion;
use crate::lanes::Lanes;
use crate::pack::TILE;

multiversion! {
    /// Sums of one tile over some columns (`[column][output]`), from zero, for as many rows as `sums`
    /// has. `input` is the first row's segment, and the distance between rows.
    pub(crate) fn tile = tile_generic(
        weights: &[[f32; TILE]], input: (&[f32], usize), sums: &mut [[f32; TILE]],
    );
}

#[inline(always)]
fn tile_generic<L: Lanes>(
    weights: &[[f32; TILE]],
    (values, distance): (&[f32], usize),
    sums: &mut [[f32; TILE]],
) {
    let mut row = 0;
    let mut rest = sums;
    while !rest.is_empty() {
        let values = &values[row * distance..];
        let count = if rest.len() >= 8 { 8 } else { 1 << rest.len().ilog2() };
        let (now, later) = rest.split_at_mut(count);
        match count {
            8 => rows::<L, 8>(weights, values, distance, now),
            4 => rows::<L, 4>(weights, values, distance, now),
            2 => rows::<L, 2>(weights, values, distance, now),
            _ => rows::<L, 1>(weights, values, distance, now),
        }
        row += count;
        rest = later;
    }
}

#[inline(always)]
fn rows<L: Lanes, const R: usize>(
    weights: &[[f32; TILE]],
    values: &[f32],
    distance: usize,
    sums: &mut [[f32; TILE]],
) {
    let values: [&[f32]; R] = std::array::from_fn(|row| &values[row * distance..][..weights.len()]);
    let mut totals = [L::splat(0.0); R];
    for (column, weights) in weights.iter().enumerate() {
        let weights = L::load(weights);
        for row in 0..R {
            totals[row] = L::splat(values[row][column]).mul_add(weights, totals[row]);
        }
    }
    for (total, sums) in totals.into_iter().zip(sums) {
        total.store(sums);
    }
}
