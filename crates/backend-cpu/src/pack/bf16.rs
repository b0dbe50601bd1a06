//! Packs F32, F16 and BF16 weights as bfloat16 pairs, in the order of AMX's `TDPBF16PS`.

use half::bf16;
use oarlock_backend::quant::dequantize_row;
use oarlock_backend::{BackendError, WeightView};

use crate::buffer::{AlignedBuffer, SharedSlice};
use crate::threads::{ThreadPool, quarter_share};

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
    const LEAST: f32 = 1.0 / (1_u64 << 55) as f32;
    let rounded = bf16::from_f32(value);
    if rounded.to_f32().abs() < LEAST { bf16::ZERO } else { rounded }
}

impl Bf16Part {
    /// Packs a checked view on all threads.
    pub(crate) fn pack(
        view: &WeightView<'_>,
        segments: usize,
        pool: &mut ThreadPool,
    ) -> Result<Self, BackendError> {
        let width = view.columns / segments;
        let padded = width.next_multiple_of(BLOCK);
        let tile_words = segments * padded / 2 * TILE;
        let tiles = view.rows.div_ceil(TILE);
        let mut words = AlignedBuffer::zeroed(tiles * tile_words, view.name)?;
        let shared = SharedSlice::new(&mut words);
        let threads = pool.threads();
        let row_bytes = view.row_bytes();
        pool.run(tiles, quarter_share(tiles, threads), &|_, range| {
            let mut row = vec![0.0; view.stored_columns];
            let seen = view.first_column..view.first_column + view.columns;
            for tile in range {
                // SAFETY: each tile is packed by one thread, and the buffer outlives the job.
                let words = unsafe { shared.range(tile * tile_words..(tile + 1) * tile_words) };
                for output in 0..TILE.min(view.rows - tile * TILE) {
                    let bytes = &view.data[(tile * TILE + output) * row_bytes..][..row_bytes];
                    dequantize_row(view.kind, bytes, &mut row).expect("a checked view");
                    for (column, &value) in row[seen.clone()].iter().enumerate() {
                        let at = column / width * padded + column % width;
                        let bits = u32::from(round_to_bf16(value).to_bits());
                        words[at / 2 * TILE + output] |= bits << (at % 2 * 16);
                    }
                }
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
        assert!(round_to_bf16(f32::MAX).to_f32().is_infinite());
    }
}
