//! Where operands are: rows of registers, rows of constants, predicates.

use super::{Decoder, Result};
use crate::decode::args::{Arg, Base, Symbol};
use crate::exec::program::{Address, Class, Constant, Element, Op, Window};
use crate::exec::registers::Code;
use crate::exec::windows::{LOCAL_BASE, PARAM_BASE};

/// Rows with constants, after those of the registers.
pub(super) struct Constants {
    next: u32,
    pub(super) list: Vec<(u32, Constant)>,
}

impl Constants {
    pub(super) fn new(first_row: u32) -> Self {
        // Two rows to write what nobody wants.
        Self { next: first_row + 2, list: vec![] }
    }

    pub(super) fn num_rows(&self) -> u32 {
        self.next
    }

    /// Rows for a temporary value.
    fn rows(&mut self, count: u32) -> u32 {
        self.next += count;
        self.next - count
    }

    fn row(&mut self, constant: Constant) -> u32 {
        if let Some((row, _)) = self.list.iter().find(|(_, known)| *known == constant) {
            return *row;
        }
        let is_double = matches!(
            constant,
            Constant::Double(_) | Constant::Variable(..) | Constant::DynamicDouble(_)
        );
        let row = self.rows(1 + u32::from(is_double));
        self.list.push((row, constant));
        row
    }
}

