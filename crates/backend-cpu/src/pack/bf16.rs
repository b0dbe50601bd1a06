//! Packs F32, F16 and BF16 weights as bfloat16 pairs, in the order of AMX's `TDPBF16PS`.

use half::bf16;
use oarlock_backend::{BackendError, WeightView};

use crate::buffer::{AlignedBuffer, SharedSlice};
use crate::isa::{Isa, multiversion};
use crate::lanes::Lanes;
use crate::threads::{ThreadPool, quarter_share};

use super::chunk::{CHUNK, Chunk, write_chunk};
use super::float_rows::FloatRows;
use super::{BLOCK, TILE};

/// A packed matrix: tiles, each with its blocks (of all segments, each padded to whole blocks) as
/// `[pair][output]` words, the even column in the low half.
#[derive(Debug)]
pub(crate) struct Bf16Part {
    words: AlignedBuffer<u32>,
    tile_words: usize,
}

/// Nearest even; operands below 2⁻⁵⁵ become zero, so that no product and no sum is denormal.
#[inline(always)]
pub(crate) fn round_to_bf16(value: f32) -> bf16 {
    let bits = value.to_bits();
    // A NaN stays one, whichever of its bits are cut off.
    let nearest = if value.is_nan() { bits | 1 << 22 } else { bits + 0x7fff + (bits >> 16 & 1) };
    bf16::from_bits(operand(nearest >> 16) as u16)
}

/// The bits of a bfloat16, as an operand: small ones are zero, NaNs are quiet.
#[inline(always)]
fn operand(bits: u32) -> u32 {
    /// 2⁻⁵⁵.
    const LEAST: u32 = (127 - 55) << 7;
    const INFINITY: u32 = 0xff << 7;
    const QUIET: u32 = 1 << 6;
    let magnitude = bits & 0x7fff;
    let kept = if magnitude < LEAST { 0 } else { bits };
    if magnitude > INFINITY { kept | QUIET } else { kept }
}

impl Bf16Part {
    /// Packs a checked view on all threads.
    pub(crate) fn pack(
        view: &WeightView<'_>,
        segments: usize,
        isa: Isa,
        pool: &mut ThreadPool,
    ) -> Result<Self, BackendError> {
        let padded = (view.columns / segments).next_multiple_of(BLOCK);
        let tile_words = segments * padded / 2 * TILE;
        let tiles = view.rows.div_ceil(TILE);
        let mut words = AlignedBuffer::unwritten(tiles * tile_words, view.name)?;
        let shared = SharedSlice::new(&mut words);
        let threads = pool.threads();
        pool.run(tiles, quarter_share(tiles, threads), &|_, range| {
            let mut memory = Vec::new();
            for tile in range {
                // SAFETY: each tile is packed by one thread, and the buffer outlives the job.
                let words = unsafe { shared.range(tile * tile_words..(tile + 1) * tile_words) };
                let rows = FloatRows::new(view, tile, &mut memory);
                pack_tile(isa, &rows, view.columns / segments, words.as_chunks_mut().0);
            }
        })
        .map_err(|reason| BackendError::Weight { name: view.name.to_owned(), reason })?;
        Ok(Self { words, tile_words })
    }

    /// One tile: `[pair][output]`.
    pub(crate) fn tile(&self, tile: usize) -> &[[u32; TILE]] {
        self.words[tile * self.tile_words..][..self.tile_words].as_chunks().0
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        self.words.bytes()
    }
}

multiversion! {
    /// Packs the rows of a tile, whose segments have `width` columns.
    fn pack_tile = pack_tile_with(rows: &FloatRows<'_>, width: usize, out: &mut [[u32; TILE]]);
}

#[inline(always)]
fn pack_tile_with<L: Lanes>(rows: &FloatRows<'_>, width: usize, out: &mut [[u32; TILE]]) {
    let mut chunk: Chunk = [[0; CHUNK]; TILE];
    for (segment, out) in out.chunks_exact_mut(width.next_multiple_of(BLOCK) / 2).enumerate() {
        for (index, out) in out.chunks_mut(CHUNK).enumerate() {
            let first = index * 2 * CHUNK;
            let columns = (width - first).min(2 * CHUNK);
            for (row, words) in chunk.iter_mut().enumerate().take(rows.len()) {
                put_row::<L>(rows, row, segment * width + first, columns, words);
            }
            write_chunk::<L>(&chunk, out);
        }
    }
}

/// Columns of a row as pairs of bfloat16, zeros after the last.
#[inline(always)]
fn put_row<L: Lanes>(
    rows: &FloatRows<'_>,
    row: usize,
    first: usize,
    columns: usize,
    out: &mut [u32; CHUNK],
) {
    if columns < 2 * CHUNK {
        out.fill(0);
    }
    if let Some(stored) = rows.stored_bf16(row, first, columns) {
        let (pairs, last) = stored.as_chunks();
        let bits = |value: &[u8; 2]| operand(u16::from_le_bytes(*value).into());
        for (out, [even, odd]) in out.iter_mut().zip(pairs) {
            *out = bits(even) | bits(odd) << 16;
        }
        if let [last] = last {
            out[pairs.len()] = bits(last);
        }
        return;
    }
    let mut values = [0.0; 2 * CHUNK];
    rows.read::<L>(row, first, &mut values[..columns]);
    for (out, [even, odd]) in out.iter_mut().zip(values.as_chunks().0) {
        let bits = |value: &f32| u32::from(round_to_bf16(*value).to_bits());
        *out = bits(even) | bits(odd) << 16;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_operands_become_zero() {
        let least = 2.0_f32.powi(-55);
        assert_eq!(round_to_bf16(least).to_f32(), least);
        assert_eq!(round_to_bf16(-least * 0.99), bf16::ZERO);
        assert_eq!(round_to_bf16(1.0 + 1.0 / 256.0).to_f32(), 1.0, "ties go to even");
        assert!(round_to_bf16(f32::NAN).is_nan());
        assert!(round_to_bf16(f32::from_bits(0xff80_0001)).is_nan(), "also of the lowest bit");
        assert!(round_to_bf16(f32::MAX).to_f32().is_infinite());
    }
}
