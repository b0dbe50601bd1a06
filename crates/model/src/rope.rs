//! Frequencies of rotary embeddings.

use std::fmt;
use std::str::FromStr;

use half::bf16;

/// What the frequencies of angles are rounded to before they are multiplied by positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RopeFrequencies {
    /// As models are run: not at all.
    #[default]
    Float32,
    /// As a model has them that was cast as a whole (`model.to(torch.bfloat16)`), buffers included. Angles
    /// at far positions are other ones then; for comparing with what such a model gave.
    Bfloat16,
}

impl RopeFrequencies {
    pub(crate) fn round(self, frequencies: Vec<f32>) -> Vec<f32> {
        match self {
            Self::Float32 => frequencies,
            Self::Bfloat16 => {
                frequencies.into_iter().map(|one| bf16::from_f32(one).to_f32()).collect()
            }
        }
    }
}

impl fmt::Display for RopeFrequencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
        })
    }
}

impl FromStr for RopeFrequencies {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let all = [Self::Float32, Self::Bfloat16];
        let found = all.into_iter().find(|one| one.to_string() == name);
        found.ok_or_else(|| "float32 and bfloat16 are possible".to_owned())
    }
}

/// `theta^(-2 i / head_dim)` for each pair of elements (Su et al. 2021, RoFormer), over `divisor`
/// (Chen et al. 2023, position interpolation).
pub(crate) fn inverse_frequencies(head_dim: usize, theta: f32, divisor: f32) -> Vec<f32> {
    let exponent = |pair: usize| 2.0 * pair as f64 / head_dim as f64;
    let frequency = |pair| 1.0 / libm::pow(f64::from(theta), exponent(pair)) / f64::from(divisor);
    (0..head_dim / 2).map(|pair| frequency(pair) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaled_positions_turn_slower() {
        let frequencies = inverse_frequencies(4, 10_000.0, 1.0);
        assert_eq!(frequencies, [1.0, 0.01]);
        assert_eq!(inverse_frequencies(4, 10_000.0, 8.0), [0.125, 0.01 / 8.0]);
        // What a cast model has: 0.01 is 0.0100097656 in bfloat16.
        assert_eq!(RopeFrequencies::Bfloat16.round(frequencies), [1.0, 0.010_009_766]);
    }
}
