//! Where the tensors of an opened model lie, whatever its format.

use std::collections::BTreeMap;
use std::ops::Range;

use oarlock_backend::WeightKind;

/// Tensors by this crate's names.
pub(crate) type Tensors = BTreeMap<String, StoredTensor>;

/// One tensor of a model.
#[derive(Debug)]
pub(crate) struct StoredTensor {
    /// Index of its file.
    pub(crate) file: usize,
    /// Its name there.
    pub(crate) name: String,
    pub(crate) info: TensorInfo,
}

/// Shape of a tensor, and where it lies in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TensorInfo {
    pub(crate) kind: WeightKind,
    /// All dimensions but the innermost, multiplied.
    pub(crate) rows: usize,
    /// The innermost dimension.
    pub(crate) columns: usize,
    /// Bytes in the file.
    pub(crate) range: Range<usize>,
}

impl TensorInfo {
    /// Values of the tensor.
    pub(crate) fn parameters(&self) -> u64 {
        self.rows as u64 * self.columns as u64
    }
}

/// Values of all tensors.
pub(crate) fn num_parameters(tensors: &Tensors) -> u64 {
    tensors.values().map(|tensor| tensor.info.parameters()).sum()
}
