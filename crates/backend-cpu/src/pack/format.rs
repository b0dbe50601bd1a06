//! The packed formats of quantized weights: what a kernel must know of each, at compile time.

use oarlock_backend::WeightKind;

/// Which packed format a part has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QuantFormat {
    Q4_0,
    Q5_0,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl QuantFormat {
    /// `None` for floats, and for kinds that no kernel multiplies with: those are rounded to Q8_0.
    pub(crate) fn of(kind: WeightKind) -> Option<Self> {
        match kind {
            WeightKind::Q4_0 => Some(Self::Q4_0),
            WeightKind::Q5_0 => Some(Self::Q5_0),
            WeightKind::Q8_0 => Some(Self::Q8_0),
            WeightKind::Q4K => Some(Self::Q4K),
            WeightKind::Q5K => Some(Self::Q5K),
            WeightKind::Q6K => Some(Self::Q6K),
            _ => None,
        }
    }
}

/// A packed format. Per block of 32 columns and tile of 16 outputs there are [`Self::QUANT_BYTES`]
/// of quants and [`Self::SCALE_BYTES`] of scales; per super-block of 256 columns
/// [`Self::SUPER_BYTES`] of super scales.
///
/// Quants: columns go in 8 groups of 4. Group `g`, output `o`, column `4 g + i` of the block has its
/// low 4 bits in byte `(g % 4) * 64 + 4 o + i`, in the low nibble for g < 4. A fifth bit is bit `g` of
/// byte `256 + 4 o + i`; two high bits are bits `2 (g % 4)..` of byte `256 + g / 4 * 64 + 4 o + i`.
/// 8-bit quants take byte `64 g + 4 o + i`.
///
/// Scales: 16 f16, or (K kinds) 16 bytes of scales, then 16 of minimums or of the second halves'
/// scales. Super scales: 16 f16, then, for kinds with a minimum, 16 f16 more.
pub(crate) trait Format {
    /// How a file stores it.
    const KIND: WeightKind;
    /// Bits of one quant: also words of a block and an output in a tile.
    const BITS: usize;
    /// log2 of what is subtracted from each quant; `None` for nothing.
    const OFFSET_SHIFT: Option<u32>;
    /// Integer sub-block scales and minimums.
    const MINIMUM: bool;
    /// Integer scales per half block.
    const HALVES: bool;
    const QUANT_BYTES: usize = super::TILE * super::BLOCK * Self::BITS / 8;
    const SCALE_BYTES: usize = 32;
    const SUPER_BYTES: usize = if Self::MINIMUM {
        64
    } else if Self::HALVES {
        32
    } else {
        0
    };
}

macro_rules! formats {
    ($($name:ident: $bits:literal, $offset:expr, $minimum:literal, $halves:literal;)*) => {
        $(
            /// Marker of the format.
            pub(crate) struct $name;

            impl Format for $name {
                const KIND: WeightKind = WeightKind::$name;
                const BITS: usize = $bits;
                const OFFSET_SHIFT: Option<u32> = $offset;
                const MINIMUM: bool = $minimum;
                const HALVES: bool = $halves;
            }
        )*
    };
}

formats! {
    Q4_0: 4, Some(3), false, false;
    Q5_0: 5, Some(4), false, false;
    Q8_0: 8, Some(7), false, false;
    Q4K: 4, None, true, false;
    Q5K: 5, None, true, false;
    Q6K: 6, Some(5), false, true;
}

/// Calls `$body` with `$marker` as the format's type.
macro_rules! with_format {
    ($format:expr, $marker:ident => $body:expr) => {
        match $format {
            $crate::pack::QuantFormat::Q4_0 => {
                type $marker = $crate::pack::Q4_0;
                $body
            }
            $crate::pack::QuantFormat::Q5_0 => {
                type $marker = $crate::pack::Q5_0;
                $body
            }
            $crate::pack::QuantFormat::Q8_0 => {
                type $marker = $crate::pack::Q8_0;
                $body
            }
            $crate::pack::QuantFormat::Q4K => {
                type $marker = $crate::pack::Q4K;
                $body
            }
            $crate::pack::QuantFormat::Q5K => {
                type $marker = $crate::pack::Q5K;
                $body
            }
            $crate::pack::QuantFormat::Q6K => {
                type $marker = $crate::pack::Q6K;
                $body
            }
        }
    };
}
pub(crate) use with_format;
