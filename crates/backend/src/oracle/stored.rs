//! Matrices as they were stored, and the checks of views that all backends share.

use crate::quant::dequantize_row;
use crate::{BackendError, InnerSplit, WeightKind, WeightView};

/// A matrix as it was stored.
#[derive(Debug)]
pub struct StoredMatrix {
    kind: WeightKind,
    pub(super) rows: usize,
    pub(super) columns: usize,
    stored_columns: usize,
    first_column: usize,
    data: Vec<u8>,
}

impl StoredMatrix {
    /// Copies what a view shows.
    pub(super) fn new(view: &WeightView<'_>) -> Result<Self, BackendError> {
        check_view(view)?;
        Ok(Self {
            kind: view.kind,
            rows: view.rows,
            columns: view.columns,
            stored_columns: view.stored_columns,
            first_column: view.first_column,
            data: view.data.to_vec(),
        })
    }

    /// The values of one row.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        let bytes = self.data.len() / self.rows;
        let mut stored = vec![0.0; self.stored_columns];
        dequantize_row(self.kind, &self.data[row * bytes..][..bytes], &mut stored)
            .expect("checked when stored");
        out.copy_from_slice(&stored[self.first_column..][..self.columns]);
    }
}

/// Checks that a view's bytes are what its shape says.
pub fn check_view(view: &WeightView<'_>) -> Result<(), BackendError> {
    let fail = |reason: String| BackendError::Weight { name: view.name.to_owned(), reason };
    let row_bytes = view.kind.row_bytes(view.stored_columns).ok_or_else(|| {
        fail(format!(
            "{} columns are not whole blocks of {}",
            view.stored_columns,
            view.kind.block_values()
        ))
    })?;
    let expected =
        row_bytes.checked_mul(view.rows).ok_or_else(|| fail("its size overflows".to_owned()))?;
    if view.data.len() != expected {
        return Err(fail(format!("{} bytes where its shape needs {expected}", view.data.len())));
    }
    if view.rows == 0 || view.columns == 0 {
        return Err(fail("it is empty".to_owned()));
    }
    let end = view.first_column.checked_add(view.columns);
    if end.is_none_or(|end| end > view.stored_columns) {
        return Err(fail(format!("a range of columns beyond its {}", view.stored_columns)));
    }
    if view.kind.is_quantized()
        && !(view.first_column.is_multiple_of(32) && view.columns.is_multiple_of(32))
    {
        return Err(fail("a range of columns that cuts sub-blocks of 32".to_owned()));
    }
    Ok(())
}

/// Checks the parts of a linear layer and its split; gives the common inner width.
pub fn check_parts(parts: &[WeightView<'_>], split: InnerSplit) -> Result<usize, BackendError> {
    assert!(!parts.is_empty(), "a linear layer has parts");
    let columns = parts[0].columns;
    for part in parts {
        check_view(part)?;
        let fail = |reason| Err(BackendError::Weight { name: part.name.to_owned(), reason });
        if part.columns != columns {
            return fail(format!("{} columns where its siblings have {columns}", part.columns));
        }
        if !split.segments.is_power_of_two()
            || split.segments > 8
            || !columns.is_multiple_of(split.segments)
        {
            return fail(format!(
                "{columns} columns cannot be cut into {} segments",
                split.segments
            ));
        }
        if part.kind.is_quantized() && !(columns / split.segments).is_multiple_of(32) {
            let width = columns / split.segments;
            return fail(format!("segments of {width} columns are not whole sub-blocks of 32"));
        }
    }
    Ok(columns)
}
