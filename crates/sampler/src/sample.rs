//! From a row of logits to a token: weights, filters, draw.

use oarlock_types::{SamplingParams, TokenId};

use crate::SampleError;
use crate::filter::{Cut, FilterScratch, find_cut};
use crate::math::exp;
use crate::philox::philox4x32_10;
use crate::segment::{SEGMENT, max_and_nan};

/// Fractional bits of a weight: the most likely token's is 2⁴⁵.
pub const WEIGHT_BITS: u32 = 45;

/// Tokens of a vocabulary at most, so that the sum of the weights fits into 64 bits.
pub const MAX_VOCABULARY: usize = (1 << (64 - WEIGHT_BITS)) - 1;

/// Memory that sampling reuses from row to row.
#[derive(Debug, Default)]
pub struct Scratch {
    weights: Vec<u64>,
    filter: FilterScratch,
    masses: Vec<u64>,
}

impl Scratch {
    /// Makes room for rows of up to `vocabulary` logits, so that no later draw allocates.
    pub fn reserve(&mut self, vocabulary: usize) {
        self.filter.reserve(vocabulary);
        self.masses.reserve(vocabulary.div_ceil(SEGMENT));
    }
}

/// Draws the token at `position` (absolute: that of the row of logits, plus one).
///
/// Temperature 0 is [`greedy`]; otherwise [`row_max`], [`weights`] and [`choose`] in turn, which a
/// backend may call itself to share the work among threads.
///
/// # Panics
/// If the row is longer than [`MAX_VOCABULARY`].
#[inline]
pub fn sample(
    logits: &[f32],
    params: &SamplingParams,
    position: u32,
    scratch: &mut Scratch,
) -> Result<TokenId, SampleError> {
    if is_greedy(params) {
        return greedy(logits);
    }
    let max = row_max(logits)?;
    let mut row = std::mem::take(&mut scratch.weights);
    row.resize(logits.len(), 0);
    weights(logits, max, params.temperature, &mut row);
    let chosen = choose(&row, params, position, scratch);
    scratch.weights = row;
    chosen
}

/// Whether the most likely token is taken without a draw.
fn is_greedy(params: &SamplingParams) -> bool {
    params.temperature.is_nan() || params.temperature <= 0.0
}

/// The most likely token, the lowest id among equals.
#[inline]
pub fn greedy(logits: &[f32]) -> Result<TokenId, SampleError> {
    let max = row_max(logits)?;
    let id = logits.iter().position(|&logit| logit == max).ok_or(SampleError::InvalidLogits)?;
    Ok(TokenId(id as u32))
}

/// As [`row_max`], for a row that a request's rules have changed: where they exclude every token, it
/// is they who are at fault.
#[inline]
pub fn row_max_after_rules(logits: &[f32]) -> Result<f32, SampleError> {
    row_max(logits).map_err(|error| match max_and_nan(logits) {
        (f32::NEG_INFINITY, false) if !logits.is_empty() => SampleError::NothingAllowed,
        _ => error,
    })
}

/// The greatest logit of a row that a token can be drawn from: no NaN, no positive infinity, and at
/// least one finite logit (negative infinity masks a token).
#[inline]
pub fn row_max(logits: &[f32]) -> Result<f32, SampleError> {
    let (max, nan) = max_and_nan(logits);
    if nan || max.is_infinite() { Err(SampleError::InvalidLogits) } else { Ok(max) }
}

/// Weights of consecutive tokens: `exp((logit - max) / temperature)` in f32, each operation rounded
/// once, times 2⁴⁵, truncated to an integer. `max` is that of the whole row.
///
/// # Panics
/// If the slices differ in length.
#[inline]
pub fn weights(logits: &[f32], max: f32, temperature: f32, out: &mut [u64]) {
    assert_eq!(logits.len(), out.len(), "one weight for each logit");
    for (weight, logit) in out.iter_mut().zip(logits) {
        *weight = fixed_point(exp((logit - max) / temperature));
    }
}

