//! Floating-point formats below 64 bits: exact encoding in every rounding, and fast paths.

/// How to round what a format cannot hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounding {
    /// To nearest, ties to even.
    Nearest,
    /// To nearest, ties away from zero.
    NearestAway,
    Zero,
    Down,
    Up,
}

/// A binary format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Format {
    /// Explicit bits of the mantissa.
    pub(crate) mantissa: u32,
    pub(crate) exponent: u32,
    /// Without infinities, and with one NaN (e4m3).
    pub(crate) is_finite: bool,
}

pub(crate) const F16: Format = Format { mantissa: 10, exponent: 5, is_finite: false };
pub(crate) const BF16: Format = Format { mantissa: 7, exponent: 8, is_finite: false };
pub(crate) const TF32: Format = Format { mantissa: 10, exponent: 8, is_finite: false };
pub(crate) const F32: Format = Format { mantissa: 23, exponent: 8, is_finite: false };
pub(crate) const F64: Format = Format { mantissa: 52, exponent: 11, is_finite: false };
pub(crate) const E4M3: Format = Format { mantissa: 3, exponent: 4, is_finite: true };
pub(crate) const E5M2: Format = Format { mantissa: 2, exponent: 5, is_finite: false };

/// A finite number: sign, and magnitude `mantissa × 2^exponent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exact {
    pub(crate) is_negative: bool,
    pub(crate) mantissa: u128,
    pub(crate) exponent: i32,
}

impl Exact {
    pub(crate) fn from_int(value: i128) -> Self {
        Self { is_negative: value < 0, mantissa: value.unsigned_abs(), exponent: 0 }
    }

    /// None for infinities and NaN.
    pub(crate) fn from_f64(value: f64) -> Option<Self> {
        if !value.is_finite() {
            return None;
        }
        let bits = value.to_bits();
        let field = (bits >> 52 & 0x7ff) as i32;
        let fraction = bits & ((1 << 52) - 1);
        let mantissa = if field == 0 { fraction } else { fraction | 1 << 52 };
        let exponent = field.max(1) - 1075;
        Some(Self {
            is_negative: value.is_sign_negative(),
            mantissa: u128::from(mantissa),
            exponent,
        })
    }

    /// The magnitude in units of `2^unit`, rounded.
    pub(crate) fn rounded(self, unit: i32, rounding: Rounding) -> u128 {
        let shift = unit - self.exponent;
        if shift <= 0 {
            return if -shift < 64 {
                self.mantissa << -shift
            } else {
                u128::from(self.mantissa != 0) << 127
            };
        }
        if self.mantissa == 0 {
            return 0;
        }
        let (whole, rest, half) = if shift > 126 {
            (0, 1, 2)
        } else {
            let whole = self.mantissa >> shift;
            (whole, self.mantissa - (whole << shift), 1 << (shift - 1))
        };
        let up = match rounding {
            Rounding::Nearest => rest > half || (rest == half && whole & 1 == 1),
            Rounding::NearestAway => rest >= half,
            Rounding::Zero => false,
            Rounding::Down => self.is_negative && rest != 0,
            Rounding::Up => !self.is_negative && rest != 0,
        };
        whole + u128::from(up)
    }
}

impl Format {
    fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    fn infinity(self) -> u64 {
        ((1 << self.exponent) - 1) << self.mantissa
    }

    fn largest(self) -> u64 {
        if self.is_finite {
            (1 << (self.exponent + self.mantissa)) - 2
        } else {
            self.infinity() - 1
        }
    }

    pub(crate) fn nan(self) -> u64 {
        (1 << (self.exponent + self.mantissa)) - 1
    }

