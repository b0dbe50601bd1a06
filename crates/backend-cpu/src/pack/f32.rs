//! Weights of any kind as float32, for `--dtype float32`.

use oarlock_backend::{BackendError, WeightView};

use crate::buffer::{AlignedBuffer, SharedSlice};
use crate::isa::{Isa, multiversion};
use crate::lanes::Lanes;
use crate::threads::{ThreadPool, quarter_share};

use super::TILE;
use super::chunk::{CHUNK, Chunk, write_chunk};
use super::float_rows::FloatRows;

/// A packed matrix: tiles, each `[column][output]`.
#[derive(Debug)]
pub(crate) struct F32Part {
    values: AlignedBuffer<f32>,
    columns: usize,
}

impl F32Part {
    /// Packs a checked view on all threads.
    pub(crate) fn pack(
        view: &WeightView<'_>,
        isa: Isa,
        pool: &mut ThreadPool,
    ) -> Result<Self, BackendError> {
        let columns = view.columns;
        let tiles = view.rows.div_ceil(TILE);
        let mut values = AlignedBuffer::unwritten(tiles * columns * TILE, view.name)?;
        let shared = SharedSlice::new(&mut values);
        let threads = pool.threads();
        pool.run(tiles, quarter_share(tiles, threads), &|_, range| {
            let mut memory = Vec::new();
            for tile in range {
                let first = tile * columns * TILE;
                // SAFETY: each tile is packed by one thread, and the buffer outlives the job.
                let values = unsafe { shared.range(first..first + columns * TILE) };
                let rows = FloatRows::new(view, tile, &mut memory);
                pack_tile(isa, &rows, bytemuck::cast_slice_mut(values));
            }
        })
        .map_err(|reason| BackendError::Weight { name: view.name.to_owned(), reason })?;
        Ok(Self { values, columns })
    }

    /// One tile: `[column][output]`.
    pub(crate) fn tile(&self, tile: usize) -> &[[f32; TILE]] {
        let len = self.columns * TILE;
        self.values[tile * len..][..len].as_chunks().0
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        self.values.bytes()
    }
}

multiversion! {
    /// Packs the rows of a tile as the bits of their values.
    fn pack_tile = pack_tile_with(rows: &FloatRows<'_>, out: &mut [[u32; TILE]]);
}

#[inline(always)]
fn pack_tile_with<L: Lanes>(rows: &FloatRows<'_>, out: &mut [[u32; TILE]]) {
    let mut chunk: Chunk = [[0; CHUNK]; TILE];
    for (index, out) in out.chunks_mut(CHUNK).enumerate() {
        for (row, words) in chunk.iter_mut().enumerate().take(rows.len()) {
            let values: &mut [f32] = bytemuck::cast_slice_mut(&mut words[..out.len()]);
            rows.read::<L>(row, index * CHUNK, values);
        }
        write_chunk::<L>(&chunk, out);
    }
}
