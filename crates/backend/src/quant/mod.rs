//! The stored kinds of weights: GGML's block layouts (as `ggml-common.h` and `ggml-quants.c` define
//! them), decoded to float32 or, for packers, to sub-blocks of 32 quants.

#![expect(
    clippy::inline_always,
    reason = "packers decode and round blocks in functions that are compiled for newer instructions"
)]

mod encode;
mod quantize;
mod sub_block;

pub use encode::{SplitMix, encode_row, random_row};
pub use quantize::{QuantizeError, QuantizedWeight, quantize, quantize_rows};
pub use sub_block::{SUB_BLOCK, SubBlock, sub_block};

use half::{bf16, f16};
use thiserror::Error;

use crate::WeightKind;

/// A row that cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum QuantError {
    /// The width is no multiple of the kind's block.
    #[error("{columns} columns are not whole blocks of {block}")]
    PartialBlock {
        /// Width of the row.
        columns: usize,
        /// Values in one block.
        block: usize,
    },
    /// The bytes are too few or too many.
    #[error("a row has {bytes} bytes where {expected} were expected")]
    WrongLength {
        /// Bytes given.
        bytes: usize,
        /// Bytes of a row of this kind and width.
        expected: usize,
    },
}

/// Decodes one row of `out.len()` values.
pub fn dequantize_row(kind: WeightKind, bytes: &[u8], out: &mut [f32]) -> Result<(), QuantError> {
    let columns = out.len();
    let block = kind.block_values();
    let expected = kind.row_bytes(columns).ok_or(QuantError::PartialBlock { columns, block })?;
    if bytes.len() != expected {
        return Err(QuantError::WrongLength { bytes: bytes.len(), expected });
    }
    match kind {
        WeightKind::F32 => {
            for (value, raw) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*raw);
            }
        }
        WeightKind::F16 => {
            for (value, raw) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = f16::from_le_bytes(*raw).to_f32();
            }
        }
        WeightKind::Bf16 => {
            for (value, raw) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = bf16::from_le_bytes(*raw).to_f32();
            }
        }
        _ => {
            for (index, values) in out.chunks_exact_mut(SUB_BLOCK).enumerate() {
                dequantize_sub_block(kind, &sub_block(kind, bytes, index), values);
            }
        }
    }
    Ok(())
}

/// Values with a scale and a minimum of their own.
const HALF: usize = SUB_BLOCK / 2;

