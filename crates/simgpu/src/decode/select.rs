//! Chooses the operation of each instruction.

mod compare;
mod control;
mod convert;
mod float;
mod half;
mod integer;
mod logic;
mod memory;
mod pick;
mod set;
mod tables;
mod tensor;
mod value;
mod warp;

use crate::exec::program::{Class, Inst, NONE, Op, Program};
use crate::exec::registers::{Code, Slots};
use crate::fault::PtxError;
use crate::numbers::Rounding;
use pick::Pick;
pub(crate) use tables::has_features;

use super::args::{Arg, Flat, Resolved};
use super::rows;
use value::Constants;

pub(super) type Result<T> = std::result::Result<T, PtxError>;

/// A decoded kernel, and its most registers alive at once.
pub(crate) struct Decoded {
    pub(crate) program: Program,
    pub(crate) num_registers: u32,
}

/// Decodes a flattened kernel.
pub(crate) fn decode(flat: &Flat, source: &str) -> Result<Decoded> {
    let placed = rows::place(flat, 0);
    let mut decoder = Decoder {
        flat,
        source,
        rows: placed.rows,
        constants: Constants::new(placed.num_rows),
        scratch: placed.num_rows,
        num_preds: flat.num_preds,
        code: Vec::with_capacity(flat.code.len()),
        current: &flat.code[0],
    };
    let mut starts = Vec::with_capacity(flat.code.len() + 1);
    for instruction in &flat.code {
        starts.push(decoder.code.len() as u32);
        decoder.current = instruction;
        decoder.select()?;
    }
    starts.push(decoder.code.len() as u32 - 1);
    let target =
        |label: u32| flat.labels.get(label as usize).and_then(|&at| starts.get(at as usize));
    for inst in &mut decoder.code {
        match &mut inst.op {
            Op::Branch(label) => *label = target(*label).copied().unwrap_or(0),
            Op::BranchTable(_, labels) => {
                labels.iter_mut().for_each(|label| *label = target(*label).copied().unwrap_or(0));
            }
            _ => {}
        }
    }
    let align = flat.dynamic_align.max(16);
    let program = Program {
        num_rows: decoder.constants.num_rows(),
        num_preds: decoder.num_preds,
        constants: decoder.constants.list,
        code: decoder.code,
        shared_bytes: flat.shared_bytes,
        dynamic_offset: flat.shared_bytes.next_multiple_of(align),
        local_bytes: flat.local_bytes,
    };
    Ok(Decoded { program, num_registers: placed.num_rows })
}

pub(super) struct Decoder<'a> {
    flat: &'a Flat,
    source: &'a str,
    rows: Vec<u32>,
    constants: Constants,
    /// Two rows that nobody reads.
    scratch: u32,
    num_preds: u32,
    code: Vec<Inst>,
    current: &'a Resolved,
}

/// The dotted parts of an instruction's name.
pub(super) struct Name<'a> {
    pub(super) base: &'a str,
    pub(super) parts: Vec<&'a str>,
}

impl<'a> Name<'a> {
    fn new(name: &'a str) -> Self {
        let mut parts = name.split('.');
        let base = parts.next().unwrap_or_default();
        Self { base, parts: parts.collect() }
    }

    pub(super) fn has(&self, part: &str) -> bool {
        self.parts.contains(&part)
    }

    /// The last part, which is most often the type.
    pub(super) fn kind(&self) -> &'a str {
        self.parts.last().copied().unwrap_or_default()
    }

    /// Base and parts without those for which `drops` holds, and without the last.
    pub(super) fn without(&self, drops: impl Fn(&str) -> bool) -> String {
        let mut name = self.base.to_owned();
        let but_last = self.parts.len().saturating_sub(1);
        for part in self.parts[..but_last].iter().filter(|part| !drops(part)) {
            name.push('.');
            name.push_str(part);
        }
        name
    }
}

/// The rounding that a part names, for a floating-point result.
pub(super) fn rounding(part: &str) -> Option<Rounding> {
    Some(match part {
        "rn" => Rounding::Nearest,
        "rna" => Rounding::NearestAway,
        "rz" => Rounding::Zero,
        "rm" => Rounding::Down,
        "rp" => Rounding::Up,
        _ => return None,
    })
}

impl<'a> Decoder<'a> {
    pub(super) fn error<T>(&self, message: &str) -> Result<T> {
        let text = self.source[self.current.span.clone()].to_owned();
        Err(PtxError { line: self.current.line, message: message.to_owned(), text })
    }

    pub(super) fn unknown<T>(&self) -> Result<T> {
        self.error(&format!("unknown instruction `{}`", self.current.name))
    }

