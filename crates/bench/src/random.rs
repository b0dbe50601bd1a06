//! Seeded random numbers that stay the same across releases: the same seed must send the same requests.

/// SplitMix64 (Steele, Lea and Flood 2014): small, fast, and good enough to choose words and times.
#[derive(Clone, Debug)]
pub(crate) struct Random {
    state: u64,
}

const GOLDEN_GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

impl Random {
    /// The stream that belongs to these keys; different keys give independent streams.
    pub(crate) fn new(keys: &[u64]) -> Self {
        let state = keys
            .iter()
            .fold(0, |state: u64, key| mix(state.wrapping_add(GOLDEN_GAMMA) ^ mix(*key)));
        Self { state }
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN_GAMMA);
        mix(self.state)
    }

    /// A whole number from 0 to `end - 1`. The bias of multiply-and-shift is below 2⁻³² for ranges
    /// that fit into 32 bits.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(end)) >> 64) as u64
    }

    /// Uniform between 0 and 1, neither of them included.
    pub(crate) fn unit(&mut self) -> f64 {
        ((self.bits() >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
    }

    /// Mean 0, variance 1 (Box and Muller 1958).
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.unit().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Gamma distributed with this shape and scale 1 (Marsaglia and Tsang 2000); mean and variance
    /// are both `shape`.
    pub(crate) fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let boost = self.unit().powf(1.0 / shape);
            return self.gamma(shape + 1.0) * boost;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.unit().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(values: impl Iterator<Item = f64>) -> (f64, f64) {
        let values: Vec<f64> = values.collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        (mean, variance / values.len() as f64)
    }

    #[test]
    fn streams_are_a_function_of_their_keys() {
        let draw = |keys: &[u64]| {
            let mut random = Random::new(keys);
            [random.bits(), random.bits()]
        };
        assert_eq!(draw(&[1, 2]), draw(&[1, 2]));
        for other in [&[2, 1][..], &[1, 3], &[1], &[1, 2, 0], &[0, 1, 2]] {
            assert_ne!(draw(&[1, 2]), draw(other), "{other:?}");
        }
    }

    #[test]
    fn whole_numbers_stay_below_their_end_and_reach_it() {
        let mut random = Random::new(&[7]);
        let mut counts = [0_u32; 6];
        for _ in 0..60_000 {
            counts[random.below(6) as usize] += 1;
        }
        // Five standard deviations of a binomial with n = 60,000 and p = 1/6 are 456.
        assert!(counts.iter().all(|count| count.abs_diff(10_000) < 456), "{counts:?}");
    }

    #[test]
    fn distributions_have_their_moments() {
        let n = 100_000;
        let mut random = Random::new(&[11]);
        let (mean, variance) = moments((0..n).map(|_| random.unit()));
        assert!((mean - 0.5).abs() < 0.005 && (variance - 1.0 / 12.0).abs() < 0.002);
        let (mean, variance) = moments((0..n).map(|_| random.normal()));
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
        for shape in [0.3, 1.0, 4.5] {
            let (mean, variance) = moments((0..n).map(|_| random.gamma(shape)));
            assert!((mean / shape - 1.0).abs() < 0.03, "{shape}: mean {mean}");
            assert!((variance / shape - 1.0).abs() < 0.06, "{shape}: variance {variance}");
        }
    }
}
