//! Rotary position embedding.

use oarlock_backend::RotaryStyle;

use crate::isa::multiversion;
use crate::lanes::{LANES, Lanes, load_partial, store_partial};

/// Cosines and sines of every position, `[position][pair]`.
#[derive(Debug)]
pub struct CpuRotary {
    pub(crate) style: RotaryStyle,
    pub(crate) half: usize,
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
}

impl CpuRotary {
    /// Cosines and sines at a position.
    pub(crate) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

/// Rotates one head in place: `a' = fma(a, cos, -(b sin))`, `b' = fma(b, cos, a sin)`.
pub(crate) fn rotate_head(
    isa: crate::isa::Isa,
    style: RotaryStyle,
    head: &mut [f32],
    angles: (&[f32], &[f32]),
) {
    match style {
        RotaryStyle::Half => rotate_halves(isa, head, angles.0, angles.1),
        RotaryStyle::Interleaved => {
            for ((pair, cos), sin) in
                head.as_chunks_mut::<2>().0.iter_mut().zip(angles.0).zip(angles.1)
            {
                let [a, b] = *pair;
                *pair = [a.mul_add(*cos, -(b * sin)), b.mul_add(*cos, a * sin)];
            }
        }
    }
}

multiversion! {
    /// Element `i` with `i + half`.
    fn rotate_halves = rotate_halves_generic(head: &mut [f32], cos: &[f32], sin: &[f32]);
}

#[inline(always)]
fn rotate_halves_generic<L: Lanes>(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = head.split_at_mut(cos.len());
    let chunks = first.chunks_mut(LANES).zip(second.chunks_mut(LANES));
    for ((first, second), (cos, sin)) in chunks.zip(cos.chunks(LANES).zip(sin.chunks(LANES))) {
        let (a, b) = (load_partial::<L>(first, 0.0), load_partial::<L>(second, 0.0));
        let (cos, sin) = (load_partial::<L>(cos, 0.0), load_partial::<L>(sin, 0.0));
        let minus = L::splat(-0.0).sub(b.mul(sin));
        store_partial(a.mul_add(cos, minus), first);
        store_partial(b.mul_add(cos, a.mul(sin)), second);
    }
}
