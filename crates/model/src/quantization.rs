//! Quantizing floats while they are loaded.

use std::fmt;
use std::str::FromStr;

use oarlock_backend::quant::{QuantizedWeight, quantize};
use oarlock_backend::{WeightKind, WeightView};

use crate::ModelError;

/// What linear layers stored as floats are packed as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quantization {
    /// As they are stored.
    #[default]
    None,
    /// 8 bits, one scale for 32.
    Q8_0,
    /// 4 bits, one scale for 32; the output layer has 8, whose rounding every logit would show.
    Q4_0,
}

/// Columns that share a scale.
const BLOCK: usize = 32;

impl Quantization {
    /// What a linear layer is packed as that is stored as `kind` with so many columns. One whose inner width is
    /// no multiple of 32 stays as it is, and so does one that is quantized already.
    pub(crate) fn packed(self, kind: WeightKind, columns: usize, is_output: bool) -> WeightKind {
        if kind.is_quantized() || !columns.is_multiple_of(BLOCK) {
            return kind;
        }
        match self {
            Self::None => kind,
            Self::Q4_0 if !is_output => WeightKind::Q4_0,
            Self::Q8_0 | Self::Q4_0 => WeightKind::Q8_0,
        }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        })
    }
}

impl FromStr for Quantization {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let all = [Self::None, Self::Q8_0, Self::Q4_0];
        let found = all.into_iter().find(|one| one.to_string() == name);
        found.ok_or_else(|| "none, q8_0 and q4_0 are possible".to_owned())
    }
}

/// The parts of a layer that were quantized; `None` for one that stays.
pub(crate) struct Quantized(Vec<Option<QuantizedWeight>>);

impl Quantized {
    /// Quantizes the parts whose kind is to be another one.
    pub(crate) fn new(
        views: &[WeightView<'_>],
        kinds: impl Iterator<Item = WeightKind>,
    ) -> Result<Self, ModelError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let one = |(view, kind): (&WeightView<'_>, WeightKind)| {
            if view.kind == kind {
                return Ok(None);
            }
            let quantized = quantize(view, kind, threads);
            quantized.map(Some).map_err(|error| ModelError::tensor(view.name, error.to_string()))
        };
        Ok(Self(views.iter().zip(kinds).map(one).collect::<Result<_, _>>()?))
    }

    /// What is packed.
    pub(crate) fn views<'v>(&'v self, stored: &[WeightView<'v>]) -> Vec<WeightView<'v>> {
        let pairs = stored.iter().zip(&self.0);
        pairs.map(|(view, own)| own.as_ref().map_or(*view, QuantizedWeight::view)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_floats_in_whole_blocks_are_quantized() {
        use WeightKind::{Bf16, F16, Q4_0, Q4K, Q8_0};
        let packed = |quantization: Quantization, kind, columns| {
            [false, true].map(|is_output| quantization.packed(kind, columns, is_output))
        };
        assert_eq!(packed(Quantization::None, Bf16, 64), [Bf16, Bf16]);
        assert_eq!(packed(Quantization::Q8_0, F16, 64), [Q8_0, Q8_0]);
        assert_eq!(packed(Quantization::Q4_0, Bf16, 64), [Q4_0, Q8_0]);
        assert_eq!(packed(Quantization::Q4_0, Bf16, 48), [Bf16, Bf16]);
        assert_eq!(packed(Quantization::Q8_0, Q4K, 256), [Q4K, Q4K]);
    }
}
