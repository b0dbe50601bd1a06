//! Weights of any kind as float32, for `--dtype float32`.

use oarlock_backend::quant::dequantize_row;
use oarlock_backend::{BackendError, WeightView};

use crate::buffer::{AlignedBuffer, SharedSlice};
use crate::threads::{ThreadPool, quarter_share};

use super::TILE;

/// A packed matrix: tiles, each `[column][output]`.
#[derive(Debug)]
pub(crate) struct F32Part {
    values: AlignedBuffer<f32>,
    columns: usize,
}

impl F32Part {
    /// Packs a checked view on all threads.
    pub(crate) fn pack(view: &WeightView<'_>, pool: &mut ThreadPool) -> Result<Self, BackendError> {
        let columns = view.columns;
        let tiles = view.rows.div_ceil(TILE);
        let mut values = AlignedBuffer::zeroed(tiles * columns * TILE, view.name)?;
        let shared = SharedSlice::new(&mut values);
        let threads = pool.threads();
        let row_bytes = view.row_bytes();
        let seen = view.first_column..view.first_column + columns;
        pool.run(tiles, quarter_share(tiles, threads), &|_, range| {
            let mut row = vec![0.0; view.stored_columns];
            for tile in range {
                let first = tile * columns * TILE;
                // SAFETY: each tile is packed by one thread, and the buffer outlives the job.
                let values = unsafe { shared.range(first..first + columns * TILE) };
                for output in 0..TILE.min(view.rows - tile * TILE) {
                    let bytes = &view.data[(tile * TILE + output) * row_bytes..][..row_bytes];
                    dequantize_row(view.kind, bytes, &mut row).expect("a checked view");
                    for (column, &value) in row[seen.clone()].iter().enumerate() {
                        values[column * TILE + output] = value;
                    }
                }
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
