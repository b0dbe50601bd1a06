//! `residual += delta`, then `out = residual / rms(residual) * weight`; and the norm alone, in place.

use crate::isa::multiversion;
use crate::lanes::{LANES, Lanes, load_partial, store_partial, sum_lanes};

multiversion! {
    /// One row. The sum of squares runs in sixteen lanes (element i in lane i mod 16, in order, by FMA;
    /// a short end is padded with zeros), joined by the fixed tree.
    pub(crate) fn add_rms_norm = add_rms_norm_generic(
        out: &mut [f32], residual: &mut [f32], delta: Option<&[f32]>, weight: &[f32], eps: f32,
    );
}

multiversion! {
    /// One row or one head, in place, with the sum of [`add_rms_norm`].
    pub(crate) fn rms_norm = rms_norm_generic(values: &mut [f32], weight: &[f32], eps: f32);
}

#[inline(always)]
fn add_rms_norm_generic<L: Lanes>(
    out: &mut [f32],
    residual: &mut [f32],
    delta: Option<&[f32]>,
    weight: &[f32],
    eps: f32,
) {
    let width = residual.len();
    assert!(out.len() == width && weight.len() == width, "width of the norm");
    let mut squares = L::splat(0.0);
    if let Some(delta) = delta {
        assert_eq!(delta.len(), width, "width of the norm");
        let (chunks, rest) = residual.as_chunks_mut::<LANES>();
        let (deltas, delta_rest) = delta.as_chunks::<LANES>();
        for (chunk, delta) in chunks.iter_mut().zip(deltas) {
            let sum = L::load(chunk).add(L::load(delta));
            sum.store(chunk);
            squares = sum.mul_add(sum, squares);
        }
        for (value, delta) in rest.iter_mut().zip(delta_rest) {
            *value += delta;
        }
        let rest = load_partial::<L>(rest, 0.0);
        squares = rest.mul_add(rest, squares);
    } else {
        squares = squares_of(residual);
    }
    let inverse = inverse_rms(squares, width, eps);
    let (outs, out_rest) = out.as_chunks_mut::<LANES>();
    let (values, value_rest) = residual.as_chunks::<LANES>();
    let (weights, weight_rest) = weight.as_chunks::<LANES>();
    for ((out, value), weight) in outs.iter_mut().zip(values).zip(weights) {
        L::load(value).mul(inverse).mul(L::load(weight)).store(out);
    }
    let rest = load_partial::<L>(value_rest, 0.0).mul(inverse).mul(load_partial(weight_rest, 0.0));
    store_partial(rest, out_rest);
}

#[inline(always)]
fn rms_norm_generic<L: Lanes>(values: &mut [f32], weight: &[f32], eps: f32) {
    assert_eq!(values.len(), weight.len(), "width of the norm");
    let inverse = inverse_rms(squares_of::<L>(values), values.len(), eps);
    let (chunks, rest) = values.as_chunks_mut::<LANES>();
    let (weights, weight_rest) = weight.as_chunks::<LANES>();
    for (chunk, weight) in chunks.iter_mut().zip(weights) {
        L::load(chunk).mul(inverse).mul(L::load(weight)).store(chunk);
    }
    let last = load_partial::<L>(rest, 0.0).mul(inverse).mul(load_partial(weight_rest, 0.0));
    store_partial(last, rest);
}

/// Sums of squares by lane.
#[inline(always)]
fn squares_of<L: Lanes>(values: &[f32]) -> L {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut squares = L::splat(0.0);
    for chunk in chunks {
        let value = L::load(chunk);
        squares = value.mul_add(value, squares);
    }
    let rest = load_partial::<L>(rest, 0.0);
    rest.mul_add(rest, squares)
}

/// `1 / sqrt(mean + eps)` in every lane.
#[inline(always)]
fn inverse_rms<L: Lanes>(squares: L, width: usize, eps: f32) -> L {
    let mean = sum_lanes(squares) / width as f32;
    L::splat(1.0 / (mean + eps).sqrt())
}
