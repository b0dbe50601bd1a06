//! What a backend hands out: activations, tables, vectors.

use oarlock_backend::{BackendError, RowSet, WeightKind, WeightView};

use crate::buffer::{AlignedBuffer, SharedSlice};
use crate::threads::ThreadPool;

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

impl CpuTable {
    /// Copies a checked view on all threads.
    pub(crate) fn pack(
        table: &WeightView<'_>,
        first_token: u32,
        pool: &mut ThreadPool,
    ) -> Result<Self, BackendError> {
        /// Bytes that a thread copies at a time.
        const PIECE: usize = 1 << 20;
        let len = table.data.len();
        let mut data = AlignedBuffer::unwritten(len, table.name)?;
        let shared = SharedSlice::new(&mut data);
        pool.run(len.div_ceil(PIECE), 1, &|_, pieces| {
            let range = pieces.start * PIECE..len.min(pieces.end * PIECE);
            // SAFETY: each piece is copied by one thread, and the buffer outlives the job.
            unsafe { shared.range(range.clone()) }.copy_from_slice(&table.data[range]);
        })
        .map_err(|reason| BackendError::Weight { name: table.name.to_owned(), reason })?;
        Ok(Self {
            kind: table.kind,
            columns: table.columns,
            row_bytes: table.row_bytes(),
            first_token: first_token as usize,
            data,
        })
    }
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