impl Decoder<'_> {
    pub(super) fn is_wide(&self, register: u32) -> bool {
        self.flat.registers[register as usize].bytes() == 8
    }

    /// Rows that nobody reads.
    pub(super) fn scratch(&self) -> u32 {
        self.scratch
    }

    /// Where a result goes.
    pub(super) fn destination(&mut self, arg: &Arg, code: Code) -> Result<u32> {
        match (arg, code) {
            (Arg::Register(register), Code::Word | Code::Double) => {
                if self.is_wide(*register) != (code == Code::Double) {
                    return self.error("the register's width does not fit");
                }
                Ok(self.rows[*register as usize])
            }
            (Arg::Pred(pred, false), Code::Pred) => Ok(*pred),
            (Arg::Sink, Code::Pred) => Ok(self.new_pred()),
            (Arg::Sink, _) => Ok(self.scratch()),
            _ => self.error("a register expected"),
        }
    }

    /// Where an operand comes from; immediates become constant rows.
    pub(super) fn source(&mut self, arg: &Arg, code: Code) -> Result<u32> {
        let constant = match (arg, code) {
            (Arg::Register(register), Code::Word | Code::Double) => {
                if self.is_wide(*register) != (code == Code::Double) {
                    return self.error("the register's width does not fit");
                }
                return Ok(self.rows[*register as usize]);
            }
            (Arg::Pred(..) | Arg::Int(_), Code::Pred) => return self.pred(arg),
            (Arg::Int(value), Code::Word) => Constant::Word(*value as u32),
            (Arg::Int(value), Code::Double) => Constant::Double(*value),
            (Arg::Float32(bits), Code::Word) => Constant::Word(*bits),
            (Arg::Float64(bits), Code::Double) => Constant::Double(*bits),
            // A decimal number where a single is expected.
            (Arg::Float64(bits), Code::Word) => {
                Constant::Word((f64::from_bits(*bits) as f32).to_bits())
            }
            (Arg::Special(special), Code::Word) => Constant::Special(*special),
            (Arg::Special(special), Code::Double) => return self.widened(*special),
            (Arg::Symbol(symbol, offset), _) => {
                symbol_constant(*symbol, *offset, code == Code::Double)
            }
            _ => return self.error("unexpected operand"),
        };
        Ok(self.constants.row(constant))
    }

    /// A special register read as 64 bits.
    fn widened(&mut self, special: crate::decode::Special) -> Result<u32> {
        let from = self.constants.row(Constant::Special(special));
        let to = self.constants.rows(2);
        let Some(pick) = super::tables::quick_convert("u64.u32") else { return self.unknown() };
        self.emit_unguarded(Op::Alu(pick.function, [to, from, 0, 0, 0, 0]), Class::Integer);
        Ok(to)
    }

    pub(super) fn word_constant(&mut self, value: u32) -> u32 {
        self.constants.row(Constant::Word(value))
    }

    pub(super) fn double_constant(&mut self, value: u64) -> u32 {
        self.constants.row(Constant::Double(value))
    }

    /// A new row of 32 bits for a temporary value.
    pub(super) fn new_row(&mut self) -> u32 {
        self.constants.rows(1)
    }

    pub(super) fn new_pred(&mut self) -> u32 {
        self.num_preds += 1;
        self.num_preds - 1
    }

    /// A predicate that is read; a negated or constant one is computed first.
    pub(super) fn pred(&mut self, arg: &Arg) -> Result<u32> {
        match arg {
            Arg::Pred(pred, false) => Ok(*pred),
            Arg::Pred(pred, true) => {
                let negated = self.new_pred();
                let Some(not) = super::tables::logic("not", "pred") else { return self.unknown() };
                self.emit_unguarded(
                    Op::Alu(not.function, [negated, *pred, 0, 0, 0, 0]),
                    Class::Integer,
                );
                Ok(negated)
            }
            Arg::Int(value) => {
                let constant = self.new_pred();
                let name = if *value == 0 { "xor" } else { "not" };
                let Some(pick) = super::tables::logic(name, "pred") else { return self.unknown() };
                if *value != 0 {
                    // not (p xor p)
                    let Some(xor) = super::tables::logic("xor", "pred") else {
                        return self.unknown();
                    };
                    let slots = [constant, constant, constant, 0, 0, 0];
                    self.emit_unguarded(Op::Alu(xor.function, slots), Class::Integer);
                }
                let slots = [constant, constant, constant, 0, 0, 0];
                self.emit_unguarded(Op::Alu(pick.function, slots), Class::Integer);
                Ok(constant)
            }
            _ => self.error("a predicate expected"),
        }
    }

    /// Helpers of an instruction run for every lane: a guard may name what they compute.
    fn emit_unguarded(&mut self, op: Op, class: Class) {
        self.emit(op, class);
        if let Some(inst) = self.code.last_mut() {
            inst.guard = crate::exec::program::NONE;
        }
    }

    /// A register of a load, store or conversion; immediates are as wide as `bytes`.
    pub(super) fn element(&mut self, arg: &Arg, bytes: u32) -> Result<Element> {
        match arg {
            Arg::Register(register) => {
                Ok(Element { row: self.rows[*register as usize], is_wide: self.is_wide(*register) })
            }
            Arg::Sink => Ok(Element { row: self.scratch(), is_wide: bytes == 8 }),
            _ => {
                let code = if bytes == 8 { Code::Double } else { Code::Word };
                Ok(Element { row: self.source(arg, code)?, is_wide: bytes == 8 })
            }
        }
    }

    /// Rows of 32 bits of a vector's parts.
    pub(super) fn words(&mut self, arg: &Arg, writes: bool) -> Result<Vec<u32>> {
        let items = items(arg);
        items
            .into_iter()
            .map(|item| {
                if writes {
                    self.destination(item, Code::Word)
                } else {
                    self.source(item, Code::Word)
                }
            })
            .collect()
    }

    pub(super) fn address(&mut self, arg: &Arg, window: Window) -> Result<Address> {
        let Arg::Address(base, offset) = arg else {
            return self.error("an address expected");
        };
        let (row, is_wide, window, offset) = match base {
            Base::Register(register) => {
                (self.rows[*register as usize], self.is_wide(*register), window, *offset)
            }
            Base::Symbol(symbol) => {
                let is_wide = !matches!(symbol, Symbol::Shared(_) | Symbol::DynamicShared);
                let row = self.constants.row(symbol_constant(*symbol, 0, is_wide));
                // A call's argument is local, though the text says `.param`.
                let window =
                    if matches!(symbol, Symbol::Local(_)) { Window::Local } else { window };
                (row, is_wide, window, *offset)
            }
            Base::Absolute => (self.double_constant(0), true, window, *offset),
        };
        Ok(Address { window, row, is_wide, offset })
    }
}

/// The parts of a vector, or the operand alone.
pub(super) fn items(arg: &Arg) -> Vec<&Arg> {
    match arg {
        Arg::Vector(items) => items.iter().collect(),
        other => vec![other],
    }
}

/// What a symbol stands for where its address is taken: shared ones are offsets, all others generic
/// addresses.
fn symbol_constant(symbol: Symbol, offset: i64, is_double: bool) -> Constant {
    match symbol {
        Symbol::Variable(index) => Constant::Variable(index, offset),
        Symbol::Shared(start) if is_double => Constant::Double((i64::from(start) + offset) as u64),
        Symbol::Shared(start) => Constant::Word((i64::from(start) + offset) as u32),
        Symbol::DynamicShared if is_double => Constant::DynamicDouble(offset),
        Symbol::DynamicShared => Constant::Dynamic(offset),
        Symbol::Local(start) => {
            Constant::Double(LOCAL_BASE.wrapping_add_signed(i64::from(start) + offset))
        }
        Symbol::Param(start) => {
            Constant::Double(PARAM_BASE.wrapping_add_signed(i64::from(start) + offset))
        }
    }
}
