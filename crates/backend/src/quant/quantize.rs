//! Rounds weights, floats or other blocks, to GGML's blocks of 32 while a model loads.

use std::sync::Mutex;

use half::f16;
use half::slice::HalfFloatSliceExt as _;
use thiserror::Error;

use super::{SUB_BLOCK, dequantize_sub_block, sub_block};
use crate::{WeightKind, WeightView};

/// Bytes of the result that a thread makes at a time.
const PIECE_BYTES: usize = 1 << 18;

/// Why a weight cannot be rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum QuantizeError {
    /// Not a kind that weights are rounded to.
    #[error("weights are not rounded to {0:?} here; Q8_0 and Q4_0 are possible")]
    Target(WeightKind),
    /// The inner width is no multiple of 32.
    #[error("{0} columns are not whole blocks of 32")]
    PartialBlock(usize),
    /// The view's bytes are not those of its rows.
    #[error("{bytes} bytes are not {rows} rows of {columns} values that hold the columns seen")]
    Shape {
        /// Bytes of the view.
        bytes: usize,
        /// Its rows.
        rows: usize,
        /// Its stored columns.
        columns: usize,
    },
}

/// A rounded weight that owns its blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuantizedWeight {
    name: String,
    kind: WeightKind,
    rows: usize,
    columns: usize,
    data: Vec<u8>,
}

impl QuantizedWeight {
    /// What a backend packs: all columns of the rounded weight, under the name of what it was made of.
    #[must_use]
    pub fn view(&self) -> WeightView<'_> {
        WeightView::whole(&self.name, self.kind, self.rows, self.columns, &self.data)
    }
}

