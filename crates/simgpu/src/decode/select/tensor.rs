//! Matrix instructions.

use super::{Decoder, Name, Result};
use crate::exec::program::{Class, Factor, Matrix, Mma, Op, Window};
use crate::exec::registers::Code;

impl Decoder<'_> {
    pub(super) fn matrix(&mut self, name: &Name<'_>) -> Result<()> {
        if !name.has("m8n8") || name.kind() != "b16" {
            return self.unknown();
        }
        let is_transposed = name.has("trans");
        if name.base == "movmatrix" {
            let to = self.destination(self.arg(0)?, Code::Word)?;
            let from = self.source(self.arg(1)?, Code::Word)?;
            if !is_transposed {
                return self.unknown();
            }
            self.emit(Op::TransposeMatrix(to, from), Class::Integer);
            return Ok(());
        }
        let is_load = name.base == "ldmatrix";
        let count = if name.has("x4") {
            4
        } else if name.has("x2") {
            2
        } else {
            1
        };
        let rows = self.words(self.arg(usize::from(!is_load))?, is_load)?;
        if rows.len() != count {
            return self.error("the vector's length does not fit");
        }
        let is_shared = name.parts.iter().any(|part| part.starts_with("shared"));
        let window = if is_shared { Window::Shared } else { Window::Generic };
        let address = self.address(self.arg(usize::from(is_load))?, window)?;
        let matrix = Box::new(Matrix { address, rows, is_transposed });
        self.emit(
            if is_load { Op::LoadMatrix(matrix) } else { Op::StoreMatrix(matrix) },
            Class::Shared,
        );
        Ok(())
    }

    pub(super) fn mma(&mut self, name: &Name<'_>) -> Result<()> {
        let types: Vec<&str> = name.parts.iter().rev().take(4).rev().copied().collect();
        let [d_type, a_type, b_type, c_type] = types[..] else { return self.unknown() };
        let k = name.parts.iter().find_map(|part| part.strip_prefix("m16n8k"));
        let k = k.and_then(|k| k.parse::<u32>().ok());
        let (Some(k), Some(a_type), Some(b_type)) = (k, factor(a_type), factor(b_type)) else {
            return self.unknown();
        };
        let is_known = name.has("row") && name.has("col") && d_type == c_type && !name.has("and");
        let expected = match (a_type, b_type, k, d_type) {
            (Factor::F16, Factor::F16, 8 | 16, "f32" | "f16")
            | (Factor::Bf16, Factor::Bf16, 8 | 16, "f32") => k / 4,
            (Factor::Tf32, Factor::Tf32, 4 | 8, "f32") => k / 2,
            (Factor::S8 | Factor::U8, Factor::S8 | Factor::U8, 16 | 32, "s32") => k / 8,
            _ => return self.unknown(),
        };
        if !is_known {
            return self.unknown();
        }
        let mma = Mma {
            k,
            a_type,
            b_type,
            is_half: d_type == "f16",
            saturates: name.has("satfinite"),
            d: self.words(self.arg(0)?, true)?,
            a: self.words(self.arg(1)?, false)?,
            b: self.words(self.arg(2)?, false)?,
            c: self.words(self.arg(3)?, false)?,
        };
        let results = if mma.is_half { 2 } else { 4 };
        let lengths = [mma.d.len(), mma.a.len(), mma.b.len(), mma.c.len()];
        if lengths != [results, expected as usize, expected as usize / 2, results] {
            return self.error("the fragments' lengths do not fit");
        }
        self.emit(Op::Mma(Box::new(mma)), Class::Tensor);
        Ok(())
    }
}

fn factor(name: &str) -> Option<Factor> {
    Some(match name {
        "f16" => Factor::F16,
        "bf16" => Factor::Bf16,
        "tf32" => Factor::Tf32,
        "s8" => Factor::S8,
        "u8" => Factor::U8,
        _ => return None,
    })
}
