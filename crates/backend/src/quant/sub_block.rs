//! One sub-block of 32 quants of any quantized kind, as integers: what packers reorder.

use crate::WeightKind;

/// Values in one sub-block.
pub const SUB_BLOCK: usize = 32;

/// 32 consecutive values of a row:
/// `d * sub_scales[i / 16] * (quants[i] - offset) - dmin * minimums[i / 16]`, with the kind's
/// [`WeightKind::quant_offset`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubBlock {
    /// Unsigned quants in order.
    pub quants: [u8; SUB_BLOCK],
    /// Integer scales of the two halves; 1 where the kind has none.
    pub sub_scales: [i8; 2],
    /// Integer minimums of the two halves; 0 where the kind has none.
    pub minimums: [u8; 2],
    /// `d`, as bits of an f16.
    pub scale: u16,
    /// `dmin`, as bits of an f16; 0 where the kind has none.
    pub minimum_scale: u16,
}

impl WeightKind {
    /// What is subtracted from an unsigned quant; 0 for kinds with a minimum and for floats.
    #[must_use]
    pub fn quant_offset(self) -> u8 {
        match self {
            Self::Q3K => 4,
            Self::Q4_0 => 8,
            Self::Q5_0 => 16,
            Self::Q6K => 32,
            Self::Q8_0 | Self::Iq4Nl | Self::Iq4Xs => 128,
            Self::F32
            | Self::F16
            | Self::Bf16
            | Self::Q4_1
            | Self::Q5_1
            | Self::Q2K
            | Self::Q4K
            | Self::Q5K => 0,
        }
    }
}

/// Sub-block `index` of a row.
///
/// # Panics
/// If the row is shorter, or the kind is not quantized.
#[inline(always)]
#[must_use]
pub fn sub_block(kind: WeightKind, row: &[u8], index: usize) -> SubBlock {
    let per_block = kind.block_values() / SUB_BLOCK;
    let bytes = kind.block_bytes();
    let block = &row[index / per_block * bytes..][..bytes];
    let sub = index % per_block;
    match kind {
        WeightKind::Q4_0 => q4_0(block),
        WeightKind::Q4_1 => q4_1(block),
        WeightKind::Q5_0 => q5_0(block),
        WeightKind::Q5_1 => q5_1(block),
        WeightKind::Q8_0 => q8_0(block),
        WeightKind::Q2K => q2_k(block, sub),
        WeightKind::Q3K => q3_k(block, sub),
        WeightKind::Q4K => q4_k(block, sub),
        WeightKind::Q5K => q5_k(block, sub),
        WeightKind::Q6K => q6_k(block, sub),
        WeightKind::Iq4Nl => iq4_nl(block),
        WeightKind::Iq4Xs => iq4_xs(block, sub),
        WeightKind::F32 | WeightKind::F16 | WeightKind::Bf16 => {
            panic!("{kind:?} has no sub-blocks")
        }
    }
}

#[inline(always)]
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// A block with one scale and no minimum.
#[inline(always)]
fn plain(scale: u16, quants: [u8; SUB_BLOCK]) -> SubBlock {
    SubBlock { quants, sub_scales: [1, 1], minimums: [0, 0], scale, minimum_scale: 0 }
}

/// 16 bytes to 32 nibbles: low ones first.
#[inline(always)]
fn nibbles(bytes: &[u8]) -> [u8; SUB_BLOCK] {
    let mut quants = [0; SUB_BLOCK];
    let (low, high) = quants.split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(&bytes[..16]) {
        *low = byte & 15;
        *high = byte >> 4;
    }
    quants
}

/// d, qs[16].
#[inline(always)]
fn q4_0(block: &[u8]) -> SubBlock {
    plain(u16_at(block, 0), nibbles(&block[2..18]))
}

