//! What linear layers and the cache compute with: the `--dtype` of a server.

use std::fmt;
use std::str::FromStr;

use oarlock_backend::WeightKind;

use crate::pack::QuantFormat;

/// The numbers that a linear layer's inputs and weights are rounded to, and what the cache holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dtype {
    /// Quantized weights as they are, or of rarer kinds as Q8_0, with int8 activations; all others with bfloat16
    /// ones. The cache is f16.
    #[default]
    Auto,
    /// Weights and inputs of all linear layers in bfloat16. The cache is f16.
    Bfloat16,
    /// Everything in float32, the cache too.
    Float32,
}

impl Dtype {
    /// What a linear layer that is stored as `kind` takes the memory of once it is packed.
    #[must_use]
    pub fn packed_kind(self, kind: WeightKind) -> WeightKind {
        match self {
            Self::Auto if QuantFormat::of(kind).is_some() => kind,
            Self::Auto if kind.is_quantized() => WeightKind::Q8_0,
            Self::Auto | Self::Bfloat16 => WeightKind::Bf16,
            Self::Float32 => WeightKind::F32,
        }
    }

    /// Bytes of one key or value element in the cache.
    #[must_use]
    pub fn kv_element_bytes(self) -> usize {
        match self {
            Self::Auto | Self::Bfloat16 => 2,
            Self::Float32 => 4,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Bfloat16 => "bfloat16",
            Self::Float32 => "float32",
        })
    }
}

impl FromStr for Dtype {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let all = [Self::Auto, Self::Bfloat16, Self::Float32];
        let found = all.into_iter().find(|dtype| dtype.to_string() == name);
        found.ok_or_else(|| "auto, bfloat16 and float32 are possible".to_owned())
    }
}
