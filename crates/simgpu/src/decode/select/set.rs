//! `setp`, `set`, `testp` and `isspacep`.

use super::{Decoder, Name, Result, tables};
use crate::decode::args::Arg;
use crate::exec::program::{Class, Compare, Join, NONE, Op, Test};
use crate::exec::registers::Code;
use crate::exec::windows::{LOCAL_BASE, PARAM_BASE, SHARED_BASE, is_in};

impl Decoder<'_> {
    pub(super) fn compare(&mut self, name: &Name<'_>) -> Result<()> {
        if name.kind().ends_with("x2") {
            return self.compare_halves(name);
        }
        let Some((test, code, num_sources)) = test(name) else { return self.unknown() };
        let first = self.arg(0)?;
        let a = self.source(self.arg(1)?, code)?;
        let b = if num_sources == 1 { a } else { self.source(self.arg(2)?, code)? };
        let (join, c, is_negated) = self.join(name)?;
        let (p, q) = match first {
            _ if name.base == "set" => (self.new_pred(), NONE),
            Arg::Pair(p, q) => (self.destination(p, Code::Pred)?, self.destination(q, Code::Pred)?),
            p => (self.destination(p, Code::Pred)?, NONE),
        };
        let compare = Compare { test, a, b, p, q, join, c, is_negated };
        self.emit(Op::Compare(Box::new(compare)), Class::Integer);
        if name.base != "set" {
            return Ok(());
        }
        let Some(yes) = name.parts.iter().rev().nth(1).and_then(|kind| truth(kind)) else {
            return self.unknown();
        };
        let d = self.destination(first, Code::Word)?;
        self.choose(d, yes, p)
    }

    /// The predicate that a comparison is joined with, and how.
    fn join(&mut self, name: &Name<'_>) -> Result<(Join, u32, bool)> {
        let join = match name.parts.get(1) {
            Some(&"and") => Join::And,
            Some(&"or") => Join::Or,
            Some(&"xor") => Join::Xor,
            _ => return Ok((Join::None, 0, false)),
        };
        match self.arg(3)? {
            Arg::Pred(pred, is_negated) => Ok((join, *pred, *is_negated)),
            constant => Ok((join, self.pred(constant)?, false)),
        }
    }

    /// `d = p ? yes : 0`
    fn choose(&mut self, d: u32, yes: u32, p: u32) -> Result<()> {
        let (yes, no) = (self.word_constant(yes), self.word_constant(0));
        let Some(select) = tables::logic("selp", "b32") else { return self.unknown() };
        self.emit(Op::Alu(select.function, [d, yes, no, p, 0, 0]), Class::Integer);
        Ok(())
    }

    /// Comparisons of two halves at once: `setp` has a predicate for each, `set` a half of the result.
    fn compare_halves(&mut self, name: &Name<'_>) -> Result<()> {
        let part = name.kind().trim_end_matches("x2");
        let (a, b) =
            (self.source(self.arg(1)?, Code::Word)?, self.source(self.arg(2)?, Code::Word)?);
        let (join, c, is_negated) = self.join(name)?;
        let preds = match self.arg(0)? {
            _ if name.base == "set" => [self.new_pred(), self.new_pred()],
            Arg::Pair(p, q) => [self.destination(p, Code::Pred)?, self.destination(q, Code::Pred)?],
            _ => return self.error("two predicates expected"),
        };
        for (p, kind) in preds.into_iter().zip([part.to_owned(), format!("{part}.high")]) {
            let first = name.parts.first().copied().unwrap_or_default();
            let Some(test) = tables::test(first, &kind, name.has("ftz")) else {
                return self.unknown();
            };
            let compare = Compare { test, a, b, p, q: NONE, join, c, is_negated };
            self.emit(Op::Compare(Box::new(compare)), Class::Float);
        }
        if name.base != "set" {
            return Ok(());
        }
        let yes = match name.parts.iter().rev().nth(1) {
            Some(&"f16x2") => 0x3c00,
            Some(&"bf16x2") => 0x3f80,
            Some(&("u32" | "s32")) => 0xffff,
            _ => return self.unknown(),
        };
        let d = self.destination(self.arg(0)?, Code::Word)?;
        let (low, high) = (self.new_row(), self.new_row());
        self.choose(low, yes, preds[0])?;
        self.choose(high, yes << 16, preds[1])?;
        let Some(or) = tables::logic("or", "b32") else { return self.unknown() };
        self.emit(Op::Alu(or.function, [d, low, high, 0, 0, 0]), Class::Integer);
        Ok(())
    }
}

/// What `set` gives for true: all ones, or 1.0.
fn truth(kind: &str) -> Option<u32> {
    Some(match kind {
        "u32" | "s32" | "b32" => u32::MAX,
        "u16" | "s16" | "b16" => 0xffff,
        "f32" => 0x3f80_0000,
        "f16" => 0x3c00,
        "bf16" => 0x3f80,
        _ => return None,
    })
}

/// The test, how its operands are stored, and how many there are.
fn test(name: &Name<'_>) -> Option<(Test, Code, usize)> {
    let kind = name.kind();
    let code = if kind.ends_with("64") { Code::Double } else { Code::Word };
    let first = *name.parts.first()?;
    match name.base {
        "testp" => Some((super::tables::property(first, kind)?, code, 1)),
        "isspacep" => {
            let test: Test = match first {
                _ if first.starts_with("shared") => {
                    |r, a, b| r.test::<u64>(a, b, |a, _| is_in(a, SHARED_BASE))
                }
                "local" => |r, a, b| r.test::<u64>(a, b, |a, _| is_in(a, LOCAL_BASE)),
                "param" | "param::entry" => {
                    |r, a, b| r.test::<u64>(a, b, |a, _| is_in(a, PARAM_BASE))
                }
                "global" => |r, a, b| r.test::<u64>(a, b, |a, _| (SHARED_BASE >> 44) != (a >> 44)),
                "const" => |r, a, b| r.test::<u64>(a, b, |_, _| false),
                _ => return None,
            };
            Some((test, Code::Double, 1))
        }
        _ => Some((super::tables::test(first, kind, name.has("ftz"))?, code, 2)),
    }
}