    /// Bits of a number. `saturates` puts the largest finite number in the place of an overflow.
    pub(crate) fn encode(self, value: Exact, rounding: Rounding, saturates: bool) -> u64 {
        let sign = u64::from(value.is_negative) << (self.mantissa + self.exponent);
        if value.mantissa == 0 {
            return sign;
        }
        let top = 127 - value.mantissa.leading_zeros() as i32 + value.exponent;
        let lowest = 1 - self.bias();
        let exponent = top.max(lowest);
        let steps = value.rounded(exponent - self.mantissa as i32, rounding) as u64;
        // A mantissa that rounds up into the next power of two carries into the exponent.
        let field = (exponent - lowest) as u64;
        let magnitude = (field << self.mantissa) + steps;
        if magnitude <= self.largest() {
            return sign | magnitude;
        }
        let toward_zero = match rounding {
            Rounding::Zero => true,
            Rounding::Down => !value.is_negative,
            Rounding::Up => value.is_negative,
            _ => false,
        };
        let over = if self.is_finite { self.nan() } else { self.infinity() };
        sign | if saturates || toward_zero { self.largest() } else { over }
    }

    /// Bits of any double.
    pub(crate) fn encode_f64(self, value: f64, rounding: Rounding, saturates: bool) -> u64 {
        let sign = u64::from(value.is_sign_negative()) << (self.mantissa + self.exponent);
        match Exact::from_f64(value) {
            Some(exact) => self.encode(exact, rounding, saturates),
            // The one NaN of results, whatever the source's sign.
            None if value.is_nan() => self.nan(),
            None if saturates => sign | self.largest(),
            None if self.is_finite => self.nan(),
            None => sign | self.infinity(),
        }
    }

    /// The number that bits stand for.
    pub(crate) fn decode(self, bits: u64) -> f64 {
        let fraction = bits & ((1 << self.mantissa) - 1);
        let field = bits >> self.mantissa & ((1 << self.exponent) - 1);
        let is_negative = bits >> (self.mantissa + self.exponent) & 1 == 1;
        let magnitude = if self.is_finite && bits & self.nan() == self.nan() {
            f64::NAN
        } else if !self.is_finite && field == (1 << self.exponent) - 1 {
            if fraction == 0 { f64::INFINITY } else { f64::NAN }
        } else {
            let mantissa = if field == 0 { fraction } else { fraction | 1 << self.mantissa };
            let exponent = (field as i32).max(1) - self.bias() - self.mantissa as i32;
            mantissa as f64 * 2_f64.powi(exponent)
        };
        if is_negative { -magnitude } else { magnitude }
    }
}

#[inline(always)]
pub(crate) fn f16_to_f32(bits: u32) -> f32 {
    let magnitude = (bits & 0x7fff) << 13;
    // Scaling by 2^112 moves the exponent's bias, subnormal numbers included.
    let scaled = f32::from_bits(magnitude) * f32::from_bits(0x7780_0000);
    let special = if magnitude >= 0x0f80_0000 { magnitude | 0x7f80_0000 } else { scaled.to_bits() };
    f32::from_bits(special | (bits & 0x8000) << 16)
}

#[inline(always)]
pub(crate) fn bf16_to_f32(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

/// To nearest, ties to even.
#[inline(always)]
pub(crate) fn f32_to_f16(value: f32) -> u32 {
    let bits = value.to_bits();
    let sign = bits >> 16 & 0x8000;
    let magnitude = bits & 0x7fff_ffff;
    // Small numbers: adding 0.5 rounds to units of 2^-24, the steps of subnormal f16.
    let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
    let normal = magnitude.wrapping_add(0xc800_0fff).wrapping_add(magnitude >> 13 & 1) >> 13;
    let finite = if magnitude < 0x3880_0000 { small } else { normal };
    let number = sign | if magnitude >= 0x4780_0000 { 0x7c00 } else { finite };
    if magnitude > 0x7f80_0000 { 0x7fff } else { number }
}

/// To nearest, ties to even.
#[inline(always)]
pub(crate) fn f32_to_bf16(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fff } else { rounded }
}