/// A block with one scale, and one minimum that is added.
#[inline(always)]
fn with_minimum(block: &[u8], quants: [u8; SUB_BLOCK]) -> SubBlock {
    const SIGN: u16 = 0x8000;
    let minimum_scale = u16_at(block, 2) ^ SIGN;
    SubBlock { minimums: [1, 1], minimum_scale, ..plain(u16_at(block, 0), quants) }
}

/// d, m, qs[16].
#[inline(always)]
fn q4_1(block: &[u8]) -> SubBlock {
    with_minimum(block, nibbles(&block[4..20]))
}

/// qh (32 bits), qs[16].
#[inline(always)]
fn five_bits(bytes: &[u8]) -> [u8; SUB_BLOCK] {
    let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let mut quants = nibbles(&bytes[4..20]);
    for (i, quant) in quants.iter_mut().enumerate() {
        *quant |= ((high >> i) as u8 & 1) << 4;
    }
    quants
}

/// d, qh, qs.
#[inline(always)]
fn q5_0(block: &[u8]) -> SubBlock {
    plain(u16_at(block, 0), five_bits(&block[2..22]))
}

/// d, m, qh, qs.
#[inline(always)]
fn q5_1(block: &[u8]) -> SubBlock {
    with_minimum(block, five_bits(&block[4..24]))
}

/// d, qs[32] signed; made unsigned by adding 128.
#[inline(always)]
fn q8_0(block: &[u8]) -> SubBlock {
    let mut quants = [0; SUB_BLOCK];
    for (quant, byte) in quants.iter_mut().zip(&block[2..34]) {
        *quant = byte ^ 0x80;
    }
    plain(u16_at(block, 0), quants)
}

/// 2 bits of each of 32 values: each half of 128 values has 32 bytes, each quarter of it two of their bits.
#[inline(always)]
fn two_bits(bytes: &[u8], sub: usize) -> [u8; SUB_BLOCK] {
    let mut quants = [0; SUB_BLOCK];
    for (quant, byte) in quants.iter_mut().zip(&bytes[sub / 4 * 32..][..32]) {
        *quant = byte >> (sub % 4 * 2) & 3;
    }
    quants
}

/// scales[16] (low nibbles, minimums in the high ones), qs[64], d, dmin.
#[inline(always)]
fn q2_k(block: &[u8], sub: usize) -> SubBlock {
    let scales = [block[2 * sub], block[2 * sub + 1]];
    SubBlock {
        quants: two_bits(&block[16..80], sub),
        sub_scales: scales.map(|byte| (byte & 15).cast_signed()),
        minimums: scales.map(|byte| byte >> 4),
        scale: u16_at(block, 80),
        minimum_scale: u16_at(block, 82),
    }
}

/// hmask[32], qs[64], scales[12], d; bit `sub` of hmask[i] is bit 2 of value i. Of the 16 scales, less 32 each,
/// the first 8 bytes have the low nibbles and the last 4 the high two bits.
#[inline(always)]
fn q3_k(block: &[u8], sub: usize) -> SubBlock {
    let mut quants = two_bits(&block[32..96], sub);
    for (quant, byte) in quants.iter_mut().zip(&block[..32]) {
        *quant |= (byte >> sub & 1) << 2;
    }
    let scales = &block[96..108];
    let scale = |index: usize| {
        let low = scales[index % 8] >> (index / 8 * 4) & 15;
        let high = scales[8 + index % 4] >> (index / 4 * 2) & 3;
        (low | high << 4).cast_signed() - 32
    };
    SubBlock {
        sub_scales: [scale(2 * sub), scale(2 * sub + 1)],
        ..plain(u16_at(block, 108), quants)
    }
}

/// 6-bit scale and minimum of a sub-block out of 12 bytes (`get_scale_min_k4`).
#[inline(always)]
fn scale_and_minimum(scales: &[u8], sub: usize) -> (u8, u8) {
    if sub < 4 {
        (scales[sub] & 63, scales[sub + 4] & 63)
    } else {
        let high_bits = |byte: u8| byte >> 6 << 4;
        (
            scales[sub + 4] & 15 | high_bits(scales[sub - 4]),
            scales[sub + 4] >> 4 | high_bits(scales[sub]),
        )
    }
}

