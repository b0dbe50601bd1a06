//! Packs quantized weights: from rows of GGML blocks to tiles (see [`Format`] for the layout).

use oarlock_backend::quant::{SubBlock, sub_block};
use oarlock_backend::{BackendError, WeightView};

use crate::buffer::{AlignedBuffer, SharedSlice};
use crate::isa::{Isa, multiversion};
use crate::lanes::Lanes;
use crate::threads::{ThreadPool, quarter_share};

use super::chunk::{CHUNK, Chunk, write_chunk};
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
        isa: Isa,
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
            quants: AlignedBuffer::unwritten(tiles * bytes.quants, view.name)?,
            scales: AlignedBuffer::unwritten(tiles * bytes.scales, view.name)?,
            supers: AlignedBuffer::unwritten(tiles * bytes.supers, view.name)?,
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
                pack_tile(isa, format, view, tile, (quants, scales, supers));
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

multiversion! {
    /// Packs one tile into its planes: quants, scales, super scales.
    fn pack_tile = pack_tile_with(
        format: QuantFormat,
        view: &WeightView<'_>,
        tile: usize,
        planes: (&mut [u8], &mut [u8], &mut [u8]),
    );
}

#[inline(always)]
fn pack_tile_with<L: Lanes>(
    format: QuantFormat,
    view: &WeightView<'_>,
    tile: usize,
    (quants, scales, supers): (&mut [u8], &mut [u8], &mut [u8]),
) {
    with_format!(format, F => write_tile::<L, F>(view, tile, quants, scales, supers));
}

/// Writes one tile; outputs past the end stay zero (a zero scale makes them contribute nothing).
#[inline(always)]
fn write_tile<L: Lanes, F: Format>(
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
    let blocks = view.columns / BLOCK;
    let quants: &mut [[u32; TILE]] = bytemuck::cast_slice_mut(quants);
    let mut chunk: Chunk = [[0; CHUNK]; TILE];
    let mut block = 0;
    while block < blocks {
        // Up to the end of a super-block.
        let end = blocks.min(block + SUPER - (block + phase) % SUPER);
        for (output, words) in chunk.iter_mut().enumerate().take(view.rows - first) {
            let row = &view.data[(first + output) * row_bytes..][..row_bytes];
            let words = words.chunks_exact_mut(F::BITS);
            let scales = scales[block * F::SCALE_BYTES..end * F::SCALE_BYTES]
                .chunks_exact_mut(F::SCALE_BYTES);
            for ((at, words), scales) in (block..end).zip(words).zip(scales) {
                let values = sub_block(F::KIND, row, first_block + at);
                put_quants::<F>(&values, words);
                put_scales::<F>(&values, scales, output);
                if F::SUPER_BYTES > 0 && at == block {
                    let at = (block + phase) / SUPER * F::SUPER_BYTES;
                    put_supers::<F>(&values, &mut supers[at..], output);
                }
            }
        }
        write_chunk::<L>(&chunk, &mut quants[block * F::BITS..end * F::BITS]);
        block = end;
    }
}

/// The quants of a block and an output, as the words that lie `TILE` words apart in a tile.
#[inline(always)]
fn put_quants<F: Format>(values: &SubBlock, out: &mut [u32]) {
    let mut words = [0; BLOCK / 4];
    for (word, quants) in words.iter_mut().zip(values.quants.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*quants);
    }
    if F::BITS == 8 {
        for (out, word) in out.iter_mut().zip(words) {
            *out = word.to_le();
        }
        return;
    }
    for group in 0..4 {
        let low = words[group] & 0x0f0f_0f0f;
        let high = words[group + 4] & 0x0f0f_0f0f;
        out[group] = (low | high << 4).to_le();
    }
    for word in &mut words {
        *word = *word >> 4 & 0x0f0f_0f0f;
    }
    if F::BITS == 5 {
        out[4] = 0;
        for (group, word) in words.iter().enumerate() {
            out[4] |= (word << group).to_le();
        }
    }
    if F::BITS == 6 {
        for (half, words) in words.chunks_exact(4).enumerate() {
            out[4 + half] = 0;
            for (group, word) in words.iter().enumerate() {
                out[4 + half] |= (word << (2 * group)).to_le();
            }
        }
    }
}

#[inline(always)]
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

#[inline(always)]
fn put_supers<F: Format>(values: &SubBlock, plane: &mut [u8], output: usize) {
    plane[2 * output..2 * output + 2].copy_from_slice(&values.scale.to_le_bytes());
    if F::MINIMUM {
        plane[32 + 2 * output..34 + 2 * output]
            .copy_from_slice(&values.minimum_scale.to_le_bytes());
    }
}