/// `value` with the lowest bit of its mantissa set when `error`, what is missing from it, is not zero:
/// rounding it once more gives what rounding the exact number gives.
#[inline(always)]
fn with_sticky(value: f64, error: f64) -> f64 {
    let bits = value.to_bits();
    if error == 0.0 || !value.is_finite() || bits & 1 == 1 {
        return value;
    }
    // Toward the exact number: away from zero when the error has the value's sign.
    let away = (error > 0.0) == (value > 0.0);
    f64::from_bits(if value == 0.0 {
        1
    } else if away {
        bits | 1
    } else {
        bits - 1
    })
}

/// `a + b`, rounded to odd.
#[inline(always)]
pub(crate) fn add_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let part = sum - a;
    let error = (a - (sum - part)) + (b - part);
    with_sticky(sum, error)
}

/// `a / b`, rounded to odd.
pub(crate) fn div_odd(a: f64, b: f64) -> f64 {
    let quotient = a / b;
    if !quotient.is_finite() || quotient == 0.0 {
        return quotient;
    }
    let rest = (-quotient).mul_add(b, a);
    with_sticky(quotient, if b < 0.0 { -rest } else { rest })
}

/// Square root, rounded to odd.
pub(crate) fn sqrt_odd(a: f64) -> f64 {
    let root = a.sqrt();
    if !root.is_finite() || root == 0.0 {
        return root;
    }
    with_sticky(root, (-root).mul_add(root, a))
}

/// A double rounded to odd in 24 bits, so that one more rounding to 22 or fewer bits is exact.
#[inline(always)]
pub(crate) fn odd_f32(value: f64) -> f32 {
    let near = value as f32;
    let error = value - f64::from(near);
    let bits = near.to_bits();
    if error == 0.0 || error.is_nan() || bits & 1 == 1 || !near.is_finite() {
        return near;
    }
    let away = (error > 0.0) == (value > 0.0);
    f32::from_bits(if near == 0.0 || away { bits | 1 } else { bits - 1 })
}

/// Fused multiply-add of f16 or bf16 numbers, given and returned as f32 that still has to be rounded.
#[inline(always)]
pub(crate) fn fma_odd(a: f32, b: f32, c: f32) -> f32 {
    odd_f32(add_odd(f64::from(a) * f64::from(b), f64::from(c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_paths_agree_with_the_exact_ones() {
        for bits in 0..=0xffff_u32 {
            let exact = F16.decode(u64::from(bits));
            let fast = f16_to_f32(bits);
            assert!(f64::from(fast) == exact || fast.is_nan() && exact.is_nan(), "{bits:#x}");
        }
        let mut bits = 1_u32;
        for _ in 0..200_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Many of them near f16's range.
            let bits = if bits & 1 == 0 { bits } else { 0x3000_0000 | bits & 0x9fff_ffff };
            let value = f32::from_bits(bits);
            let exact = F16.encode_f64(f64::from(value), Rounding::Nearest, false) as u32;
            if value.is_nan() {
                continue;
            }
            assert_eq!(f32_to_f16(value), exact, "{bits:#x}");
            let exact = BF16.encode_f64(f64::from(value), Rounding::Nearest, false) as u32;
            assert_eq!(f32_to_bf16(value), exact, "{bits:#x}");
        }
    }

    #[test]
    fn directed_rounding() {
        let third = 1.0 / 3.0;
        let down = F32.encode_f64(third, Rounding::Down, false);
        let up = F32.encode_f64(third, Rounding::Up, false);
        assert_eq!(up, down + 1);
        assert_eq!(
            F32.encode_f64(third, Rounding::Nearest, false),
            u64::from((third as f32).to_bits())
        );
        assert_eq!(F16.encode_f64(1e9, Rounding::Zero, false), 0x7bff);
        assert_eq!(F16.encode_f64(1e9, Rounding::Nearest, false), 0x7c00);
        assert_eq!(E4M3.encode_f64(1e9, Rounding::Nearest, true), 0x7e);
    }
}
