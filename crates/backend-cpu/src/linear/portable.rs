//! The int8 kernel in plain Rust, written so that any vector unit with 16-bit products runs it well.

use std::ops::Range;

use crate::lanes::{f16_bits_to_f32, fused_multiply_add};
use crate::pack::{BLOCK, Format, QuantFormat, QuantTile, TILE, with_format};

use super::QuantRows;

/// Bytes of one group of 4 columns: 16 outputs of 4.
const GROUP_BYTES: usize = 64;

/// See `quantized_tile`.
pub(super) fn tile(
    format: QuantFormat,
    tile: &QuantTile<'_>,
    blocks: Range<usize>,
    rows: QuantRows<'_>,
    sums: &mut [[f32; TILE]],
) {
    with_format!(format, F => tile_of::<F>(tile, blocks, rows, sums));
}

fn tile_of<F: Format>(
    tile: &QuantTile<'_>,
    blocks: Range<usize>,
    rows: QuantRows<'_>,
    sums: &mut [[f32; TILE]],
) {
    let mut weights = [[0; GROUP_BYTES]; 8];
    for block in blocks {
        unpack::<F>(&tile.quants[block * F::QUANT_BYTES..][..F::QUANT_BYTES], &mut weights);
        let scales = Scales::load::<F>(tile, block);
        for (row, sums) in sums.iter_mut().enumerate() {
            let at = block * rows.rows + row;
            let values: &[i8; BLOCK] = &rows.values.as_chunks().0[at];
            let meta = &rows.meta[at];
            let halves = if WHOLE_BITS.contains(&F::BITS) {
                [dot::<F>(&weights, values, 0..8), [0; TILE]]
            } else {
                [dot::<F>(&weights, values, 0..4), dot::<F>(&weights, values, 4..8)]
            };
            for (lane, total) in sums.iter_mut().enumerate() {
                // Eight-bit quants were multiplied as signed bytes: nothing to take out.
                let shift = if F::BITS == 8 { None } else { F::OFFSET_SHIFT };
                let offset = |sum: i32| shift.map_or(0, |shift| sum << shift);
                let [first, second] = if WHOLE_BITS.contains(&F::BITS) {
                    [halves[0][lane] - offset(meta.sum), 0]
                } else {
                    [
                        halves[0][lane] - offset(meta.half_sums[0]),
                        halves[1][lane] - offset(meta.half_sums[1]),
                    ]
                };
                let dot = if F::MINIMUM || F::HALVES {
                    first * scales.integers[0][lane] + second * scales.integers[1][lane]
                } else {
                    first + second
                };
                *total = fused_multiply_add(dot as f32, scales.scale[lane] * meta.scale, *total);
                if F::MINIMUM {
                    let minimum = (scales.minimums[lane] * meta.sum) as f32;
                    *total = fused_multiply_add(
                        minimum,
                        -(scales.minimum_scale[lane] * meta.scale),
                        *total,
                    );
                }
            }
        }
    }
}

/// Quants of a block as 8 groups of `[output][4]`; eight-bit ones as signed bytes.
fn unpack<F: Format>(quants: &[u8], out: &mut [[u8; GROUP_BYTES]; 8]) {
    for (group, out) in out.iter_mut().enumerate() {
        if F::BITS == 8 {
            for (out, byte) in out.iter_mut().zip(&quants[group * GROUP_BYTES..]) {
                *out = byte ^ 0x80;
            }
            continue;
        }
        let low = &quants[group % 4 * GROUP_BYTES..][..GROUP_BYTES];
        let shift = group / 4 * 4;
        for (out, byte) in out.iter_mut().zip(low) {
            *out = byte >> shift & 15;
        }
        let (plane, shift, mask) = match F::BITS {
            5 => (256, group, 1),
            6 => (256 + group / 4 * GROUP_BYTES, group % 4 * 2, 3),
            _ => continue,
        };
        for (out, byte) in out.iter_mut().zip(&quants[plane..][..GROUP_BYTES]) {
            *out |= (byte >> shift & mask) << 4;
        }
    }
}

/// Quants whose products with a whole block's activations add up in 16 bits: 8 · 31 · 127 < 2¹⁵.
const WHOLE_BITS: Range<usize> = 4..6;

/// Sum of some groups, per output. Products are added in 16 bits as long as they fit: 8 of 4 or 5 bits,
/// 4 of 6 bits (4 · 63 · 127), 2 of 8 bits (2 · 128 · 127, signed).
fn dot<F: Format>(
    weights: &[[u8; GROUP_BYTES]; 8],
    values: &[i8; BLOCK],
    groups: Range<usize>,
) -> [i32; TILE] {
    let fit = if F::BITS == 8 { 2 } else { groups.len() };
    let mut totals = [0; TILE];
    for start in groups.step_by(fit) {
        let mut sums = [0_i16; GROUP_BYTES];
        for group in start..start + fit {
            let mut four = [0_i16; 8];
            for (i, four) in four.iter_mut().enumerate() {
                *four = i16::from(values[group * 4 + i % 4]);
            }
            let weights = weights[group].as_chunks::<8>().0;
            for (sums, weights) in sums.as_chunks_mut::<8>().0.iter_mut().zip(weights) {
                for i in 0..8 {
                    let weight = if F::BITS == 8 {
                        i16::from(weights[i].cast_signed())
                    } else {
                        i16::from(weights[i])
                    };
                    sums[i] += weight * four[i];
                }
            }
        }
        for (total, sums) in totals.iter_mut().zip(sums.as_chunks::<4>().0) {
            *total += sums.iter().map(|&sum| i32::from(sum)).sum::<i32>();
        }
    }
    totals
}

/// Scales of one block and tile.
struct Scales {
    scale: [f32; TILE],
    minimum_scale: [f32; TILE],
    /// Of the two halves.
    integers: [[i32; TILE]; 2],
    minimums: [i32; TILE],
}

impl Scales {
    fn load<F: Format>(tile: &QuantTile<'_>, block: usize) -> Self {
        let bytes = &tile.scales[block * F::SCALE_BYTES..][..F::SCALE_BYTES];
        let mut scales = Self {
            scale: [0.0; TILE],
            minimum_scale: [0.0; TILE],
            integers: [[1; TILE]; 2],
            minimums: [0; TILE],
        };
        if F::SUPER_BYTES == 0 {
            scales.scale = halves(bytes);
            return scales;
        }
        let supers = &tile.supers[tile.super_block(block) * F::SUPER_BYTES..][..F::SUPER_BYTES];
        scales.scale = halves(supers);
        if F::MINIMUM {
            scales.minimum_scale = halves(&supers[32..]);
            scales.integers = [std::array::from_fn(|i| i32::from(bytes[i])); 2];
            scales.minimums = std::array::from_fn(|i| i32::from(bytes[TILE + i]));
        } else {
            let signed = |half: usize| {
                std::array::from_fn(|i| i32::from(bytes[half * TILE + i].cast_signed()))
            };
            scales.integers = [signed(0), signed(1)];
        }
        scales
    }
}

fn halves(bytes: &[u8]) -> [f32; TILE] {
    let mut out = [0.0; TILE];
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *out = f16_bits_to_f32(u16::from_le_bytes(*bytes));
    }
    out
}
