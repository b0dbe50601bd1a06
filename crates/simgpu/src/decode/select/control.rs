//! Branches, calls, barriers, moves and comparisons.

use super::pick::Pick;
use super::{Decoder, Name, Result, tables};
use crate::decode::args::Arg;
use crate::exec::program::{Barrier, Class, Element, NONE, Op, Reduce, ReduceOp};
use crate::exec::registers::Code;
use crate::exec::windows::SHARED_BASE;

impl Decoder<'_> {
    pub(super) fn flow(&mut self, name: &Name<'_>) -> Result<()> {
        let op = match (name.base, self.current.args.first(), self.current.args.get(1)) {
            ("bra", Some(Arg::Label(label)), _) => Op::Branch(*label),
            ("brx", Some(index), Some(Arg::Table(table))) => {
                let row = self.source(index, Code::Word)?;
                Op::BranchTable(row, self.flat.tables[*table as usize].clone().into())
            }
            ("exit" | "ret", ..) => Op::Exit,
            ("trap" | "brkpt", ..) => Op::Trap(name.base.into()),
            ("call", Some(Arg::Extern(function)), _) => {
                Op::Trap(format!("call of `{function}`, which only a device serves").into())
            }
            _ => return self.unknown(),
        };
        self.emit(op, Class::Control);
        Ok(())
    }

    pub(super) fn barrier(&mut self, name: &Name<'_>) -> Result<()> {
        let is_aligned = name.base == "bar" || name.has("aligned");
        if name.has("cluster") {
            return self.unknown();
        }
        let mut index = 0;
        let mut reduce = None;
        if name.has("red") {
            let last = self.arg(self.num_args().saturating_sub(1))?;
            let Arg::Pred(pred, is_negated) = *last else {
                return self.error("a predicate expected");
            };
            let (what, code) = match name.kind() {
                "u32" => (ReduceOp::Popc, Code::Word),
                _ if name.has("and") => (ReduceOp::And, Code::Pred),
                _ => (ReduceOp::Or, Code::Pred),
            };
            let d = self.destination(self.arg(0)?, code)?;
            reduce = Some(Reduce { what, d, pred, is_negated });
            index = 1;
        } else if !name.has("sync") && !name.has("arrive") {
            return self.unknown();
        }
        let id = self.source(self.arg(index)?, Code::Word)?;
        let has_count = self.num_args() > index + 1 + usize::from(reduce.is_some());
        let count = if has_count { self.source(self.arg(index + 1)?, Code::Word)? } else { NONE };
        let barrier = Barrier { id, count, is_arrive: name.has("arrive"), is_aligned, reduce };
        self.emit(Op::Barrier(Box::new(barrier)), Class::Control);
        Ok(())
    }

    pub(super) fn mov(&mut self, name: &Name<'_>) -> Result<()> {
        let (to, from) = (self.arg(0)?, self.arg(1)?);
        match (to, from) {
            (_, Arg::Clock) => {
                let Arg::Register(register) = to else { return self.error("a register expected") };
                let element = Element {
                    row: self.rows[*register as usize],
                    is_wide: self.is_wide(*register),
                };
                self.emit(Op::Clock(element), Class::Control);
                Ok(())
            }
            (Arg::Vector(parts), _) => self.unpack(parts, from),
            (_, Arg::Vector(parts)) => self.pack(to, parts),
            _ => match tables::logic("mov", name.kind()) {
                Some(pick) => self.alu(pick, Class::Integer),
                None => self.unknown(),
            },
        }
    }

    /// `mov.b64 d, {low, high};`
    fn pack(&mut self, to: &Arg, parts: &[Arg]) -> Result<()> {
        let is_wide = matches!(to, Arg::Register(register) if self.is_wide(*register));
        let Some(pick) = packing(is_wide, parts.len()) else { return self.unknown() };
        let mut args = vec![to];
        args.extend(parts);
        self.alu_on(pick, &args, Class::Integer)
    }

    /// `mov.b64 {low, high}, a;`
    fn unpack(&mut self, parts: &[Arg], from: &Arg) -> Result<()> {
        let is_wide = match from {
            Arg::Register(register) => self.is_wide(*register),
            _ => parts.len() == 4 || parts.iter().any(|part| self.is_word(part)),
        };
        for (index, part) in parts.iter().enumerate() {
            if *part == Arg::Sink {
                continue;
            }
            let Some(pick) = unpacking(is_wide, parts.len(), index) else { return self.unknown() };
            self.alu_on(pick, &[part, from], Class::Integer)?;
        }
        Ok(())
    }

    fn is_word(&self, arg: &Arg) -> bool {
        matches!(arg, Arg::Register(register) if self.flat.registers[*register as usize].bytes() == 4)
    }

    pub(super) fn convert_address(&mut self, name: &Name<'_>) -> Result<()> {
        use crate::exec::registers::Lane;
        macro_rules! to {
            (|$a:ident| $body:expr) => {
                Pick::new(
                    |r, o, m| r.map1(o, m, |$a: u64| -> u64 { $body }),
                    &[<u64 as Lane>::CODE, <u64 as Lane>::CODE],
                )
            };
        }
        let is_shared = name.parts.iter().any(|part| part.starts_with("shared"));
        // All other spaces have generic addresses to begin with.
        let pick = match (is_shared, name.has("to"), name.kind()) {
            (true, false, "u64") => to!(|a| (a & 0xffff_ffff) | SHARED_BASE),
            (true, true, "u64") => to!(|a| a & 0xffff_ffff),
            (false, _, "u64") => to!(|a| a),
            _ => return self.unknown(),
        };
        self.alu(pick, Class::Integer)
    }
}

