//! Packed weights: tiles of 16 outputs, ordered for the kernels.

mod bf16;
mod chunk;
mod f32;
mod float_rows;
mod format;
mod order;
mod quantized;
#[cfg(test)]
mod tests;

pub(crate) use self::f32::F32Part;
pub(crate) use bf16::{Bf16Part, round_to_bf16};
pub(crate) use format::{Format, Q4_0, Q4K, Q5_0, Q5K, Q6K, Q8_0, QuantFormat, with_format};
pub(crate) use quantized::{QuantPart, QuantTile};

use oarlock_backend::oracle::check_parts;
use oarlock_backend::{BackendError, InnerSplit, WeightKind, WeightView};

use crate::dtype::Dtype;
use crate::isa::Isa;
use crate::threads::ThreadPool;

/// Outputs of one tile: the lanes of a vector.
pub(crate) const TILE: usize = 16;
/// Columns of one block: one activation scale, one float32 FMA.
pub(crate) const BLOCK: usize = 32;

/// A packed linear layer.
#[derive(Debug)]
pub struct CpuWeight {
    /// Parts with consecutive outputs.
    pub(crate) parts: Vec<PackedPart>,
    /// Inner width.
    pub(crate) columns: usize,
    /// Outputs of all parts.
    pub(crate) outputs: usize,
    /// Ranges that the inner sum is cut into.
    pub(crate) segments: usize,
}

/// Outputs of one kind.
#[derive(Debug)]
pub(crate) struct PackedPart {
    /// Index of the first output in the layer.
    pub(crate) first_output: usize,
    /// Number of outputs.
    pub(crate) outputs: usize,
    pub(crate) values: PartValues,
}

/// How a part is multiplied.
#[derive(Debug)]
pub(crate) enum PartValues {
    /// With int8 activations.
    Quantized(QuantPart),
    /// With bfloat16 activations.
    Bf16(Bf16Part),
    /// With float32 activations.
    F32(F32Part),
}

impl CpuWeight {
    /// Packs parts on all threads.
    pub(crate) fn pack(
        parts: &[WeightView<'_>],
        split: InnerSplit,
        dtype: Dtype,
        isa: Isa,
        pool: &mut ThreadPool,
    ) -> Result<Self, BackendError> {
        let columns = check_parts(parts, split)?;
        let mut packed = Vec::with_capacity(parts.len());
        let mut outputs = 0;
        for part in parts {
            let values = match (dtype.packed_kind(part.kind), QuantFormat::of(part.kind)) {
                (WeightKind::F32, _) => PartValues::F32(F32Part::pack(part, isa, pool)?),
                (WeightKind::Bf16, _) => {
                    PartValues::Bf16(Bf16Part::pack(part, split.segments, isa, pool)?)
                }
                (_, Some(format)) => {
                    PartValues::Quantized(QuantPart::pack(part, format, isa, pool)?)
                }
                (_, None) => PartValues::Quantized(QuantPart::pack_as_q8_0(part, isa, pool)?),
            };
            packed.push(PackedPart { first_output: outputs, outputs: part.rows, values });
            outputs += part.rows;
        }
        Ok(Self { parts: packed, columns, outputs, segments: split.segments })
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        let part_bytes = |part: &PackedPart| match &part.values {
            PartValues::Quantized(part) => part.bytes(),
            PartValues::Bf16(part) => part.bytes(),
            PartValues::F32(part) => part.bytes(),
        };
        self.parts.iter().map(part_bytes).sum()
    }

    /// Tiles of all parts.
    pub(crate) fn tiles(&self) -> usize {
        self.parts.iter().map(|part| part.outputs.div_ceil(TILE)).sum()
    }

    /// Whether some part takes float32 activations.
    pub(crate) fn has_float32(&self) -> bool {
        self.parts.iter().any(|part| matches!(part.values, PartValues::F32(_)))
    }

    /// Whether some part takes int8, and whether some part takes bfloat16 activations.
    pub(crate) fn takes(&self) -> (bool, bool) {
        let is_int8 = |part: &PackedPart| matches!(part.values, PartValues::Quantized(_));
        let is_bf16 = |part: &PackedPart| matches!(part.values, PartValues::Bf16(_));
        (self.parts.iter().any(is_int8), self.parts.iter().any(is_bf16))
    }
}
