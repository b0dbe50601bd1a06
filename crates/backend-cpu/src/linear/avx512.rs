//! The int8 kernel with AVX-512 VNNI: `vpdpbusd` on unsigned weights and broadcast activations.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::pack::{BLOCK, Format, QuantFormat, QuantTile, TILE, with_format};

use super::{BlockMeta, QuantRows};

/// See `quantized_tile`.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn tile(
    format: QuantFormat,
    tile: &QuantTile<'_>,
    blocks: Range<usize>,
    rows: QuantRows<'_>,
    sums: &mut [[f32; TILE]],
) {
    with_format!(format, F => match rows.rows {
        8 => tile_of::<F, 8>(tile, blocks, rows, sums),
        4 => tile_of::<F, 4>(tile, blocks, rows, sums),
        2 => tile_of::<F, 2>(tile, blocks, rows, sums),
        _ => tile_of::<F, 1>(tile, blocks, rows, sums),
    });
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn tile_of<F: Format, const R: usize>(
    tile: &QuantTile<'_>,
    blocks: Range<usize>,
    rows: QuantRows<'_>,
    sums: &mut [[f32; TILE]],
) {
    assert!(rows.rows == R && sums.len() == R, "rows of the group");
    assert!(
        rows.meta.len() >= blocks.end * R && rows.values.len() >= blocks.end * R * BLOCK,
        "activations"
    );
    assert!(tile.quants.len() >= blocks.end * F::QUANT_BYTES, "quants");
    let mut totals = [_mm512_setzero_ps(); R];
    for block in blocks {
        let weights = unpack::<F>(&tile.quants[block * F::QUANT_BYTES..][..F::QUANT_BYTES]);
        let scales = Scales::load::<F>(tile, block);
        for row in 0..R {
            let at = block * R + row;
            // SAFETY: checked against the last block above.
            let (values, meta) = unsafe {
                (rows.values.as_ptr().add(at * BLOCK).cast::<i32>(), rows.meta.get_unchecked(at))
            };
            // SAFETY: the 8 words of one block.
            let word =
                |group: usize| unsafe { _mm512_set1_epi32(values.add(group).read_unaligned()) };
            let mut halves = [_mm512_setzero_si512(); 2];
            for group in 0..4 {
                halves[0] = _mm512_dpbusd_epi32(halves[0], weights[group], word(group));
                halves[1] = _mm512_dpbusd_epi32(halves[1], weights[group + 4], word(group + 4));
            }
            if !F::HALVES {
                halves[0] = _mm512_add_epi32(halves[0], halves[1]);
            }
            totals[row] = accumulate::<F>(halves, meta, &scales, totals[row]);
        }
    }
    for (total, sums) in totals.into_iter().zip(sums) {
        // SAFETY: sixteen floats.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), total) };
    }
}

/// Adds one block to a row's sums. `halves` are the integer sums of the two halves for kinds with
/// scales per half, else the first is that of the whole block.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn accumulate<F: Format>(
    halves: [__m512i; 2],
    meta: &BlockMeta,
    scales: &Scales,
    total: __m512,
) -> __m512 {
    let dot = if F::HALVES {
        let first = subtract_offset::<F>(halves[0], meta.half_sums[0]);
        let second = subtract_offset::<F>(halves[1], meta.half_sums[1]);
        _mm512_add_epi32(
            _mm512_mullo_epi32(first, scales.integers[0]),
            _mm512_mullo_epi32(second, scales.integers[1]),
        )
    } else {
        let dot = subtract_offset::<F>(halves[0], meta.sum);
        if F::MINIMUM { _mm512_mullo_epi32(dot, scales.integers[0]) } else { dot }
    };
    let unit = _mm512_set1_ps(meta.scale);
    let total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_mul_ps(scales.scale, unit), total);
    if !F::MINIMUM {
        return total;
    }
    let minimum = _mm512_mullo_epi32(scales.integers[1], _mm512_set1_epi32(meta.sum));
    _mm512_fnmadd_ps(_mm512_cvtepi32_ps(minimum), _mm512_mul_ps(scales.minimum_scale, unit), total)
}

/// Takes the offset of the quants out of a sum.
#[target_feature(enable = "avx512f")]
fn subtract_offset<F: Format>(dot: __m512i, sum: i32) -> __m512i {
    match F::OFFSET_SHIFT {
        Some(shift) => _mm512_sub_epi32(
            dot,
            _mm512_sll_epi32(_mm512_set1_epi32(sum), _mm_cvtsi32_si128(shift as i32)),
        ),
        None => dot,
    }
}