fn packing(is_wide: bool, num_parts: usize) -> Option<Pick> {
    use super::pick::pick;
    use crate::exec::registers::Lane;
    Some(match (is_wide, num_parts) {
        (false, 2) => pick!(|a: u32, b: u32| -> u32 { (a & 0xffff) | b << 16 }),
        (false, 4) => pick!(|a: u32, b: u32, c: u32, d: u32| -> u32 {
            (a & 0xff) | (b & 0xff) << 8 | (c & 0xff) << 16 | d << 24
        }),
        (true, 2) => pick!(|a: u32, b: u32| -> u64 { u64::from(a) | u64::from(b) << 32 }),
        (true, 4) => pick!(|a: u32, b: u32, c: u32, d: u32| -> u64 {
            u64::from(a & 0xffff | b << 16) | u64::from(c & 0xffff | d << 16) << 32
        }),
        _ => return None,
    })
}

fn unpacking(is_wide: bool, num_parts: usize, index: usize) -> Option<Pick> {
    use super::pick::pick;
    use crate::exec::registers::Lane;
    Some(match (is_wide, num_parts, index) {
        (false, 2, 0) => pick!(|a: u32| -> u32 { a & 0xffff }),
        (false, 2, 1) => pick!(|a: u32| -> u32 { a >> 16 }),
        (false, 4, 0) => pick!(|a: u32| -> u32 { a & 0xff }),
        (false, 4, 1) => pick!(|a: u32| -> u32 { a >> 8 & 0xff }),
        (false, 4, 2) => pick!(|a: u32| -> u32 { a >> 16 & 0xff }),
        (false, 4, 3) => pick!(|a: u32| -> u32 { a >> 24 }),
        (true, 2, 0) => pick!(|a: u64| -> u32 { a as u32 }),
        (true, 2, 1) => pick!(|a: u64| -> u32 { (a >> 32) as u32 }),
        (true, 4, 0) => pick!(|a: u64| -> u32 { a as u32 & 0xffff }),
        (true, 4, 1) => pick!(|a: u64| -> u32 { (a >> 16) as u32 & 0xffff }),
        (true, 4, 2) => pick!(|a: u64| -> u32 { (a >> 32) as u32 & 0xffff }),
        (true, 4, 3) => pick!(|a: u64| -> u32 { (a >> 48) as u32 & 0xffff }),
        _ => return None,
    })
}
