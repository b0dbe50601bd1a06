//! Weights as they lie in a file: views that a backend packs.

use std::ops::Range;

/// How the values of a weight are stored. The quantized kinds are GGML's, laid out in blocks along
/// the inner dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightKind {
    /// 32-bit IEEE floats.
    F32,
    /// 16-bit IEEE floats.
    F16,
    /// bfloat16.
    Bf16,
    /// 32 values of 4 bits, one f16 scale.
    Q4_0,
    /// 32 values of 4 bits, an f16 scale and an f16 minimum.
    Q4_1,
    /// 32 values of 5 bits, one f16 scale.
    Q5_0,
    /// 32 values of 5 bits, an f16 scale and an f16 minimum.
    Q5_1,
    /// 32 values of 8 bits, one f16 scale.
    Q8_0,
    /// 256 values of 2 bits in 16 sub-blocks with 4-bit scales and minimums.
    Q2K,
    /// 256 values of 3 bits in 16 sub-blocks with 6-bit scales.
    Q3K,
    /// 256 values of 4 bits in 8 sub-blocks with 6-bit scales and minimums.
    Q4K,
    /// 256 values of 5 bits in 8 sub-blocks with 6-bit scales and minimums.
    Q5K,
    /// 256 values of 6 bits in 16 sub-blocks with 8-bit scales.
    Q6K,
    /// 32 values of 4 bits, which choose from 16 uneven steps, one f16 scale.
    Iq4Nl,
    /// 256 values of 4 bits, which choose from 16 uneven steps, in 8 sub-blocks with 6-bit scales.
    Iq4Xs,
}

impl WeightKind {
    /// Values in one block.
    #[must_use]
    pub fn block_values(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Iq4Nl => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K | Self::Iq4Xs => 256,
        }
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q4_0 | Self::Iq4Nl => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Iq4Xs => 136,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes of so many values, in whole blocks.
    #[must_use]
    pub fn bytes_of(self, values: u64) -> u64 {
        values.div_ceil(self.block_values() as u64) * self.block_bytes() as u64
    }

    /// Whether values are stored in blocks with scales.
    #[must_use]
    pub fn is_quantized(self) -> bool {
        self.block_values() > 1
    }

    /// Bytes of one row of `columns` values; `None` if it does not consist of whole blocks.
    #[must_use]
    pub fn row_bytes(self, columns: usize) -> Option<usize> {
        let values = self.block_values();
        if columns.is_multiple_of(values) {
            (columns / values).checked_mul(self.block_bytes())
        } else {
            None
        }
    }
}

/// A matrix `[rows, columns]` in a file, row-major; `rows` are outputs (or vocabulary entries),
/// `columns` the inner dimension. A rank of a row-parallel layer sees a range of the columns only.
#[derive(Clone, Copy, Debug)]
pub struct WeightView<'a> {
    /// Name in the file, for messages.
    pub name: &'a str,
    /// How values are stored.
    pub kind: WeightKind,
    /// Outputs.
    pub rows: usize,
    /// Columns seen: the layer's inner width.
    pub columns: usize,
    /// Width of a stored row.
    pub stored_columns: usize,
    /// The first stored column that is seen; a multiple of 32 in quantized weights.
    pub first_column: usize,
    /// `rows * kind.row_bytes(stored_columns)` bytes.
    pub data: &'a [u8],
}

impl<'a> WeightView<'a> {
    /// A view of all columns.
    #[must_use]
    pub fn whole(
        name: &'a str,
        kind: WeightKind,
        rows: usize,
        columns: usize,
        data: &'a [u8],
    ) -> Self {
        Self { name, kind, rows, columns, stored_columns: columns, first_column: 0, data }
    }

    /// The same rows, of which only these stored columns are seen.
    #[must_use]
    pub fn with_columns(self, columns: Range<usize>) -> Self {
        Self { first_column: columns.start, columns: columns.len(), ..self }
    }

    /// A range of the rows.
    ///
    /// # Panics
    /// If the view has not so many rows.
    #[must_use]
    pub fn with_rows(self, rows: Range<usize>) -> Self {
        let row_bytes = self.data.len() / self.rows;
        let data = &self.data[rows.start * row_bytes..rows.end * row_bytes];
        Self { rows: rows.len(), data, ..self }
    }

    /// Bytes of one stored row.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.data.len() / self.rows
    }
}

/// How the sum along the inner dimension of a linear layer is cut.
///
/// A row-parallel layer's sum is taken over `segments` equal ranges of columns, each in float32 from
/// zero, and joined by a fixed binary tree of neighbours: `((s0 + s1) + (s2 + s3)) + ...`. The number
/// comes from the model's shape, never from the number of ranks, so that ranks cannot change a bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InnerSplit {
    /// A power of two that divides the inner width; 1 for layers that are not row-parallel.
    pub segments: usize,
}

impl InnerSplit {
    /// Not cut.
    pub const WHOLE: Self = Self { segments: 1 };

    /// The contract's number of segments for `units` indivisible units of columns: the largest power
    /// of two, at most 8, that divides them.
    #[must_use]
    pub fn of_units(units: usize) -> Self {
        let mut segments = 8;
        while segments > 1 && !units.is_multiple_of(segments) {
            segments /= 2;
        }
        Self { segments }
    }
}