/// 32 bytes per 64 values: low nibbles are the first 32 values.
#[inline(always)]
fn k_nibbles(bytes: &[u8], sub: usize) -> [u8; SUB_BLOCK] {
    let shift = sub % 2 * 4;
    let mut quants = [0; SUB_BLOCK];
    for (quant, byte) in quants.iter_mut().zip(&bytes[sub / 2 * 32..][..32]) {
        *quant = byte >> shift & 15;
    }
    quants
}

/// d, dmin, scales[12], qs[128].
#[inline(always)]
fn q4_k(block: &[u8], sub: usize) -> SubBlock {
    let (scale, minimum) = scale_and_minimum(&block[4..16], sub);
    SubBlock {
        quants: k_nibbles(&block[16..144], sub),
        sub_scales: [scale.cast_signed(); 2],
        minimums: [minimum; 2],
        scale: u16_at(block, 0),
        minimum_scale: u16_at(block, 2),
    }
}

/// d, dmin, scales[12], qh[32], qs[128]; bit `sub` of qh[i] is bit 4 of value i.
#[inline(always)]
fn q5_k(block: &[u8], sub: usize) -> SubBlock {
    let (scale, minimum) = scale_and_minimum(&block[4..16], sub);
    let mut quants = k_nibbles(&block[48..176], sub);
    for (quant, byte) in quants.iter_mut().zip(&block[16..48]) {
        *quant |= (byte >> sub & 1) << 4;
    }
    SubBlock {
        quants,
        sub_scales: [scale.cast_signed(); 2],
        minimums: [minimum; 2],
        scale: u16_at(block, 0),
        minimum_scale: u16_at(block, 2),
    }
}

/// ql[128], qh[64], scales[16] signed, d. Each half of 128 values has 64 bytes of ql and 32 of qh.
#[inline(always)]
fn q6_k(block: &[u8], sub: usize) -> SubBlock {
    let (half, quarter) = (sub / 4, sub % 4);
    let low = &block[half * 64 + quarter % 2 * 32..][..32];
    let high = &block[128 + half * 32..][..32];
    let low_shift = quarter / 2 * 4;
    let mut quants = [0; SUB_BLOCK];
    for ((quant, low), high) in quants.iter_mut().zip(low).zip(high) {
        *quant = low >> low_shift & 15 | (high >> (quarter * 2) & 3) << 4;
    }
    let scales = &block[192..208];
    SubBlock {
        quants,
        sub_scales: [scales[2 * sub].cast_signed(), scales[2 * sub + 1].cast_signed()],
        minimums: [0, 0],
        scale: u16_at(block, 208),
        minimum_scale: 0,
    }
}

/// The steps that the quants of the IQ4 kinds choose from (`kvalues_iq4nl`).
const UNEVEN: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The steps that 16 bytes of nibbles choose, made unsigned by adding 128.
#[inline(always)]
fn uneven(bytes: &[u8]) -> [u8; SUB_BLOCK] {
    nibbles(bytes).map(|nibble| UNEVEN[usize::from(nibble)].cast_unsigned() ^ 0x80)
}

/// d, qs[16].
#[inline(always)]
fn iq4_nl(block: &[u8]) -> SubBlock {
    plain(u16_at(block, 0), uneven(&block[2..18]))
}

/// d, the high two bits of 8 scales, the low nibbles of them, qs[128]; scales are less 32 each.
#[inline(always)]
fn iq4_xs(block: &[u8], sub: usize) -> SubBlock {
    let low = block[4 + sub / 2] >> (sub % 2 * 4) & 15;
    let high = (u16_at(block, 2) >> (2 * sub)) as u8 & 3;
    let scale = (low | high << 4).cast_signed() - 32;
    let quants = uneven(&block[8 + 16 * sub..][..16]);
    SubBlock { sub_scales: [scale; 2], ..plain(u16_at(block, 0), quants) }
}
