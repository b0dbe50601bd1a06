//! The int8 kernel with AVX2: `vpmaddubsw`, arranged so that its 16-bit sums never saturate.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::pack::{BLOCK, Format, QuantFormat, QuantTile, TILE, with_format};

use super::QuantRows;

/// See `quantized_tile`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn tile(
    format: QuantFormat,
    tile: &QuantTile<'_>,
    blocks: Range<usize>,
    rows: QuantRows<'_>,
    sums: &mut [[f32; TILE]],
) {
    with_format!(format, F => tile_of::<F>(tile, blocks, rows, sums));
}

/// Eight outputs: half a tile.
const HALF: usize = 8;

/// Weights of half a tile are unpacked once per block and used for all rows of the group; sums wait
/// in memory (the first-level cache), since sixteen registers cannot hold both.
#[target_feature(enable = "avx2,fma,f16c")]
fn tile_of<F: Format>(
    tile: &QuantTile<'_>,
    blocks: Range<usize>,
    rows: QuantRows<'_>,
    sums: &mut [[f32; TILE]],
) {
    assert_eq!(sums.len(), rows.rows, "rows of the group");
    assert!(tile.quants.len() >= blocks.end * F::QUANT_BYTES, "quants");
    for block in blocks {
        let quants = &tile.quants[block * F::QUANT_BYTES..][..F::QUANT_BYTES];
        for half in 0..2 {
            let weights = unpack::<F>(quants, half);
            let scales = Scales::load::<F>(tile, block, half);
            for (row, sums) in sums.iter_mut().enumerate() {
                let at = block * rows.rows + row;
                let values: &[i8; BLOCK] = &rows.values.as_chunks().0[at];
                let meta = &rows.meta[at];
                let (first, second) = dot::<F>(&weights, values);
                let dot = if F::HALVES {
                    let first = subtract_offset::<F>(first, meta.half_sums[0]);
                    let second = subtract_offset::<F>(second, meta.half_sums[1]);
                    _mm256_add_epi32(
                        _mm256_mullo_epi32(first, scales.integers[0]),
                        _mm256_mullo_epi32(second, scales.integers[1]),
                    )
                } else {
                    let dot = subtract_offset::<F>(_mm256_add_epi32(first, second), meta.sum);
                    if F::MINIMUM { _mm256_mullo_epi32(dot, scales.integers[0]) } else { dot }
                };
                let unit = _mm256_set1_ps(meta.scale);
                // SAFETY: eight of the row's sixteen sums.
                let mut total = unsafe { _mm256_loadu_ps(sums.as_ptr().add(half * HALF)) };
                let factor = _mm256_mul_ps(scales.scale, unit);
                total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), factor, total);
                if F::MINIMUM {
                    let minimum =
                        _mm256_mullo_epi32(scales.integers[1], _mm256_set1_epi32(meta.sum));
                    let factor = _mm256_mul_ps(scales.minimum_scale, unit);
                    total = _mm256_fnmadd_ps(_mm256_cvtepi32_ps(minimum), factor, total);
                }
                // SAFETY: as above.
                unsafe { _mm256_storeu_ps(sums.as_mut_ptr().add(half * HALF), total) };
            }
        }
    }
}

#[target_feature(enable = "avx2")]
fn subtract_offset<F: Format>(dot: __m256i, sum: i32) -> __m256i {
    match F::OFFSET_SHIFT {
        Some(shift) => _mm256_sub_epi32(
            dot,
            _mm256_sll_epi32(_mm256_set1_epi32(sum), _mm_cvtsi32_si128(shift as i32)),
        ),
        None => dot,
    }
}

/// Sums of the first and the last four groups, per output.
///
/// A pair of products is at most 2 · 31 · 127 for 5 bits (four pairs fit into 16 bits), 2 · 63 · 127 for
/// 6 bits (two fit) and 2 · 127 · 127 for the low 7 of 8 bits (one fits); the eighth bit is summed apart.
#[target_feature(enable = "avx2")]
fn dot<F: Format>(weights: &[__m256i; 8], values: &[i8; BLOCK]) -> (__m256i, __m256i) {
    let ones = _mm256_set1_epi16(1);
    // SAFETY: the 8 words of one block.
    let word = |group: usize| unsafe {
        _mm256_set1_epi32(values.as_ptr().cast::<i32>().add(group).read_unaligned())
    };
    let widen = |sums| _mm256_madd_epi16(sums, ones);
    let mut halves = [_mm256_setzero_si256(); 2];
    for (half, total) in halves.iter_mut().enumerate() {
        let first = half * 4;
        if F::BITS == 8 {
            let mut top = _mm256_setzero_si256();
            for group in first..first + 4 {
                let low = _mm256_and_si256(weights[group], _mm256_set1_epi8(0x7f));
                let high =
                    _mm256_and_si256(_mm256_srli_epi16::<7>(weights[group]), _mm256_set1_epi8(1));
                *total = _mm256_add_epi32(*total, widen(_mm256_maddubs_epi16(low, word(group))));
                top = _mm256_add_epi16(top, _mm256_maddubs_epi16(high, word(group)));
            }
            *total = _mm256_add_epi32(*total, _mm256_madd_epi16(top, _mm256_set1_epi16(128)));
            continue;
        }
        let pair = |group: usize| {
            _mm256_add_epi16(
                _mm256_maddubs_epi16(weights[group], word(group)),
                _mm256_maddubs_epi16(weights[group + 1], word(group + 1)),
            )
        };
        *total = if F::BITS == 6 {
            _mm256_add_epi32(widen(pair(first)), widen(pair(first + 2)))
        } else {
            widen(_mm256_add_epi16(pair(first), pair(first + 2)))
        };
    }
    (halves[0], halves[1])
}

