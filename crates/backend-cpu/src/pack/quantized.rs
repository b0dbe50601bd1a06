//! Packs quantized weights: from rows of GGML blocks to tiles (see [`Format`] for the layout).

use oarlock_backend::quant::quantize_rows;
use oarlock_backend::{BackendError, WeightKind, WeightView};

use crate::buffer::{AlignedBuffer, SharedSlice};
use crate::isa::{Isa, multiversion};
use crate::lanes::Lanes;
use crate::threads::{ThreadPool, quarter_share};

use super::chunk::{CHUNK, Chunk, prefetch, write_chunk};
use super::order::{Order, Ordered, SUPER};
use super::{BLOCK, Format, QuantFormat, TILE, with_format};

/// A packed quantized matrix: tiles, each with its blocks in order of columns.
#[derive(Debug)]
pub(crate) struct QuantPart {
    format: QuantFormat,
    blocks: usize,
    /// Place of the first block in its super-block: a rank's columns may begin in the middle of one.
    phase: usize,
    tiles: usize,
    /// Quants of all tiles, then scales, then super scales: one buffer, so that one end of it has small pages.
    planes: AlignedBuffer<u8>,
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

/// Quants, scales and super scales of one tile.
type Planes<'a> = (&'a mut [u8], &'a mut [u8], &'a mut [u8]);

