//! Linear layers on tiles: full groups of eight rows. The unit does the products of a block of 32
//! columns; the scales are applied by the code of the AVX-512 kernel, so that the bits are its own.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::amx::{Columns, TILE_ROWS, TileUnit};
use crate::pack::{BLOCK, Format, QuantFormat, QuantTile, TILE, with_format};

use super::QuantRows;
use super::avx512::{Scales, accumulate, unpack};

/// A tile of weights as the unit loads it.
#[repr(align(64))]
struct Weights([[u8; 64]; 8]);

/// Products of one block.
#[repr(align(64))]
struct Products([[i32; TILE]; TILE_ROWS]);

/// See `quantized_tile`; for groups of [`TILE_ROWS`] rows.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn tile<U: TileUnit>(
    unit: &U,
    format: QuantFormat,
    tile: &QuantTile<'_>,
    blocks: Range<usize>,
    rows: QuantRows<'_>,
    sums: &mut [[f32; TILE]],
) {
    with_format!(format, F => tile_of::<U, F>(unit, tile, blocks, rows, sums));
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn tile_of<U: TileUnit, F: Format>(
    unit: &U,
    tile: &QuantTile<'_>,
    blocks: Range<usize>,
    rows: QuantRows<'_>,
    sums: &mut [[f32; TILE]],
) {
    assert!(rows.rows == TILE_ROWS && sums.len() == TILE_ROWS, "a full group");
    let values = rows.values.as_chunks::<BLOCK>().0.as_chunks::<TILE_ROWS>().0;
    let mut totals = [_mm512_setzero_ps(); TILE_ROWS];
    let mut weights = Weights([[0; 64]; 8]);
    let mut products = [Products([[0; TILE]; TILE_ROWS]), Products([[0; TILE]; TILE_ROWS])];
    for block in blocks {
        let quants = unpack::<F>(&tile.quants[block * F::QUANT_BYTES..][..F::QUANT_BYTES]);
        for (out, quants) in weights.0.iter_mut().zip(quants) {
            // SAFETY: 64 bytes.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), quants) };
        }
        if F::HALVES {
            unit.int8(&values[block], &weights.0, Columns::First, &mut products[0].0);
            unit.int8(&values[block], &weights.0, Columns::Second, &mut products[1].0);
        } else {
            unit.int8(&values[block], &weights.0, Columns::All, &mut products[0].0);
        }
        let scales = Scales::load::<F>(tile, block);
        for row in 0..TILE_ROWS {
            // SAFETY: sixteen sums.
            let load = |half: &Products| unsafe { _mm512_loadu_si512(half.0[row].as_ptr().cast()) };
            let halves = [load(&products[0]), load(&products[1])];
            let meta = &rows.meta[block * TILE_ROWS + row];
            totals[row] = accumulate::<F>(halves, meta, &scales, totals[row]);
        }
    }
    for (total, sums) in totals.into_iter().zip(sums) {
        // SAFETY: sixteen floats.
        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), total) };
    }
}