/// Quants of eight outputs as 8 groups of `[output][4]` bytes.
#[target_feature(enable = "avx2")]
fn unpack<F: Format>(quants: &[u8], half: usize) -> [__m256i; 8] {
    assert_eq!(quants.len(), F::QUANT_BYTES, "quants of a block");
    // SAFETY: `plane` is below the number of whole 64-byte planes in the block, and half is 0 or 1.
    let load = |plane: usize| unsafe {
        _mm256_loadu_si256(quants.as_ptr().add(plane * 64 + half * 32).cast())
    };
    if F::BITS == 8 {
        return [load(0), load(1), load(2), load(3), load(4), load(5), load(6), load(7)];
    }
    let nibble = _mm256_set1_epi8(15);
    let mut out = [_mm256_setzero_si256(); 8];
    for group in 0..4 {
        let both = load(group);
        out[group] = _mm256_and_si256(both, nibble);
        out[group + 4] = _mm256_and_si256(_mm256_srli_epi16::<4>(both), nibble);
    }
    if F::BITS == 5 {
        let bits = load(4);
        let moved = [
            _mm256_slli_epi16::<4>(bits),
            _mm256_slli_epi16::<3>(bits),
            _mm256_slli_epi16::<2>(bits),
            _mm256_slli_epi16::<1>(bits),
            bits,
            _mm256_srli_epi16::<1>(bits),
            _mm256_srli_epi16::<2>(bits),
            _mm256_srli_epi16::<3>(bits),
        ];
        for (out, moved) in out.iter_mut().zip(moved) {
            *out = _mm256_or_si256(*out, _mm256_and_si256(moved, _mm256_set1_epi8(0x10)));
        }
    }
    if F::BITS == 6 {
        for part in 0..2 {
            let bits = load(4 + part);
            let moved = [
                _mm256_slli_epi16::<4>(bits),
                _mm256_slli_epi16::<2>(bits),
                bits,
                _mm256_srli_epi16::<2>(bits),
            ];
            for (out, moved) in out[part * 4..].iter_mut().zip(moved) {
                *out = _mm256_or_si256(*out, _mm256_and_si256(moved, _mm256_set1_epi8(0x30)));
            }
        }
    }
    out
}

/// Scales of one block and eight outputs.
struct Scales {
    scale: __m256,
    minimum_scale: __m256,
    /// Of the two halves of the block; for kinds with a minimum, scale and minimum.
    integers: [__m256i; 2],
}

impl Scales {
    #[target_feature(enable = "avx2,f16c")]
    fn load<F: Format>(tile: &QuantTile<'_>, block: usize, half: usize) -> Self {
        let bytes = &tile.scales[block * F::SCALE_BYTES..][..F::SCALE_BYTES];
        let zero = _mm256_setzero_ps();
        if F::SUPER_BYTES == 0 {
            let integers = [_mm256_setzero_si256(); 2];
            return Self { scale: halves(&bytes[half * 16..]), minimum_scale: zero, integers };
        }
        // SAFETY: 8 bytes inside each 16.
        let load =
            |at: usize| unsafe { _mm_loadl_epi64(bytes.as_ptr().add(at + half * HALF).cast()) };
        let supers = &tile.supers[tile.super_block(block) * F::SUPER_BYTES..][..F::SUPER_BYTES];
        let scale = halves(&supers[half * 16..]);
        if F::MINIMUM {
            Self {
                scale,
                minimum_scale: halves(&supers[32 + half * 16..]),
                integers: [_mm256_cvtepu8_epi32(load(0)), _mm256_cvtepu8_epi32(load(16))],
            }
        } else {
            let integers = [_mm256_cvtepi8_epi32(load(0)), _mm256_cvtepi8_epi32(load(16))];
            Self { scale, minimum_scale: zero, integers }
        }
    }
}

/// Eight f16 as floats.
#[target_feature(enable = "avx2,f16c")]
fn halves(bytes: &[u8]) -> __m256 {
    assert!(bytes.len() >= 16, "eight f16");
    // SAFETY: checked.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
}
