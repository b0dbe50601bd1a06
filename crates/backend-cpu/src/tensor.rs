//! What a backend hands out: activations, tables, vectors.

use oarlock_backend::{RowSet, WeightKind};

use crate::buffer::{AlignedBuffer, SharedSlice};

/// Activations, `[rows, width]`.
#[derive(Debug)]
pub struct CpuTensor {
    pub(crate) rows: RowSet,
    pub(crate) width: usize,
    pub(crate) values: AlignedBuffer<f32>,
}

/// An embedding table as it was stored.
#[derive(Debug)]
pub struct CpuTable {
    pub(crate) kind: WeightKind,
    pub(crate) columns: usize,
    pub(crate) row_bytes: usize,
    pub(crate) first_token: usize,
    pub(crate) data: AlignedBuffer<u8>,
}

/// A float32 vector.
#[derive(Debug)]
pub struct CpuVector {
    pub(crate) values: AlignedBuffer<f32>,
}

impl CpuTensor {
    /// One row.
    pub(crate) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..][..self.width]
    }
}

/// One row of a tensor that threads share by rows.
///
/// # Safety
/// No other reference to the row exists, and the tensor lives.
pub(crate) unsafe fn row_of<'a>(
    tensor: &SharedSlice<f32>,
    width: usize,
    row: usize,
) -> &'a mut [f32] {
    // SAFETY: by the caller's promise; the lifetime is bounded by the job that the caller runs.
    unsafe { std::mem::transmute(tensor.range(row * width..(row + 1) * width)) }
}
