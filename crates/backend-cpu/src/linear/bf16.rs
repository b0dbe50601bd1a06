//! The bfloat16 kernel, written once over lanes: the order of AMX's `TDPBF16PS`.

use crate::isa::multiversion;
use crate::lanes::Lanes;
use crate::pack::TILE;

/// Pairs of columns in one block of 32.
const PAIRS: usize = 16;

multiversion! {
    /// Sums of one tile over the blocks of `weights` (`[pair][output]`), from zero, for as many rows as
    /// `sums` has. `input` is the first row's segment, and the distance between rows.
    ///
    /// Per block the even and the odd columns are two chains of FMAs from zero, in order; they are
    /// joined by one addition and added to the sum.
    pub(super) fn tile = tile_generic(
        weights: &[[u32; TILE]], input: (&[f32], usize), sums: &mut [[f32; TILE]],
    );
}

#[inline(always)]
fn tile_generic<L: Lanes>(
    weights: &[[u32; TILE]],
    input: (&[f32], usize),
    sums: &mut [[f32; TILE]],
) {
    let (values, distance) = input;
    let mut rest = sums;
    let mut row = 0;
    while !rest.is_empty() {
        let values = &values[row * distance..];
        let count = if rest.len() >= 4 { 4 } else { rest.len().min(2) };
        let (now, later) = rest.split_at_mut(count);
        match count {
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
    weights: &[[u32; TILE]],
    values: &[f32],
    distance: usize,
    sums: &mut [[f32; TILE]],
) {
    let zero = L::splat(0.0);
    let mut totals = [zero; R];
    for (block, weights) in weights.as_chunks::<PAIRS>().0.iter().enumerate() {
        let mut even = [zero; R];
        let mut odd = [zero; R];
        for (pair, weights) in weights.iter().enumerate() {
            let (low, high) = L::bf16_pairs(weights);
            let column = (block * PAIRS + pair) * 2;
            for row in 0..R {
                let at = row * distance + column;
                even[row] = L::splat(values[at]).mul_add(low, even[row]);
                odd[row] = L::splat(values[at + 1]).mul_add(high, odd[row]);
            }
        }
        for row in 0..R {
            totals[row] = totals[row].add(even[row].add(odd[row]));
        }
    }
    for (total, sums) in totals.into_iter().zip(sums) {
        total.store(sums);
    }
}
