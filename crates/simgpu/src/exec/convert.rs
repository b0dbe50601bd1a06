//! `cvt` in its general form, by exact arithmetic.

use super::access::lanes;
use super::program::{Convert, Number};
use super::registers::Registers;
use crate::numbers::{Exact, F32, F64, Format, Rounding, TF32};

/// A value between decoding and encoding.
#[derive(Debug, Clone, Copy)]
enum Value {
    Int(i128),
    Float(f64),
}

/// Converts the active lanes.
pub(crate) fn convert(registers: &mut Registers, op: &Convert, active: u32) {
    for lane in lanes(active) {
        let result = if let [a, b] = op.a[..] {
            // The first operand goes to the upper half.
            let (high, low) = (a.lane(registers, lane), b.lane(registers, lane));
            one(op, high) << op.part_bits | one(op, low)
        } else {
            let bits = op.a[0].lane(registers, lane);
            let source_bits = width(op.from);
            if op.is_pair {
                one(op, bits >> source_bits) << op.part_bits | one(op, bits)
            } else {
                one(op, bits)
            }
        };
        op.d.set(registers, lane, result);
    }
}

fn width(number: Number) -> u32 {
    match number {
        Number::Unsigned(bits) | Number::Signed(bits) => bits,
        Number::Float(TF32) => 32,
        Number::Float(format) => 1 + format.exponent + format.mantissa,
    }
}

fn decode(op: &Convert, bits: u64) -> Value {
    let shift = 64 - width(op.from);
    match op.from {
        Number::Unsigned(_) => Value::Int(i128::from(bits << shift >> shift)),
        Number::Signed(_) => Value::Int(i128::from((bits << shift) as i64 >> shift)),
        Number::Float(F64) => Value::Float(f64::from_bits(bits)),
        Number::Float(F32) => {
            let value = f32::from_bits(bits as u32);
            let is_flushed = op.flushes && value.is_subnormal();
            Value::Float(f64::from(if is_flushed { 0.0_f32.copysign(value) } else { value }))
        }
        Number::Float(format) => Value::Float(format.decode(bits << shift >> shift)),
    }
}

/// Converts one number to the bits of the result, extended as the destination wants it.
fn one(op: &Convert, bits: u64) -> u64 {
    match (decode(op, bits), op.to) {
        (value, Number::Float(format)) => to_float(op, value, format),
        (Value::Int(value), to) => to_int(value, to, op.saturates || op.clamps),
        (Value::Float(value), to) => to_int(whole(value, op.rounding), to, true),
    }
}

fn whole(value: f64, rounding: Rounding) -> i128 {
    match Exact::from_f64(value) {
        Some(exact) => {
            let magnitude = exact.rounded(0, rounding).min(1 << 100) as i128;
            if exact.is_negative { -magnitude } else { magnitude }
        }
        None if value.is_nan() => 0,
        None if value > 0.0 => 1 << 100,
        None => -(1 << 100),
    }
}

fn to_int(value: i128, to: Number, saturates: bool) -> u64 {
    let (low, high, bits) = match to {
        Number::Unsigned(bits) => (0, (1_i128 << bits) - 1, bits),
        Number::Signed(bits) => (-(1_i128 << (bits - 1)), (1_i128 << (bits - 1)) - 1, bits),
        Number::Float(_) => return 0,
    };
    let value = if saturates { value.clamp(low, high) } else { value };
    let shift = 64 - bits;
    match to {
        Number::Signed(_) => ((value as u64) << shift) as i64 as u64 >> shift | sign(value, bits),
        _ => value as u64 & (u64::MAX >> shift),
    }
}

/// Bits above the type's, all equal to the sign.
fn sign(value: i128, bits: u32) -> u64 {
    let is_negative = value >> (bits - 1) & 1 == 1;
    if is_negative && bits < 64 { u64::MAX << bits } else { 0 }
}

fn to_float(op: &Convert, value: Value, format: Format) -> u64 {
    let mut value = value;
    if let Value::Float(float) = &mut value {
        if op.to_whole && float.is_finite() {
            let rounded = whole(*float, op.rounding);
            // Numbers too large for this have no fraction.
            if float.abs() < 1e18 {
                *float = (rounded as f64).copysign(*float);
            }
        }
        if op.clamps {
            *float = if *float > 0.0 { float.min(1.0) } else { 0.0 };
        }
        if op.relu && *float < 0.0 {
            *float = 0.0;
        }
    }
    let rounding = if op.to_whole { Rounding::Nearest } else { op.rounding };
    // tf32 lies in the upper bits of an f32.
    let shift = if format == TF32 { 13 } else { 0 };
    let bits = match value {
        Value::Int(value) => format.encode(Exact::from_int(value), rounding, op.saturates),
        Value::Float(value) if format == F64 => value.to_bits(),
        Value::Float(value) => format.encode_f64(value, rounding, op.saturates),
    };
    let is_subnormal = bits & format.nan() < 1 << format.mantissa;
    let flushed =
        if op.flushes && format == F32 && is_subnormal { bits & 0x8000_0000 } else { bits };
    flushed << shift
}
