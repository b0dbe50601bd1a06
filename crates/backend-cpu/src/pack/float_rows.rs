//! The rows of a tile as floats, piece by piece: what the packers of float formats read.

use half::bf16;
use oarlock_backend::quant::dequantize_row;
use oarlock_backend::{WeightKind, WeightView};

use crate::lanes::{LANES, Lanes};

use super::TILE;
use super::chunk::prefetch;

/// The rows of one tile, as far as a view sees them.
pub(super) struct FloatRows<'a> {
    view: &'a WeightView<'a>,
    first_row: usize,
    /// Of quantized weights, `[row][stored column]`.
    decoded: &'a [f32],
}

impl<'a> FloatRows<'a> {
    /// Of a checked view. `memory` is for the values of quantized weights.
    pub(super) fn new(view: &'a WeightView<'a>, tile: usize, memory: &'a mut Vec<f32>) -> Self {
        let mut rows = Self { view, first_row: tile * TILE, decoded: &[] };
        if view.kind.is_quantized() {
            memory.resize(rows.len() * view.stored_columns, 0.0);
            for (row, values) in memory.chunks_exact_mut(view.stored_columns).enumerate() {
                dequantize_row(view.kind, rows.bytes(row), values).expect("a checked view");
            }
            rows.decoded = memory;
        }
        rows
    }

    /// Rows of the tile; the last tile may have fewer than others.
    pub(super) fn len(&self) -> usize {
        TILE.min(self.view.rows - self.first_row)
    }

    /// A stored row.
    #[inline(always)]
    fn bytes(&self, row: usize) -> &'a [u8] {
        let row_bytes = self.view.row_bytes();
        &self.view.data[(self.first_row + row) * row_bytes..][..row_bytes]
    }

    /// `count` values of `BYTES` of a stored row, from `column` of those that the view sees.
    #[inline(always)]
    fn stored<const BYTES: usize>(
        &self,
        row: usize,
        column: usize,
        count: usize,
    ) -> &'a [[u8; BYTES]] {
        let row_bytes = self.view.row_bytes();
        let rows = &self.view.data[self.first_row * row_bytes..];
        let at = row * row_bytes + (self.view.first_column + column) * BYTES;
        prefetch(rows, row_bytes, at, count * BYTES);
        rows[at..at + count * BYTES].as_chunks().0
    }

    /// `out.len()` values of a row, from this of the columns that the view sees.
    #[inline(always)]
    pub(super) fn read<L: Lanes>(&self, row: usize, column: usize, out: &mut [f32]) {
        let len = out.len();
        match self.view.kind {
            WeightKind::F32 => {
                let values = self.stored::<4>(row, column, len);
                for (out, value) in out.iter_mut().zip(values) {
                    *out = f32::from_le_bytes(*value);
                }
            }
            WeightKind::F16 => {
                let halves = self.stored::<2>(row, column, len);
                let (whole, rest) = out.as_chunks_mut();
                for (out, halves) in whole.iter_mut().zip(halves.as_chunks().0) {
                    half_floats::<L>(halves).store(out);
                }
                let mut padded = [[0; 2]; LANES];
                padded[..rest.len()].copy_from_slice(&halves[len - rest.len()..]);
                let mut last = [0.0; LANES];
                half_floats::<L>(&padded).store(&mut last);
                rest.copy_from_slice(&last[..rest.len()]);
            }
            WeightKind::Bf16 => {
                let values = self.stored::<2>(row, column, len);
                for (out, value) in out.iter_mut().zip(values) {
                    *out = bf16::from_le_bytes(*value).to_f32();
                }
            }
            _ => {
                let first = row * self.view.stored_columns + self.view.first_column + column;
                out.copy_from_slice(&self.decoded[first..][..len]);
            }
        }
    }

    /// `count` bfloat16 of a row as they are stored, from this of the columns that the view sees; `None` for
    /// weights of other kinds.
    #[inline(always)]
    pub(super) fn stored_bf16(
        &self,
        row: usize,
        column: usize,
        count: usize,
    ) -> Option<&'a [[u8; 2]]> {
        let is_bf16 = self.view.kind == WeightKind::Bf16;
        is_bf16.then(|| self.stored(row, column, count))
    }
}

/// Sixteen f16 as they are stored.
#[inline(always)]
fn half_floats<L: Lanes>(stored: &[[u8; 2]; LANES]) -> L {
    let mut bits = [0; LANES];
    for (bits, stored) in bits.iter_mut().zip(stored) {
        *bits = u16::from_le_bytes(*stored);
    }
    L::load_f16(&bits)
}
