//! How the frequencies of a model that was taught longer contexts differ from those it was first trained with.

use std::f64::consts::TAU;

/// A change of the frequencies.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RopeScaling {
    None,
    /// All are divided (Chen et al. 2023, position interpolation).
    Linear {
        factor: f32,
    },
    /// Each is divided by its own (GGUF files of Llama 3 have them computed).
    Factors(Vec<f32>),
    /// Slow ones are divided, fast ones are not, and there is a ramp between (Grattafiori et al. 2024, Llama 3.1).
    Llama3 {
        factor: f32,
        low_frequency_factor: f32,
        high_frequency_factor: f32,
        original_context: f32,
    },
    Yarn(Yarn),
    /// Each is divided by its own, which are others where sequences may exceed the context of the first training
    /// (Ding et al. 2024, LongRoPE; Phi-3). The choice is made once for a server: keys in its cache must fit
    /// each other.
    LongRope {
        short: Vec<f32>,
        long: Vec<f32>,
        original_context: usize,
        attention_factor: f32,
    },
}

/// Peng et al. 2023, YaRN: divided below `beta_slow` turns in the original context, not divided above
/// `beta_fast`, and a ramp over the pairs between.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Yarn {
    pub(crate) factor: f32,
    pub(crate) original_context: f32,
    pub(crate) beta_fast: f32,
    pub(crate) beta_slow: f32,
    /// Whether the ramp begins and ends at whole pairs.
    pub(crate) truncate: bool,
    /// Factor of cosines and sines.
    pub(crate) attention_factor: f32,
}

/// `0.1 scale ln(factor) + 1`: how much less spread attention over a longer context is to be.
pub(crate) fn yarn_attention_factor(factor: f32, scale: f32) -> f32 {
    if factor <= 1.0 {
        return 1.0;
    }
    (0.1 * f64::from(scale) * libm::log(f64::from(factor)) + 1.0) as f32
}

/// `sqrt(1 + ln(factor) / ln(original context))`.
pub(crate) fn long_attention_factor(factor: f32, original_context: usize) -> f32 {
    if factor <= 1.0 {
        return 1.0;
    }
    libm::sqrt(1.0 + libm::log(f64::from(factor)) / libm::log(original_context as f64)) as f32
}

impl RopeScaling {
    /// The context of a model whose configuration says so many positions. What was trained before its angles
    /// were scaled often has its old number there (YaRN in Qwen's documentation).
    pub(crate) fn context(&self, configured: usize) -> usize {
        let scaled = match self {
            Self::Yarn(yarn) => f64::from(yarn.original_context) * f64::from(yarn.factor),
            _ => 0.0,
        };
        configured.max(scaled.min(f64::from(u32::MAX)) as usize)
    }

    /// Changes the frequencies of a base `theta`; gives also the factor of cosines and sines.
    pub(super) fn apply(&self, plain: Vec<f64>, theta: f64, positions: usize) -> (Vec<f64>, f32) {
        let divided = |plain: Vec<f64>, by: &[f32]| -> Vec<f64> {
            assert_eq!(plain.len(), by.len(), "checked when the model was opened");
            plain.into_iter().zip(by).map(|(one, by)| one / f64::from(*by)).collect()
        };
        match self {
            Self::None => (plain, 1.0),
            Self::Linear { factor } => {
                (plain.into_iter().map(|one| one / f64::from(*factor)).collect(), 1.0)
            }
            Self::Factors(factors) => (divided(plain, factors), 1.0),
            Self::Llama3 {
                factor,
                low_frequency_factor,
                high_frequency_factor,
                original_context,
            } => {
                let [factor, low, high, context] =
                    [factor, low_frequency_factor, high_frequency_factor, original_context]
                        .map(|value| f64::from(*value));
                (
                    plain
                        .into_iter()
                        .map(|one| llama3(one, factor, [low, high], context))
                        .collect(),
                    1.0,
                )
            }
            Self::Yarn(yarn) => (yarn.apply(plain, theta), yarn.attention_factor),
            Self::LongRope { short, long, original_context, attention_factor } => {
                let factors = if positions > *original_context { long } else { short };
                (divided(plain, factors), *attention_factor)
            }
        }
    }
}

fn llama3(frequency: f64, factor: f64, [low, high]: [f64; 2], context: f64) -> f64 {
    let turns = context * frequency / TAU;
    if turns < low {
        frequency / factor
    } else if turns > high {
        frequency
    } else {
        let smooth = (turns - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}

impl Yarn {
    fn apply(&self, plain: Vec<f64>, theta: f64) -> Vec<f64> {
        let rotated = 2.0 * plain.len() as f64;
        // The pair, as a fraction, that makes so many turns in the original context.
        let pair = |turns: f32| {
            let positions = f64::from(self.original_context) / (f64::from(turns) * TAU);
            rotated * libm::log(positions) / (2.0 * libm::log(theta))
        };
        let (mut first, mut last) = (pair(self.beta_fast), pair(self.beta_slow));
        if self.truncate {
            (first, last) = (first.floor(), last.ceil());
        }
        (first, last) = (first.max(0.0), last.min(rotated - 1.0));
        if first == last {
            last += 0.001;
        }
        let one = |(pair, frequency): (usize, f64)| {
            let ramp = ((pair as f64 - first) / (last - first)).clamp(0.0, 1.0);
            frequency / f64::from(self.factor) * ramp + frequency * (1.0 - ramp)
        };
        plain.into_iter().enumerate().map(one).collect()
    }
}