fn weight_error(view: &WeightView<'_>, reason: &dyn ToString) -> BackendError {
    BackendError::Weight { name: view.name.to_owned(), reason: reason.to_string() }
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
        Self::pack_tiles(view, (format, view.first_column), pool, &|tile, _, planes| {
            pack_tile(isa, format, view, tile, planes);
        })
    }

    /// Packs a checked view of a kind that no kernel multiplies with as Q8_0, tile by tile: of a block's values, each
    /// is about a 254th of the greatest off at most.
    pub(crate) fn pack_as_q8_0(
        view: &WeightView<'_>,
        isa: Isa,
        pool: &mut ThreadPool,
    ) -> Result<Self, BackendError> {
        const KIND: WeightKind = WeightKind::Q8_0;
        quantize_rows(view, KIND, 0, &mut []).map_err(|error| weight_error(view, &error))?;
        let row_bytes = view.columns / BLOCK * KIND.block_bytes();
        Self::pack_tiles(view, (QuantFormat::Q8_0, 0), pool, &|tile, memory, planes| {
            let first_row = tile * TILE;
            let rows = TILE.min(view.rows - first_row);
            memory.resize(rows * row_bytes, 0);
            round_rows(isa, view, first_row, memory);
            let rounded = WeightView::whole(view.name, KIND, rows, view.columns, memory);
            pack_tile(isa, QuantFormat::Q8_0, &rounded, 0, planes);
        })
    }

    /// A part for the rows and columns of `view`, whose first column's place in a super-block is that of
    /// `first_column`. `write` gets a tile, memory of the thread, and the tile's planes.
    fn pack_tiles(
        view: &WeightView<'_>,
        (format, first_column): (QuantFormat, usize),
        pool: &mut ThreadPool,
        write: &(dyn Fn(usize, &mut Vec<u8>, Planes<'_>) + Sync),
    ) -> Result<Self, BackendError> {
        let blocks = view.columns / BLOCK;
        let tiles = view.rows.div_ceil(TILE);
        let phase = first_column / BLOCK % SUPER;
        let bytes = TileBytes::of(format, blocks, phase);
        let len = tiles * (bytes.quants + bytes.scales + bytes.supers);
        let mut part = Self {
            format,
            blocks,
            phase,
            tiles,
            planes: AlignedBuffer::unwritten(len, view.name)?,
        };
        let (quants, rest) = part.planes.split_at_mut(tiles * bytes.quants);
        let (scales, supers) = rest.split_at_mut(tiles * bytes.scales);
        let [quants, scales, supers] = [quants, scales, supers].map(SharedSlice::new);
        let threads = pool.threads();
        pool.run(tiles, quarter_share(tiles, threads), &|_, taken| {
            let mut memory = Vec::new();
            for tile in taken {
                let range = |bytes: usize| tile * bytes..(tile + 1) * bytes;
                // SAFETY: each tile is packed by one thread, and the buffers outlive the job.
                let planes = unsafe {
                    (
                        quants.range(range(bytes.quants)),
                        scales.range(range(bytes.scales)),
                        supers.range(range(bytes.supers)),
                    )
                };
                write(tile, &mut memory, planes);
            }
        })
        .map_err(|reason| weight_error(view, &reason))?;
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
        let (quants, rest) = self.planes.split_at(self.tiles * bytes.quants);
        let (scales, supers) = rest.split_at(self.tiles * bytes.scales);
        QuantTile {
            phase: self.phase,
            quants: &quants[tile * bytes.quants..][..bytes.quants],
            scales: &scales[tile * bytes.scales..][..bytes.scales],
            supers: &supers[tile * bytes.supers..][..bytes.supers],
        }
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        self.planes.bytes()
    }
}

multiversion! {
    /// Rounds rows of a checked view to Q8_0.
    fn round_rows = round_rows_with(view: &WeightView<'_>, first_row: usize, out: &mut [u8]);
}

#[inline(always)]
fn round_rows_with<L: Lanes>(view: &WeightView<'_>, first_row: usize, out: &mut [u8]) {
    quantize_rows(view, WeightKind::Q8_0, first_row, out).expect("a checked view");
}

multiversion! {
    /// Packs one tile into its planes: quants, scales, super scales.
    fn pack_tile = pack_tile_with(
        format: QuantFormat,
        view: &WeightView<'_>,
        tile: usize,
        planes: Planes<'_>,
    );
}

#[inline(always)]
fn pack_tile_with<L: Lanes>(
    format: QuantFormat,
    view: &WeightView<'_>,
    tile: usize,
    (quants, scales, supers): Planes<'_>,
) {
    with_format!(format, F => write_tile::<L, F>(view, tile, quants, scales, supers));
}

/// Writes one tile; outputs past the end stay zero (a zero scale makes them contribute nothing).
#[inline(always)]
fn write_tile<L: Lanes, F: Order>(
    view: &WeightView<'_>,
    tile: usize,
    quants: &mut [u8],
    scales: &mut [u8],
    supers: &mut [u8],
) {
    let row_bytes = view.row_bytes();
    let rows = &view.data[tile * TILE * row_bytes..];
    let first_block = view.first_column / BLOCK;
    let phase = first_block % SUPER;
    let blocks = view.columns / BLOCK;
    let quants: &mut [[u32; TILE]] = bytemuck::cast_slice_mut(quants);
    let scales = scales.as_chunks_mut().0;
    let supers: &mut [[u16; TILE]] = bytemuck::cast_slice_mut(supers);
    let mut chunk: Chunk = [[0; CHUNK]; TILE];
    let mut words = [[0; TILE]; CHUNK];
    let mut ordered = Ordered::default();
    // Whole super-blocks are read; what the view does not see of the first and last is not written.
    let super_bytes = SUPER * BLOCK / F::KIND.block_values() * F::KIND.block_bytes();
    for super_block in 0..(phase + blocks).div_ceil(SUPER) {
        let first_byte = (first_block / SUPER + super_block) * super_bytes;
        for (output, row) in rows.chunks_exact(row_bytes).take(TILE).enumerate() {
            prefetch(rows, row_bytes, output * row_bytes + first_byte, super_bytes);
            let stored = &row[first_byte..row_bytes.min(first_byte + super_bytes)];
            F::copy(stored, &mut chunk[output], output, &mut ordered);
        }
        write_chunk::<L>(&chunk, &mut words[..F::WORDS]);
        F::order(&words, &mut ordered);
        let seen =
            (super_block * SUPER).max(phase)..((super_block + 1) * SUPER).min(phase + blocks);
        let from = seen.start % SUPER;
        let to = seen.start - phase;
        quants[to * F::BITS..][..seen.len() * F::BITS]
            .copy_from_slice(&ordered.quants[from * F::BITS..][..seen.len() * F::BITS]);
        scales[to..][..seen.len()].copy_from_slice(&ordered.scales[from..][..seen.len()]);
        let len = F::SUPER_BYTES / size_of::<[u16; TILE]>();
        supers[super_block * len..][..len].copy_from_slice(&ordered.supers[..len]);
    }
}