/// Quants of a block as 8 groups of `[output][4]` bytes.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn unpack<F: Format>(quants: &[u8]) -> [__m512i; 8] {
    assert_eq!(quants.len(), F::QUANT_BYTES, "quants of a block");
    // SAFETY: `vector` is below the number of whole vectors in the block.
    let load =
        |vector: usize| unsafe { _mm512_loadu_si512(quants.as_ptr().add(vector * 64).cast()) };
    if F::BITS == 8 {
        return [load(0), load(1), load(2), load(3), load(4), load(5), load(6), load(7)];
    }
    let nibble = _mm512_set1_epi8(15);
    let mut out = [_mm512_setzero_si512(); 8];
    for group in 0..4 {
        let both = load(group);
        out[group] = _mm512_and_si512(both, nibble);
        out[group + 4] = _mm512_and_si512(_mm512_srli_epi16::<4>(both), nibble);
    }
    if F::BITS == 5 {
        let bits = load(4);
        let mask = _mm512_set1_epi8(0x10);
        let moved = [
            _mm512_slli_epi16::<4>(bits),
            _mm512_slli_epi16::<3>(bits),
            _mm512_slli_epi16::<2>(bits),
            _mm512_slli_epi16::<1>(bits),
            bits,
            _mm512_srli_epi16::<1>(bits),
            _mm512_srli_epi16::<2>(bits),
            _mm512_srli_epi16::<3>(bits),
        ];
        for (out, moved) in out.iter_mut().zip(moved) {
            *out = or_masked(*out, moved, mask);
        }
    }
    if F::BITS == 6 {
        let mask = _mm512_set1_epi8(0x30);
        for half in 0..2 {
            let bits = load(4 + half);
            let moved = [
                _mm512_slli_epi16::<4>(bits),
                _mm512_slli_epi16::<2>(bits),
                bits,
                _mm512_srli_epi16::<2>(bits),
            ];
            for (out, moved) in out[half * 4..].iter_mut().zip(moved) {
                *out = or_masked(*out, moved, mask);
            }
        }
    }
    out
}

/// `a | (b & mask)` in one instruction.
#[target_feature(enable = "avx512f")]
fn or_masked(a: __m512i, b: __m512i, mask: __m512i) -> __m512i {
    _mm512_ternarylogic_epi32::<0xf8>(a, b, mask)
}

/// Scales of one block and tile.
pub(super) struct Scales {
    scale: __m512,
    minimum_scale: __m512,
    /// Of the two halves; for kinds with a minimum, scale and minimum.
    integers: [__m512i; 2],
}

impl Scales {
    #[target_feature(enable = "avx512f")]
    pub(super) fn load<F: Format>(tile: &QuantTile<'_>, block: usize) -> Self {
        let bytes: &[u8] = &tile.scales[block * F::SCALE_BYTES..][..F::SCALE_BYTES];
        let zero = _mm512_setzero_si512();
        if F::SUPER_BYTES == 0 {
            return Self {
                scale: halves(bytes),
                minimum_scale: _mm512_setzero_ps(),
                integers: [zero; 2],
            };
        }
        // SAFETY: 32 bytes of scales, read in two halves.
        let (low, high) = unsafe {
            (_mm_loadu_si128(bytes.as_ptr().cast()), _mm_loadu_si128(bytes.as_ptr().add(16).cast()))
        };
        let supers = &tile.supers[tile.super_block(block) * F::SUPER_BYTES..][..F::SUPER_BYTES];
        if F::MINIMUM {
            Self {
                scale: halves(&supers[..32]),
                minimum_scale: halves(&supers[32..]),
                integers: [_mm512_cvtepu8_epi32(low), _mm512_cvtepu8_epi32(high)],
            }
        } else {
            Self {
                scale: halves(supers),
                minimum_scale: _mm512_setzero_ps(),
                integers: [_mm512_cvtepi8_epi32(low), _mm512_cvtepi8_epi32(high)],
            }
        }
    }
}

/// Sixteen f16 as floats.
#[target_feature(enable = "avx512f")]
fn halves(bytes: &[u8]) -> __m512 {
    assert!(bytes.len() >= 32, "sixteen f16");
    // SAFETY: checked.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) })
}