    /// Operand `index`.
    pub(super) fn arg(&self, index: usize) -> Result<&'a Arg> {
        match self.current.args.get(index) {
            Some(arg) => Ok(arg),
            None => self.error("too few operands"),
        }
    }

    pub(super) fn num_args(&self) -> usize {
        self.current.args.len()
    }

    pub(super) fn emit(&mut self, op: Op, class: Class) {
        let (guard, flip) = match self.current.guard {
            None => (NONE, 0),
            Some((pred, is_negated)) => (pred, if is_negated { u32::MAX } else { 0 }),
        };
        let span = &self.current.span;
        let (line, start, end) = (self.current.line, span.start as u32, span.end as u32);
        self.code.push(Inst { op, guard, flip, class, line, start, end });
    }

    fn select(&mut self) -> Result<()> {
        let current = self.current;
        let name = Name::new(&current.name);
        match name.base {
            "bra" | "brx" | "exit" | "ret" | "trap" | "brkpt" | "call" => self.flow(&name),
            "bar" if name.has("warp") => self.collective(&name),
            "bar" | "barrier" => self.barrier(&name),
            "membar" | "fence" => {
                // A fence among the block's own threads publishes nothing to other blocks.
                let is_local = ["cta", "proxy", "mbarrier_init"].iter().any(|part| name.has(part));
                self.emit(if is_local { Op::Nop } else { Op::Fence }, Class::Control);
                Ok(())
            }
            "nanosleep" => {
                self.emit(Op::Yield, Class::Control);
                Ok(())
            }
            "prefetch" | "prefetchu" | "discard" | "applypriority" | "createpolicy"
            | "griddepcontrol" | "setmaxnreg" | "pmevent" => {
                self.emit(Op::Nop, Class::Control);
                Ok(())
            }
            "ld" | "ldu" => self.load(&name),
            "st" => self.store(&name),
            "atom" | "red" => self.atomic(&name),
            "cp" => self.copy_async(&name),
            "shfl" => self.shuffle(&name),
            "vote" | "match" | "redux" | "elect" | "activemask" => self.collective(&name),
            "ldmatrix" | "stmatrix" | "movmatrix" => self.matrix(&name),
            "mma" => self.mma(&name),
            "setp" | "set" | "testp" | "isspacep" => self.compare(&name),
            "cvt" => self.convert(&name),
            "cvta" => self.convert_address(&name),
            "mov" => self.mov(&name),
            _ => self.arithmetic(&name),
        }
    }

    fn arithmetic(&mut self, name: &Name<'_>) -> Result<()> {
        if name.base == "lop3" {
            return self.lop3();
        }
        let (pick, class) = match name.kind() {
            "f32" => (float_pick(name, false), float_class(name)),
            "f64" => (float_pick(name, true), float_class(name)),
            "f16" | "f16x2" | "bf16" | "bf16x2" => {
                let op = name.without(|part| matches!(part, "rn" | "ftz"));
                let pick = tables::half(&op, name.kind()).or_else(|| logic_pick(name));
                (pick, float_class(name))
            }
            _ => (integer_pick(name), Class::Integer),
        };
        match pick {
            Some(pick) => self.alu(pick, class),
            None => self.unknown(),
        }
    }

    /// Emits a pure operation on the operands in order.
    fn alu(&mut self, pick: Pick, class: Class) -> Result<()> {
        if self.num_args() != pick.codes.len() {
            return self.error(&format!("{} operands expected", pick.codes.len()));
        }
        let mut slots: Slots = [0; 6];
        for (index, code) in pick.codes.iter().enumerate() {
            let arg = self.arg(index)?;
            slots[index] =
                if index == 0 { self.destination(arg, *code)? } else { self.source(arg, *code)? };
        }
        self.emit(Op::Alu(pick.function, slots), class);
        Ok(())
    }

    /// Emits a pure operation on operands that are given.
    fn alu_on(&mut self, pick: Pick, args: &[&Arg], class: Class) -> Result<()> {
        let mut slots: Slots = [0; 6];
        for (index, (arg, code)) in args.iter().zip(pick.codes).enumerate() {
            slots[index] =
                if index == 0 { self.destination(arg, *code)? } else { self.source(arg, *code)? };
        }
        self.emit(Op::Alu(pick.function, slots), class);
        Ok(())
    }

    fn lop3(&mut self) -> Result<()> {
        let Some(pick) = tables::logic("lop3", "b32") else { return self.unknown() };
        let Arg::Int(table) = self.arg(4)? else { return self.error("a table expected") };
        let mut slots: Slots = [0; 6];
        slots[0] = self.destination(self.arg(0)?, Code::Word)?;
        for (index, slot) in slots.iter_mut().enumerate().take(4).skip(1) {
            *slot = self.source(self.arg(index)?, Code::Word)?;
        }
        slots[4] = *table as u32;
        self.emit(Op::Alu(pick.function, slots), Class::Integer);
        Ok(())
    }
}

fn float_class(name: &Name<'_>) -> Class {
    if matches!(name.base, "fma" | "mad") { Class::FloatMac } else { Class::Float }
}

fn float_pick(name: &Name<'_>, is_double: bool) -> Option<Pick> {
    let mode = name.parts.iter().find_map(|part| rounding(part)).unwrap_or(Rounding::Nearest);
    let drops = |part: &str| matches!(part, "ftz" | "sat") || rounding(part).is_some();
    let op = name.without(drops);
    let picked = if is_double {
        tables::double(&op, mode)
    } else {
        tables::single(&op, mode, name.has("ftz"), name.has("sat"))
    };
    picked.or_else(|| logic_pick(name))
}

fn integer_pick(name: &Name<'_>) -> Option<Pick> {
    let op = if name.base == "slct" { "slct".to_owned() } else { name.without(|_| false) };
    tables::integer(&op, name.kind()).or_else(|| logic_pick(name))
}

fn logic_pick(name: &Name<'_>) -> Option<Pick> {
    // The mode of `prmt` comes after its type.
    if name.base == "prmt" && name.parts.len() == 2 {
        return tables::logic(&format!("prmt.{}", name.parts[1]), name.parts[0]);
    }
    tables::logic(&name.without(|_| false), name.kind())
}
