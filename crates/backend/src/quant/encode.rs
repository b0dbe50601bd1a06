//! Weights for tests: simple rounding for the kinds of 32, random super-blocks for the K kinds.

use half::{bf16, f16};

use crate::WeightKind;

/// Rounds a row to `kind`, a float, Q4_0, Q5_0 or Q8_0; `None` for other kinds, and for widths that are not whole
/// blocks.
#[must_use]
pub fn encode_row(kind: WeightKind, values: &[f32]) -> Option<Vec<u8>> {
    kind.row_bytes(values.len())?;
    let mut bytes = Vec::new();
    match kind {
        WeightKind::F32 => bytes.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        WeightKind::F16 => {
            bytes.extend(values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()));
        }
        WeightKind::Bf16 => {
            bytes.extend(values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()));
        }
        WeightKind::Q4_0 => values.chunks(32).for_each(|block| {
            let (d, quants) = round_block(block, 8);
            bytes.extend(d.to_le_bytes());
            bytes.extend((0..16).map(|j| quants[j] | quants[j + 16] << 4));
        }),
        WeightKind::Q5_0 => values.chunks(32).for_each(|block| {
            let (d, quants) = round_block(block, 16);
            let high = (0..32).fold(0_u32, |bits, j| bits | u32::from(quants[j] >> 4) << j);
            bytes.extend(d.to_le_bytes());
            bytes.extend(high.to_le_bytes());
            bytes.extend((0..16).map(|j| quants[j] & 15 | (quants[j + 16] & 15) << 4));
        }),
        WeightKind::Q8_0 => values.chunks(32).for_each(|block| {
            let (d, quants) = round_block(block, 128);
            bytes.extend(d.to_le_bytes());
            bytes.extend(quants.iter().map(|q| q ^ 0x80));
        }),
        _ => return None,
    }
    Some(bytes)
}

/// Scale, and quants with `offset` added.
fn round_block(block: &[f32], offset: i32) -> (f16, [u8; 32]) {
    let amax = block.iter().fold(0.0_f32, |a, v| a.max(v.abs()));
    let d = f16::from_f32(amax / (offset - 1) as f32);
    let inverse = if d == f16::ZERO { 0.0 } else { 1.0 / d.to_f32() };
    let mut quants = [0; 32];
    for (quant, value) in quants.iter_mut().zip(block) {
        *quant = ((value * inverse).round() as i32 + offset).clamp(0, 2 * offset - 1) as u8;
    }
    (d, quants)
}

/// A row of random quants whose values are of the order of `magnitude`. Equal seeds, equal bytes.
///
/// # Panics
/// If `columns` are not whole blocks.
#[must_use]
pub fn random_row(kind: WeightKind, columns: usize, magnitude: f32, seed: u64) -> Vec<u8> {
    let mut random = SplitMix(seed);
    if !kind.is_quantized() {
        let values: Vec<f32> = (0..columns).map(|_| random.uniform() * 2.0 * magnitude).collect();
        return encode_row(kind, &values).expect("a float kind has blocks of one value");
    }
    let length = kind.row_bytes(columns).expect("whole blocks");
    let mut bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
    for block in bytes.chunks_exact_mut(kind.block_bytes()) {
        let scale = |divisor: f32, jitter: f32| {
            f16::from_f32(magnitude / divisor * (1.0 + 0.5 * jitter)).to_le_bytes()
        };
        let jitter = random.uniform();
        // Divisors bring the mean square of the values near the magnitude.
        let (at, divisor) = match kind {
            WeightKind::Q4_0 | WeightKind::Q4_1 => (0, 5.0),
            WeightKind::Q5_0 | WeightKind::Q5_1 => (0, 9.0),
            WeightKind::Q8_0 | WeightKind::Iq4Nl => (0, 74.0),
            WeightKind::Q2K => (80, 7.5 * 1.2),
            WeightKind::Q3K => (108, 18.0 * 2.3),
            WeightKind::Q4K => (0, 32.0 * 9.0),
            WeightKind::Q5K => (0, 32.0 * 18.0),
            WeightKind::Iq4Xs => (0, 74.0 * 18.0),
            _ => (208, 74.0 * 18.0),
        };
        block[at..at + 2].copy_from_slice(&scale(divisor, jitter));
        // Minimums are near the middle of what they are of.
        let minimum = match kind {
            WeightKind::Q4K | WeightKind::Q5K => scale(32.0, jitter),
            WeightKind::Q2K => scale(6.0, jitter),
            WeightKind::Q4_1 | WeightKind::Q5_1 => scale(-0.6, jitter),
            _ => continue,
        };
        block[at + 2..at + 4].copy_from_slice(&minimum);
    }
    bytes
}

/// SplitMix64 (Steele, Lea, Flood 2014): enough for test data.
#[derive(Clone, Debug)]
pub struct SplitMix(pub u64);

impl SplitMix {
    /// 64 random bits.
    #[expect(
        clippy::should_implement_trait,
        reason = "an endless generator is no iterator of options"
    )]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Uniform in [-1, 1).
    pub fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}
