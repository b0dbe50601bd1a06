//! `cvt`: quick forms by name, all others by exact arithmetic.

use super::{Decoder, Name, Result, rounding, tables};
use crate::decode::args::Arg;
use crate::exec::program::{Class, Convert, Number, Op};
use crate::numbers::{BF16, E4M3, E5M2, F16, F32, F64, Rounding, TF32};
use crate::ptx::Scalar;

/// A number type, and how many of it one operand holds.
fn number(name: &str) -> Option<(Number, u32)> {
    Some(match name {
        "f16x2" => (Number::Float(F16), 2),
        "bf16x2" => (Number::Float(BF16), 2),
        "tf32" => (Number::Float(TF32), 1),
        "e4m3x2" => (Number::Float(E4M3), 2),
        "e5m2x2" => (Number::Float(E5M2), 2),
        _ => match Scalar::parse(name)? {
            Scalar::F16 => (Number::Float(F16), 1),
            Scalar::Bf16 => (Number::Float(BF16), 1),
            Scalar::F32 => (Number::Float(F32), 1),
            Scalar::F64 => (Number::Float(F64), 1),
            Scalar::Unsigned(bytes) => (Number::Unsigned(8 * u32::from(bytes)), 1),
            Scalar::Signed(bytes) => (Number::Signed(8 * u32::from(bytes)), 1),
            _ => return None,
        },
    })
}

fn whole(part: &str) -> Option<Rounding> {
    Some(match part {
        "rni" => Rounding::Nearest,
        "rzi" => Rounding::Zero,
        "rmi" => Rounding::Down,
        "rpi" => Rounding::Up,
        _ => return None,
    })
}

impl Decoder<'_> {
    pub(super) fn convert(&mut self, name: &Name<'_>) -> Result<()> {
        if name.has("pack") {
            return self.unknown();
        }
        if let Some(pick) = tables::quick_convert(&name.parts.join("."))
            && self.fits(pick.codes)
        {
            let class = if name.kind().contains('f') { Class::Float } else { Class::Integer };
            return self.alu(pick, class);
        }
        self.convert_exactly(name)
    }

    /// Whether the registers are as wide as the quick form's types (PTX allows wider ones).
    fn fits(&self, codes: &[crate::exec::registers::Code]) -> bool {
        use crate::exec::registers::Code;
        self.num_args() == codes.len()
            && self.current.args.iter().zip(codes).all(|(arg, code)| match arg {
                Arg::Register(register) => self.is_wide(*register) == (*code == Code::Double),
                _ => true,
            })
    }

    fn convert_exactly(&mut self, name: &Name<'_>) -> Result<()> {
        let types: Vec<&str> = name.parts.iter().rev().take(2).rev().copied().collect();
        let [to_name, from_name] = types[..] else { return self.unknown() };
        let (Some((to, num_to)), Some((from, num_from))) = (number(to_name), number(from_name))
        else {
            return self.unknown();
        };
        let num_sources = self.num_args().saturating_sub(1);
        // One result, a pair of results from two operands, or a pair unpacked from one operand.
        if num_to as usize != num_sources && num_to != num_from {
            return self.unknown();
        }
        let mode = name.parts.iter().find_map(|part| whole(part).or(rounding(part)));
        let to_whole = name.parts.iter().any(|part| whole(part).is_some());
        let part_bits = match to {
            Number::Unsigned(bits) | Number::Signed(bits) => bits,
            Number::Float(TF32) => 32,
            Number::Float(format) => 1 + format.exponent + format.mantissa,
        };
        let source_bytes = |number| if matches!(number, Number::Float(F64)) { 8 } else { 4 };
        let d = self.element(self.arg(0)?, source_bytes(to))?;
        let mut a = vec![];
        for index in 0..num_sources {
            a.push(self.element(self.arg(index + 1)?, source_bytes(from))?);
        }
        let convert = Convert {
            to,
            from,
            rounding: mode.unwrap_or(Rounding::Nearest),
            to_whole,
            saturates: name.has("satfinite"),
            clamps: name.has("sat"),
            is_pair: num_sources == 1 && num_to == 2,
            flushes: name.has("ftz"),
            relu: name.has("relu"),
            d,
            a,
            part_bits,
        };
        self.emit(Op::Convert(Box::new(convert)), Class::Float);
        Ok(())
    }
}
