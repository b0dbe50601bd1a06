//! What linear layers and the cache compute with: the `--dtype` of a server.

use std::fmt;
use std::str::FromStr;

use oarlock_backend::WeightKind;

/// The numbers that a linear layer's inputs and weights are rounded to, and what the cache holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dtype {
    /// Quantized weights as they are, with int8 activations; all others with bfloat16 ones. The cache
    /// is f16.
    #[default]
    Auto,
    /// Weights and inputs of all linear layers in bfloat16. The cache is f16.
    Bfloat16,
    /// Everything in float32, the cache too.
    Float32,
}

impl Dtype {
    /// Bits of one packed value of a linear layer that is stored as `kind`; `None` where blocks keep the
    /// size that they are stored in, or nearly.
    #[must_use]
    pub fn packed_bits(self, kind: WeightKind) -> Option<u64> {
        match self {
            Self::Auto if kind.is_quantized() => None,
            Self::Auto | Self::Bfloat16 => Some(16),
            Self::Float32 => Some(32),
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
