//! Frequencies of rotary embeddings, and the ways in which models were taught longer contexts.

mod scaling;

pub(crate) use scaling::{RopeScaling, Yarn, long_attention_factor, yarn_attention_factor};

use oarlock_backend::RotaryStyle;

use crate::buffers::BufferType;

/// How heads are rotated.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rope {
    /// Base of the angles.
    pub(crate) theta: f32,
    /// Elements of a head that are rotated, the first ones.
    pub(crate) rotated: usize,
    pub(crate) style: RotaryStyle,
    pub(crate) scaling: RopeScaling,
}

impl Rope {
    /// Frequencies of all pairs, and the factor of cosines and sines, of a server that has sequences of at
    /// most so many positions.
    pub(crate) fn frequencies(&self, positions: usize, buffers: BufferType) -> (Vec<f32>, f32) {
        // theta^(-2 i / rotated) for each pair of elements (Su et al. 2021, RoFormer).
        let exponent = |pair: usize| 2.0 * pair as f64 / self.rotated as f64;
        let frequency = |pair| 1.0 / libm::pow(f64::from(self.theta), exponent(pair));
        let plain: Vec<f64> = (0..self.rotated / 2).map(frequency).collect();
        let (scaled, factor) = self.scaling.apply(plain, f64::from(self.theta), positions);
        // transformers computes the long factors' frequencies anew when it needs them: no buffer.
        let buffers = if self.is_long(positions) { BufferType::Float32 } else { buffers };
        (scaled.into_iter().map(|one| buffers.round(one as f32)).collect(), factor)
    }

    /// Whether a server that has sequences of so many positions takes LongRoPE's factors for long ones.
    pub(crate) fn is_long(&self, positions: usize) -> bool {
        matches!(&self.scaling, RopeScaling::LongRope { original_context, .. } if positions > *original_context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(scaling: RopeScaling) -> Rope {
        Rope { theta: 10_000.0, rotated: 4, style: RotaryStyle::Half, scaling }
    }

    #[test]
    fn scaled_positions_turn_slower() {
        let frequencies = |scaling, buffers| rope(scaling).frequencies(100, buffers);
        let plain = frequencies(RopeScaling::None, BufferType::Float32);
        assert_eq!(plain, (vec![1.0, 0.01], 1.0));
        let linear = frequencies(RopeScaling::Linear { factor: 8.0 }, BufferType::Float32);
        assert_eq!(linear.0, [0.125, 0.01 / 8.0]);
        // What a cast model has: 0.01 is 0.0100097656 in bfloat16.
        let cast = frequencies(RopeScaling::None, BufferType::Bfloat16);
        assert_eq!(cast.0, [1.0, 0.010_009_766]);
    }
}