/// `d * scale * (q - offset) - dmin * minimum`, in halves.
#[inline(always)]
fn dequantize_sub_block(kind: WeightKind, block: &SubBlock, out: &mut [f32]) {
    let d = f16::from_bits(block.scale).to_f32();
    let dmin = f16::from_bits(block.minimum_scale).to_f32();
    let offset = i16::from(kind.quant_offset());
    let halves = out.chunks_exact_mut(HALF).zip(block.quants.chunks_exact(HALF));
    for (half, (values, quants)) in halves.enumerate() {
        let scale = d * f32::from(block.sub_scales[half]);
        let minimum = dmin * f32::from(block.minimums[half]);
        for (value, &quant) in values.iter_mut().zip(quants) {
            *value = scale * f32::from(i16::from(quant) - offset) - minimum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUANTIZED: [WeightKind; 12] = [
        WeightKind::Q4_0,
        WeightKind::Q4_1,
        WeightKind::Q5_0,
        WeightKind::Q5_1,
        WeightKind::Q8_0,
        WeightKind::Q2K,
        WeightKind::Q3K,
        WeightKind::Q4K,
        WeightKind::Q5K,
        WeightKind::Q6K,
        WeightKind::Iq4Nl,
        WeightKind::Iq4Xs,
    ];

    #[test]
    fn lengths_are_checked() {
        let mut out = [0.0; 48];
        let error = dequantize_row(WeightKind::Q4_0, &[0; 27], &mut out);
        assert_eq!(error, Err(QuantError::PartialBlock { columns: 48, block: 32 }));
        let error = dequantize_row(WeightKind::Q8_0, &[0; 35], &mut out[..32]);
        assert_eq!(error, Err(QuantError::WrongLength { bytes: 35, expected: 34 }));
    }

    #[test]
    fn known_blocks() {
        let one = f16::ONE.to_le_bytes();
        // Q4_0: byte j holds value j low and value j + 16 high, minus 8.
        let mut row = one.to_vec();
        row.extend((0..16).map(|j| j | (15 - j) << 4));
        let mut out = [0.0; 32];
        dequantize_row(WeightKind::Q4_0, &row, &mut out).unwrap();
        assert_eq!((out[0], out[3], out[16], out[31]), (-8.0, -5.0, 7.0, -8.0));
        // Q5_0: bit 4 of value j is bit j of qh.
        let mut row = one.to_vec();
        row.extend((1_u32 << 0 | 1 << 17).to_le_bytes());
        row.extend([0x21; 16]);
        dequantize_row(WeightKind::Q5_0, &row, &mut out).unwrap();
        assert_eq!((out[0], out[1], out[16], out[17]), (1.0, -15.0, -14.0, 2.0));
        // Q8_0: signed bytes.
        let mut row = f16::from_f32(0.5).to_le_bytes().to_vec();
        row.extend((0..32_i8).map(|i| (i - 16).cast_unsigned()));
        dequantize_row(WeightKind::Q8_0, &row, &mut out).unwrap();
        assert_eq!((out[0], out[31]), (-8.0, 7.5));
    }

    #[test]
    fn known_super_blocks() {
        // Q4_K with scale 1 and minimum 2 in sub-block 0, scale 0x21 and minimum 0x12 in sub-block 4.
        let mut row = vec![0; 144];
        row[..2].copy_from_slice(&f16::ONE.to_le_bytes());
        row[2..4].copy_from_slice(&f16::ONE.to_le_bytes());
        row[4] = 1 | 2 << 6;
        row[8] = 2 | 1 << 6;
        row[12] = 0x1 | 0x2 << 4;
        row[16] = 0x43;
        row[16 + 64] = 0x05;
        let mut out = [0.0; 256];
        dequantize_row(WeightKind::Q4K, &row, &mut out).unwrap();
        assert_eq!((out[0], out[1]), (1.0, -2.0));
        assert_eq!((out[128], out[129]), (f32::from(0x21_u8) * 5.0 - 18.0, -18.0));
        // Q6_K: value 33 of the first half has its low bits in ql[33], its high bits in qh[1] >> 2.
        let mut row = vec![0; 210];
        row[33] = 0x05;
        row[128 + 1] = 0b10 << 2;
        row[192..208].fill(3);
        row[208..].copy_from_slice(&f16::ONE.to_le_bytes());
        dequantize_row(WeightKind::Q6K, &row, &mut out).unwrap();
        assert_eq!((out[33], out[32]), (15.0, -96.0));
    }

    #[test]
    fn encoding_is_close() {
        let values: Vec<f32> =
            (0..512).map(|i| ((i * 37 % 101) as f32 / 50.0 - 1.0) * 0.1).collect();
        for (kind, tolerance) in
            [(WeightKind::Q4_0, 0.008), (WeightKind::Q5_0, 0.004), (WeightKind::Q8_0, 0.0005)]
        {
            let bytes = encode_row(kind, &values).unwrap();
            let mut out = vec![0.0; 512];
            dequantize_row(kind, &bytes, &mut out).unwrap();
            for (a, b) in values.iter().zip(&out) {
                assert!((a - b).abs() < tolerance, "{kind:?}: {a} {b}");
            }
        }
    }

    #[test]
    fn random_rows_are_sane() {
        for kind in QUANTIZED {
            let bytes = random_row(kind, 768, 0.05, 7);
            let mut out = vec![0.0; 768];
            dequantize_row(kind, &bytes, &mut out).unwrap();
            let power = out.iter().map(|v| v * v).sum::<f32>() / 768.0;
            assert!((0.005..0.2).contains(&power.sqrt()), "{kind:?}: {}", power.sqrt());
        }
    }
}