/// Rounds the columns that a view sees to `kind`, Q8_0 or Q4_0, on so many threads. The result does not depend on
/// their number. What is stored in other blocks is decoded first, and loses a second time: a backend does that to
/// kinds that it has no kernel for.
///
/// Each block of 32 columns has one f16 scale `d`. Q8_0: `d = amax / 127`, quants are the nearest integers of
/// `x / d`. Q4_0, as GGML does it: `d = extreme / -8` for the value of greatest magnitude, of equal ones the
/// first, so that it is kept; quants are the nearest of -8 to 7, and what lies on the other side of zero and
/// beyond 7.5 `d` becomes 7 `d`. Values are divided by the scale as it is stored, so that its rounding costs
/// nothing; where it would make quants too small for their values, which subnormal scales do, it is rounded up.
///
/// A block with a NaN or an infinity, or with values too large for an f16 scale, gets NaN for its scale: all of
/// it decodes to NaN, and a damaged weight is not hidden.
pub fn quantize(
    view: &WeightView<'_>,
    kind: WeightKind,
    threads: usize,
) -> Result<QuantizedWeight, QuantizeError> {
    let row_bytes = check(view, kind)?;
    let mut data = vec![0; row_bytes * view.rows];
    if data.is_empty() {
        return Ok(owned(view, kind, data));
    }
    let rows_per_piece = (PIECE_BYTES / row_bytes).max(1);
    // Whoever is free takes the next rows: on a shared machine a thread may lose its core.
    let pieces = Mutex::new(data.chunks_mut(rows_per_piece * row_bytes).enumerate());
    let work = || {
        let next = || pieces.lock().expect("nobody panics with the lock").next();
        while let Some((piece, out)) = next() {
            quantize_rows(view, kind, piece * rows_per_piece, out).expect("checked above");
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    Ok(owned(view, kind, data))
}

/// As [`quantize`], of rows from `first_row` on, as many as `out` has room for. Inlined, so that it is compiled for
/// the instructions that its caller is compiled for; they change no bit.
///
/// # Panics
/// If the view has not so many rows.
#[inline(always)]
pub fn quantize_rows(
    view: &WeightView<'_>,
    kind: WeightKind,
    first_row: usize,
    out: &mut [u8],
) -> Result<(), QuantizeError> {
    let row_bytes = check(view, kind)?;
    for (row, out) in out.chunks_exact_mut(row_bytes).enumerate() {
        if kind == WeightKind::Q8_0 {
            quantize_row::<Q8_0, 34>(view, first_row + row, out);
        } else {
            quantize_row::<Q4_0, 18>(view, first_row + row, out);
        }
    }
    Ok(())
}

/// Bytes of a row of the result.
fn check(view: &WeightView<'_>, kind: WeightKind) -> Result<usize, QuantizeError> {
    if !matches!(kind, WeightKind::Q8_0 | WeightKind::Q4_0) {
        return Err(QuantizeError::Target(kind));
    }
    check_shape(view)?;
    kind.row_bytes(view.columns).ok_or(QuantizeError::PartialBlock(view.columns))
}

fn owned(view: &WeightView<'_>, kind: WeightKind, data: Vec<u8>) -> QuantizedWeight {
    let (rows, columns) = (view.rows, view.columns);
    QuantizedWeight { name: view.name.to_owned(), kind, rows, columns, data }
}

fn check_shape(view: &WeightView<'_>) -> Result<(), QuantizeError> {
    let (bytes, rows, columns) = (view.data.len(), view.rows, view.stored_columns);
    let expected = view.kind.row_bytes(columns).and_then(|row| row.checked_mul(rows));
    let last = view.first_column.checked_add(view.columns);
    let begins_whole = !view.kind.is_quantized() || view.first_column.is_multiple_of(SUB_BLOCK);
    if expected == Some(bytes) && last.is_some_and(|last| last <= columns) && begins_whole {
        Ok(())
    } else {
        Err(QuantizeError::Shape { bytes, rows, columns })
    }
}

/// How a block of floats becomes one of `BYTES`. A trait, since closures are not compiled for their caller's
/// instructions.
trait Round<const BYTES: usize> {
    fn round(values: &[f32; SUB_BLOCK], out: &mut [u8; BYTES]);
}

struct Q8_0;
struct Q4_0;

#[inline(always)]
fn quantize_row<R: Round<BYTES>, const BYTES: usize>(
    view: &WeightView<'_>,
    row: usize,
    out: &mut [u8],
) {
    let row_bytes = view.row_bytes();
    let stored = &view.data[row * row_bytes..][..row_bytes];
    let out = out.as_chunks_mut().0.iter_mut();
    let mut values = [0.0; SUB_BLOCK];
    if view.kind.is_quantized() {
        let first = view.first_column / SUB_BLOCK;
        for (index, out) in out.enumerate() {
            let block = sub_block(view.kind, stored, first + index);
            dequantize_sub_block(view.kind, &block, &mut values);
            R::round(&values, out);
        }
        return;
    }
    let value_bytes = view.kind.block_bytes();
    let stored = stored[view.first_column * value_bytes..].chunks_exact(SUB_BLOCK * value_bytes);
    for (stored, out) in stored.zip(out) {
        read_floats(view.kind, stored, &mut values);
        R::round(&values, out);
    }
}

#[inline(always)]
fn read_floats(kind: WeightKind, stored: &[u8], out: &mut [f32; SUB_BLOCK]) {
    match kind {
        WeightKind::F32 => {
            for (out, bytes) in out.iter_mut().zip(stored.as_chunks().0) {
                *out = f32::from_le_bytes(*bytes);
            }
        }
        WeightKind::F16 => {
            let mut halves = [f16::ZERO; SUB_BLOCK];
            for (half, bytes) in halves.iter_mut().zip(stored.as_chunks().0) {
                *half = f16::from_le_bytes(*bytes);
            }
            halves.convert_to_f32_slice(out);
        }
        _ => {
            for (out, bytes) in out.iter_mut().zip(stored.as_chunks().0) {
                // What `bf16::to_f32` is of all numbers, without its branch for NaNs.
                *out = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
            }
        }
    }
}

/// The greatest magnitude of a block; `None` if some value is not finite.
#[inline(always)]
fn greatest_magnitude(values: &[f32; SUB_BLOCK]) -> Option<f32> {
    // As integers, magnitudes have the order of the numbers, and those that are not finite come last.
    let greatest =
        values.iter().fold(0, |most: u32, value| most.max(value.to_bits() & 0x7fff_ffff));
    let greatest = f32::from_bits(greatest);
    greatest.is_finite().then_some(greatest)
}

/// The scale of a block whose values are up to `steps` scales large, not less than makes `steps` and a half
/// enough for them; `None` if there is no such f16.
#[inline(always)]
fn scale(greatest: f32, steps: f32) -> Option<f16> {
    let nearest = f16::from_f32(greatest / steps);
    let is_enough = greatest <= nearest.to_f32() * (steps + 0.5);
    let scale = if is_enough { nearest } else { f16::from_bits(nearest.to_bits() + 1) };
    scale.is_finite().then_some(scale)
}

#[inline(always)]
fn reciprocal(scale: f16) -> f32 {
    if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() }
}

/// `d`, then 32 signed bytes.
impl Round<34> for Q8_0 {
    #[inline(always)]
    fn round(values: &[f32; SUB_BLOCK], out: &mut [u8; 34]) {
        /// Adding this leaves an integer, the nearest even one, in a float's low bits: 1.5 * 2^23.
        const ROUND: f32 = 12_582_912.0;
        let (d, quants) = out.split_at_mut(2);
        let Some(scale) = greatest_magnitude(values).and_then(|greatest| scale(greatest, 127.0))
        else {
            d.copy_from_slice(&f16::NAN.to_le_bytes());
            quants.fill(0);
            return;
        };
        d.copy_from_slice(&scale.to_le_bytes());
        let inverse = reciprocal(scale);
        for (quant, value) in quants.iter_mut().zip(values) {
            // A scale that was rounded down may want up to 127.5.
            let scaled = (value * inverse).clamp(-127.0, 127.0);
            *quant = (scaled + ROUND).to_bits() as u8;
        }
    }
}

/// `d`, then 16 bytes: value j low, value j + 16 high, each plus 8.
impl Round<18> for Q4_0 {
    #[inline(always)]
    fn round(values: &[f32; SUB_BLOCK], out: &mut [u8; 18]) {
        let (d, quants) = out.split_at_mut(2);
        let greatest = greatest_magnitude(values);
        let Some((greatest, scale)) = greatest.and_then(|most| Some((most, scale(most, 8.0)?)))
        else {
            d.copy_from_slice(&f16::NAN.to_le_bytes());
            quants.fill(0);
            return;
        };
        // The extreme is to be -8 scales.
        let extreme = values.iter().find(|value| value.abs() == greatest);
        let is_negative = extreme.is_some_and(|value| value.is_sign_negative());
        let scale = if is_negative { scale } else { -scale };
        d.copy_from_slice(&scale.to_le_bytes());
        let inverse = reciprocal(scale);
        let (low, high) = values.split_at(SUB_BLOCK / 2);
        let quant = |value: f32| (value * inverse + 8.5).clamp(0.0, 15.0) as u8;
        for ((out, low), high) in quants.iter_mut().zip(low).zip(high) {
            *out = quant(*low) | quant(*high) << 4;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{SplitMix, dequantize_row, encode_row, random_row};

    /// Values of a view, as floats.
    fn decoded(view: &WeightView<'_>) -> Vec<f32> {
        let row_bytes = view.row_bytes();
        let row = |row: usize| {
            let mut values = vec![0.0; view.stored_columns];
            dequantize_row(view.kind, &view.data[row * row_bytes..][..row_bytes], &mut values)
                .unwrap();
            values[view.first_column..][..view.columns].to_vec()
        };
        (0..view.rows).flat_map(row).collect()
    }

    /// Blocks of all magnitudes, with signs that favour neither side.
    fn matrix(kind: WeightKind, rows: usize, columns: usize, seed: u64) -> Vec<u8> {
        let mut random = SplitMix(seed);
        let mut row = || {
            let mut values = Vec::new();
            for _ in 0..columns.div_ceil(SUB_BLOCK) {
                let magnitude = 2.0_f32.powi((random.next() % 36) as i32 - 24);
                values.extend((0..SUB_BLOCK).map(|_| random.uniform() * magnitude));
            }
            encode_row(kind, &values[..columns]).unwrap()
        };
        (0..rows).flat_map(|_| row()).collect()
    }

    /// The scale of a block.
    fn block_scale(weight: &QuantizedWeight, block: usize) -> f32 {
        let at = block * weight.kind.block_bytes();
        f16::from_le_bytes([weight.data[at], weight.data[at + 1]]).to_f32()
    }

    #[test]
    fn values_are_within_half_a_step() {
        for from in [WeightKind::F32, WeightKind::F16, WeightKind::Bf16] {
            for seed in 0..20 {
                let (rows, stored) = (7, 360);
                let data = matrix(from, rows, stored, seed);
                let view = WeightView::whole("w", from, rows, stored, &data).with_columns(5..325);
                for kind in [WeightKind::Q8_0, WeightKind::Q4_0] {
                    let weight = quantize(&view, kind, 2).unwrap();
                    let pairs = decoded(&view).into_iter().zip(decoded(&weight.view()));
                    for (at, (value, got)) in pairs.enumerate() {
                        let step = block_scale(&weight, at / SUB_BLOCK);
                        // On the side of seven steps the eighth is missing; a subnormal scale may be half
                        // a step in eight off.
                        let allowed = match (kind, step.abs() < 2.0_f32.powi(-14)) {
                            (WeightKind::Q4_0, is_subnormal) if value / step > 7.5 => {
                                if is_subnormal {
                                    1.5001
                                } else {
                                    1.01
                                }
                            }
                            _ => 0.5001,
                        };
                        let allowed = allowed * step.abs();
                        assert!(
                            (value - got).abs() <= allowed,
                            "{from:?} {kind:?}: {value} {got} {step}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn what_lies_on_the_grid_stays() {
        let mut random = SplitMix(5);
        for kind in [WeightKind::Q8_0, WeightKind::Q4_0] {
            let (most, least) = if kind == WeightKind::Q8_0 { (127, -127) } else { (7, -8) };
            for _ in 0..200 {
                let step = f16::from_f32(0.001 + random.uniform().abs()).to_f32();
                let mut values: Vec<f32> = (0..256)
                    .map(|_| (random.next() % (most - least + 1) as u64) as f32 + least as f32)
                    .map(|quant| quant * step)
                    .collect();
                values.iter_mut().step_by(SUB_BLOCK).for_each(|value| *value = least as f32 * step);
                let data = encode_row(WeightKind::F32, &values).unwrap();
                let view = WeightView::whole("w", WeightKind::F32, 2, 128, &data);
                assert_eq!(decoded(&quantize(&view, kind, 1).unwrap().view()), values);
            }
        }
    }

    #[test]
    fn other_blocks_are_within_half_a_step() {
        for from in [WeightKind::Q4_1, WeightKind::Q2K, WeightKind::Q3K, WeightKind::Iq4Xs] {
            for seed in 0..10 {
                let data: Vec<u8> =
                    (0..3).flat_map(|row| random_row(from, 768, 0.05, 3 * seed + row)).collect();
                let view = WeightView::whole("w", from, 3, 768, &data).with_columns(96..736);
                let weight = quantize(&view, WeightKind::Q8_0, 2).unwrap();
                let pairs = decoded(&view).into_iter().zip(decoded(&weight.view()));
                for (at, (value, got)) in pairs.enumerate() {
                    let step = block_scale(&weight, at / SUB_BLOCK);
                    assert!((value - got).abs() <= 0.5001 * step, "{from:?}: {value} {got} {step}");
                }
            }
        }
    }

    #[test]
    fn stored_kinds_and_threads_make_no_difference() {
        // Values that all kinds have.
        let values: Vec<f32> = (0..64 * 96).map(|i| ((i * 37) % 255 - 127) as f32 / 64.0).collect();
        let encoded = |kind| encode_row(kind, &values).unwrap();
        for target in [WeightKind::Q8_0, WeightKind::Q4_0] {
            let of = |kind, threads| {
                let data = encoded(kind);
                let view = WeightView::whole("w", kind, 64, 96, &data).with_columns(32..96);
                quantize(&view, target, threads).unwrap()
            };
            let want = of(WeightKind::F32, 1);
            for kind in [WeightKind::F32, WeightKind::F16, WeightKind::Bf16] {
                for threads in [0, 1, 2, 5] {
                    assert_eq!(of(kind, threads), want);
                }
            }
            assert_eq!((want.view().name, want.view().rows, want.view().columns), ("w", 64, 64));
        }
    }

    #[test]
    fn damage_is_not_hidden() {
        for kind in [WeightKind::Q8_0, WeightKind::Q4_0] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -1e9] {
                let mut values = vec![0.5; 96];
                values[40] = bad;
                let data = encode_row(WeightKind::F32, &values).unwrap();
                let view = WeightView::whole("w", WeightKind::F32, 1, 96, &data);
                let got = decoded(&quantize(&view, kind, 1).unwrap().view());
                assert!(got[32..64].iter().all(|value| value.is_nan()), "{bad}: {got:?}");
                assert!(got[..32].iter().chain(&got[64..]).all(|value| (value - 0.5).abs() < 0.01));
            }
        }
    }

    #[test]
    fn zeros_and_the_smallest_stay_finite() {
        for kind in [WeightKind::Q8_0, WeightKind::Q4_0] {
            for value in [0.0, -0.0, f32::MIN_POSITIVE, 1e-40, 1e-8, -1e-7] {
                let data = encode_row(WeightKind::F32, &[value; 32]).unwrap();
                let view = WeightView::whole("w", WeightKind::F32, 1, 32, &data);
                let got = decoded(&quantize(&view, kind, 1).unwrap().view());
                assert!(got.iter().all(|got| (got - value).abs() <= 3e-8), "{value}: {got:?}");
            }
        }
    }

    #[test]
    fn what_cannot_be_rounded_is_an_error() {
        let data = [0; 136];
        let view = |kind, rows, columns| WeightView::whole("w", kind, rows, columns, &data);
        let error = |view, kind| quantize(&view, kind, 1).unwrap_err();
        let inside = view(WeightKind::Q8_0, 2, 64).with_columns(16..48);
        assert!(matches!(error(inside, WeightKind::Q8_0), QuantizeError::Shape { .. }));
        let odd = view(WeightKind::Bf16, 2, 34);
        assert_eq!(error(odd, WeightKind::Q8_0), QuantizeError::PartialBlock(34));
        assert_eq!(error(odd, WeightKind::Q4K), QuantizeError::Target(WeightKind::Q4K));
        let short = view(WeightKind::F32, 2, 32);
        assert!(matches!(error(short, WeightKind::Q8_0), QuantizeError::Shape { .. }));
        let outside = view(WeightKind::F32, 1, 34).with_columns(16..48);
        assert!(matches!(error(outside, WeightKind::Q8_0), QuantizeError::Shape { .. }));
    }
}
