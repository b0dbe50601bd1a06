//! Packs quantized weights: from rows of GGML blocks to tiles (see [`Format`] for the layout).

use oarlock_backend::quant::{SubBlock, sub_block};
use oarlock_backend::{BackendError, WeightView};

use crate::buffer::{AlignedBuffer, SharedSlice};
use crate::threads::{ThreadPool, quarter_share};

use super::{BLOCK, Format, QuantFormat, TILE, with_format};

/// Blocks of 32 in a super-block.
const SUPER: usize = 8;

/// A packed quantized matrix: tiles, each with its blocks in order of columns.
#[derive(Debug)]
pub(crate) struct QuantPart {
    format: QuantFormat,
    blocks: usize,
    /// Place of the first block in its super-block: a rank's columns may begin in the middle of one.
    phase: usize,
    quants: AlignedBuffer<u8>,
    scales: AlignedBuffer<u8>,
    supers: AlignedBuffer<u8>,
}

/// One tile of a part.
#[derive(Clone, Copy)]
pub(crate) struct QuantTile<'a> {
    phase: usize,
    pub(crate) quants: &'a [u8],
    pub(crate) scales: &'a [u8],
    pub(crate) supers: &'a [u8],
}

impl QuantTile<'_> {
    /// Index of the super scales of a block.
    #[inline(always)]
    pub(crate) fn super_block(&self, block: usize) -> usize {
        (block + self.phase) / SUPER
    }
}

/// Bytes per tile of the three planes.
struct TileBytes {
    quants: usize,
    scales: usize,
    supers: usize,
}

impl TileBytes {
    fn of(format: QuantFormat, blocks: usize, phase: usize) -> Self {
        with_format!(format, F => Self {
            quants: F::QUANT_BYTES * blocks,
            scales: F::SCALE_BYTES * blocks,
            supers: F::SUPER_BYTES * (blocks + phase).div_ceil(SUPER),
        })
    }
}

impl QuantPart {
    /// Packs a checked view on all threads.
    pub(crate) fn pack(
        view: &WeightView<'_>,
        format: QuantFormat,
        pool: &mut ThreadPool,
    ) -> Result<Self, BackendError> {
        let blocks = view.columns / BLOCK;
        let tiles = view.rows.div_ceil(TILE);
        let phase = view.first_column / BLOCK % SUPER;
        let bytes = TileBytes::of(format, blocks, phase);
        let mut part = Self {
            format,
            blocks,
            phase,
            quants: AlignedBuffer::zeroed(tiles * bytes.quants, view.name)?,
            scales: AlignedBuffer::zeroed(tiles * bytes.scales, view.name)?,
            supers: AlignedBuffer::zeroed(tiles * bytes.supers, view.name)?,
        };
        let quants = SharedSlice::new(&mut part.quants);
        let scales = SharedSlice::new(&mut part.scales);
        let supers = SharedSlice::new(&mut part.supers);
        let threads = pool.threads();
        pool.run(tiles, quarter_share(tiles, threads), &|_, taken| {
            for tile in taken {
                let range = |bytes: usize| tile * bytes..(tile + 1) * bytes;
                // SAFETY: each tile is packed by one thread, and the buffers outlive the job.
                let (quants, scales, supers) = unsafe {
                    (
                        quants.range(range(bytes.quants)),
                        scales.range(range(bytes.scales)),
                        supers.range(range(bytes.supers)),
                    )
                };
                with_format!(format, F => pack_tile::<F>(view, tile, quants, scales, supers));
            }
        })
        .map_err(|reason| BackendError::Weight { name: view.name.to_owned(), reason })?;
        Ok(part)
    }

    /// How its quants are laid out.
    pub(crate) fn format(&self) -> QuantFormat {
        self.format
    }

    /// Blocks of 32 columns.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }

    /// One tile.
    pub(crate) fn tile(&self, tile: usize) -> QuantTile<'_> {
        let bytes = TileBytes::of(self.format, self.blocks, self.phase);
        QuantTile {
            phase: self.phase,
            quants: &self.quants[tile * bytes.quants..][..bytes.quants],
            scales: &self.scales[tile * bytes.scales..][..bytes.scales],
            supers: &self.supers[tile * bytes.supers..][..bytes.supers],
        }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        self.quants.bytes() + self.scales.bytes() + self.supers.bytes()
    }
}

/// Packs one tile; outputs past the end stay zero (a zero scale makes them contribute nothing).
fn pack_tile<F: Format>(
    view: &WeightView<'_>,
    tile: usize,
    quants: &mut [u8],
    scales: &mut [u8],
    supers: &mut [u8],
) {
    let row_bytes = view.row_bytes();
    let first = tile * TILE;
    let first_block = view.first_column / BLOCK;
    let phase = first_block % SUPER;
    for output in 0..TILE.min(view.rows - first) {
        let row = &view.data[(first + output) * row_bytes..][..row_bytes];
        let planes =
            quants.chunks_exact_mut(F::QUANT_BYTES).zip(scales.chunks_exact_mut(F::SCALE_BYTES));
        for (block, (quants, scales)) in planes.enumerate() {
            let values = sub_block(view.kind, row, first_block + block);
            put_quants::<F>(&values, quants, output);
            put_scales::<F>(&values, scales, output);
            // The first block of a super-block, or of the range.
            if F::SUPER_BYTES > 0 && (block == 0 || (block + phase).is_multiple_of(SUPER)) {
                let at = (block + phase) / SUPER * F::SUPER_BYTES;
                put_supers::<F>(&values, &mut supers[at..], output);
            }
        }
    }
}

/// Four quants as one word, first in the low byte.
fn word(quants: &[u8; BLOCK], group: usize) -> u32 {
    u32::from_le_bytes([
        quants[4 * group],
        quants[4 * group + 1],
        quants[4 * group + 2],
        quants[4 * group + 3],
    ])
}

fn put_word(plane: &mut [u8], at: usize, word: u32) {
    plane[at..at + 4].copy_from_slice(&word.to_le_bytes());
}

fn put_quants<F: Format>(values: &SubBlock, plane: &mut [u8], output: usize) {
    let words: [u32; 8] = std::array::from_fn(|group| word(&values.quants, group));
    if F::BITS == 8 {
        for (group, word) in words.into_iter().enumerate() {
            put_word(plane, group * 64 + output * 4, word);
        }
        return;
    }
    for group in 0..4 {
        let low = words[group] & 0x0f0f_0f0f;
        let high = words[group + 4] & 0x0f0f_0f0f;
        put_word(plane, group * 64 + output * 4, low | high << 4);
    }
    let above = words.map(|word| word >> 4 & 0x0f0f_0f0f);
    if F::BITS == 5 {
        let bits = (0..8).fold(0, |bits, group| bits | above[group] << group);
        put_word(plane, 256 + output * 4, bits);
    }
    if F::BITS == 6 {
        for half in 0..2 {
            let bits = (0..4).fold(0, |bits, group| bits | above[half * 4 + group] << (2 * group));
            put_word(plane, 256 + half * 64 + output * 4, bits);
        }
    }
}

fn put_scales<F: Format>(values: &SubBlock, plane: &mut [u8], output: usize) {
    if F::MINIMUM {
        plane[output] = values.sub_scales[0].cast_unsigned();
        plane[TILE + output] = values.minimum;
    } else if F::HALVES {
        plane[output] = values.sub_scales[0].cast_unsigned();
        plane[TILE + output] = values.sub_scales[1].cast_unsigned();
    } else {
        plane[2 * output..2 * output + 2].copy_from_slice(&values.scale.to_le_bytes());
    }
}

fn put_supers<F: Format>(values: &SubBlock, plane: &mut [u8], output: usize) {
    plane[2 * output..2 * output + 2].copy_from_slice(&values.scale.to_le_bytes());
    if F::MINIMUM {
        plane[32 + 2 * output..34 + 2 * output]
            .copy_from_slice(&values.minimum_scale.to_le_bytes());
    }
}
