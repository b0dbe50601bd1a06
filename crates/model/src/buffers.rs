//! What a model computes for itself rather than load: frequencies of rotary embeddings, the scale of Gemma's
//! embeddings. Frameworks call them buffers.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};

/// What buffers are rounded to before they are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BufferType {
    /// As models are run: not at all.
    #[default]
    Float32,
    /// As a model has them that was cast as a whole (`model.to(torch.bfloat16)`), buffers included. Angles
    /// at far positions are other ones then; for comparing with what such a model gave.
    Bfloat16,
    /// The same of `model.half()`.
    Float16,
    /// The type that the checkpoint says it is stored in (`dtype` or `torch_dtype` of `config.json`); float32
    /// where it says none.
    Stored,
}

impl BufferType {
    /// A value of this type.
    pub(crate) fn round(self, value: f32) -> f32 {
        match self {
            Self::Float32 | Self::Stored => value,
            Self::Bfloat16 => bf16::from_f32(value).to_f32(),
            Self::Float16 => f16::from_f32(value).to_f32(),
        }
    }
}

impl fmt::Display for BufferType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
            Self::Float16 => "float16",
            Self::Stored => "stored",
        })
    }
}

impl FromStr for BufferType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let all = [Self::Float32, Self::Bfloat16, Self::Float16, Self::Stored];
        let found = all.into_iter().find(|one| one.to_string() == name);
        found.ok_or_else(|| "float32, bfloat16, float16 and stored are possible".to_owned())
    }
}