/// A float in [0, 1] times 2⁴⁵, truncated; exact bit arithmetic, since vector units have no
/// conversion to 64-bit integers. Gives 0 for NaN.
#[inline]
fn fixed_point(value: f32) -> u64 {
    let bits = value.to_bits();
    let mantissa = u64::from(bits & 0x007f_ffff | 0x0080_0000);
    // The exponent is 127 for 1.0, whose mantissa 2²³ needs 22 more bits. A zero has exponent 0 and
    // NaN 255: both shift everything out.
    let shift = 127_u32.wrapping_sub(bits >> 23).min(63);
    (mantissa << (WEIGHT_BITS - 23)) >> shift
}

/// Draws from weights as [`weights`] makes them. Not for temperature 0.
///
/// # Panics
/// If there are more than [`MAX_VOCABULARY`] weights.
#[inline]
pub fn choose(
    weights: &[u64],
    params: &SamplingParams,
    position: u32,
    scratch: &mut Scratch,
) -> Result<TokenId, SampleError> {
    assert!(weights.len() <= MAX_VOCABULARY, "a vocabulary has at most {MAX_VOCABULARY} tokens");
    let random = random_bits(params, position);
    let token = match find_cut(weights, params, &mut scratch.filter) {
        None => draw(weights, random, &mut scratch.masses, |weight, _| weight),
        Some(cut) => draw(weights, random, &mut scratch.masses, |weight, id| cut.kept(weight, id)),
    };
    token.ok_or(SampleError::InvalidLogits)
}

/// The 64 random bits of a draw: a function of seed, choice and the absolute position of the token.
#[must_use]
pub fn random_bits(params: &SamplingParams, position: u32) -> u64 {
    let key = [params.seed as u32, (params.seed >> 32) as u32];
    let [low, high, _, _] = philox4x32_10([position, params.choice, 0, 0], key);
    u64::from(high) << 32 | u64::from(low)
}

/// Inverse transform in order of ids: the first token at which the cumulative kept weight exceeds
/// the random share of the total.
#[inline]
fn draw(
    weights: &[u64],
    random: u64,
    masses: &mut Vec<u64>,
    kept: impl Fn(u64, u32) -> u64,
) -> Option<TokenId> {
    masses.clear();
    for (segment, chunk) in weights.chunks(SEGMENT).enumerate() {
        let first = (segment * SEGMENT) as u32;
        masses.push(chunk.iter().zip(first..).map(|(&weight, id)| kept(weight, id)).sum());
    }
    let total: u64 = masses.iter().sum();
    if total == 0 {
        return None;
    }
    // Less than `total`, so that some token exceeds it.
    let mut target = ((u128::from(random) * u128::from(total)) >> 64) as u64;
    let segment = masses.iter().position(|&mass| {
        let here = target < mass;
        target -= if here { 0 } else { mass };
        here
    })?;
    let first = segment * SEGMENT;
    for (&weight, id) in weights[first..].iter().zip(first as u32..) {
        let mass = kept(weight, id);
        if target < mass {
            return Some(TokenId(id));
        }
        target -= mass;
    }
    None
}

impl Cut {
    /// The weight of a token that is kept, 0 of any other.
    #[inline]
    fn kept(self, weight: u64, id: u32) -> u64 {
        if weight > self.weight || weight == self.weight && id <= self.id { weight } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(temperature: f32, seed: u64) -> SamplingParams {
        SamplingParams { temperature, seed, ..SamplingParams::default() }
    }

    #[test]
    fn fixed_point_is_exact() {
        for value in [1.0, 0.5, 0.75, 0.333_333, 1e-9, 3e-14, f32::MIN_POSITIVE, 0.0] {
            assert_eq!(fixed_point(value), (f64::from(value) * 2.0_f64.powi(45)) as u64);
        }
        assert_eq!(fixed_point(f32::NAN), 0);
    }

    #[test]
    fn greedy_takes_the_lowest_id_among_equals() {
        assert_eq!(greedy(&[0.0, 3.0, 3.0, -1.0]), Ok(TokenId(1)));
        let zero = sample(&[0.0, 3.0, 3.0], &params(0.0, 1), 5, &mut Scratch::default());
        assert_eq!(zero, Ok(TokenId(1)));
    }

    #[test]
    fn invalid_logits_are_an_error() {
        let inf = f32::INFINITY;
        for row in [&[0.0, f32::NAN][..], &[-inf, -inf], &[0.0, inf], &[]] {
            for temperature in [0.0, 1.0] {
                let got = sample(row, &params(temperature, 1), 0, &mut Scratch::default());
                assert_eq!(got, Err(SampleError::InvalidLogits));
            }
        }
        let masked = sample(&[-inf, 0.5, -inf], &params(1.0, 1), 0, &mut Scratch::default());
        assert_eq!(masked, Ok(TokenId(1)));
    }

    #[test]
    fn extreme_temperatures() {
        let row = [1.0, 4.0, 2.0];
        let mut scratch = Scratch::default();
        for position in 0..50 {
            let cold = sample(&row, &params(f32::MIN_POSITIVE, 3), position, &mut scratch);
            assert_eq!(cold, Ok(TokenId(1)));
        }
        let mut seen = [false; 3];
        for position in 0..50 {
            let token = sample(&row, &params(f32::MAX, 3), position, &mut scratch).unwrap();
            seen[token.index()] = true;
        }
        assert_eq!(seen, [true; 3]);
    }

    #[test]
    fn draws_depend_on_seed_choice_and_position_only() {
        let row: Vec<f32> = (0..3000).map(|i| (i % 37) as f32 * 0.1).collect();
        let draws = |params: &SamplingParams, scratch: &mut Scratch| -> Vec<TokenId> {
            (0..40).map(|position| sample(&row, params, position, scratch).unwrap()).collect()
        };
        let mut scratch = Scratch::default();
        let first = draws(&params(1.0, 7), &mut scratch);
        assert_eq!(first, draws(&params(1.0, 7), &mut Scratch::default()));
        assert_ne!(first, draws(&params(1.0, 8), &mut scratch));
        assert_ne!(first, draws(&SamplingParams { choice: 1, ..params(1.0, 7) }, &mut scratch));
        assert_ne!(first[0], first[1]);
    }

    #[test]
    fn weights_may_be_computed_in_pieces_in_any_order() {
        let row: Vec<f32> =
            (0..5000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as f32 * 0.05).collect();
        let max = row_max(&row).unwrap();
        let mut whole = vec![0; row.len()];
        weights(&row, max, 0.8, &mut whole);
        let mut pieces = vec![0; row.len()];
        for start in (0..row.len()).step_by(777).rev() {
            let end = row.len().min(start + 777);
            weights(&row[start..end], max, 0.8, &mut pieces[start..end]);
        }
        assert_eq!(whole, pieces);
        let filtered = SamplingParams { top_k: 300, top_p: 0.9, min_p: 0.01, ..params(0.8, 4) };
        let mut scratch = Scratch::default();
        for position in 0..100 {
            let chosen = choose(&pieces, &filtered, position, &mut scratch);
            assert_eq!(chosen, sample(&row, &filtered, position, &mut scratch));
        }
    }

    #[test]
    fn only_kept_tokens_are_drawn() {
        let row = [1.0, 0.5, 0.9, 0.8, 1.0, 0.7];
        let mut seen = [0; 6];
        let mut scratch = Scratch::default();
        let filtered = SamplingParams { top_k: 3, ..params(1.0, 4) };
        for position in 0..300 {
            seen[sample(&row, &filtered, position, &mut scratch).unwrap().index()] += 1;
        }
        assert!(seen[0] > 50 && seen[2] > 50 && seen[4] > 50);
        assert_eq!(seen[0] + seen[2] + seen[4], 300);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let row = [2.0_f32, 1.0, 0.0, -1.0, 1.5, -3.0, 0.5, 2.0];
        for (seed, temperature) in [(1, 1.0), (2, 0.7), (3, 1.8)] {
            let exact: Vec<f64> = row.iter().map(|&l| f64::from(l / temperature).exp()).collect();
            let total: f64 = exact.iter().sum();
            let mut counts = [0_u32; 8];
            let draws = 40_000;
            let mut scratch = Scratch::default();
            for position in 0..draws {
                counts[sample(&row, &params(temperature, seed), position, &mut scratch)
                    .unwrap()
                    .index()] += 1;
            }
            let chi_square: f64 = counts
                .iter()
                .zip(&exact)
                .map(|(&count, weight)| {
                    let expected = f64::from(draws) * weight / total;
                    (f64::from(count) - expected).powi(2) / expected
                })
                .sum();
            // 7 degrees of freedom: 24.3 is exceeded once in a thousand.
            assert!(chi_square < 24.3, "{chi_square}");
        }
    }
}
