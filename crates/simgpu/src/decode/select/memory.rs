//! Loads, stores, atomics and asynchronous copies.

use super::value::items;
use super::{Decoder, Name, Result};
use crate::decode::args::Arg;
use crate::exec::program::{
    Access, Atomic, AtomicOp, AtomicType, Class, CopyAsync, NONE, Op, Order, Window,
};
use crate::exec::registers::Code;
use crate::ptx::Scalar;

/// The memory that a name's parts say.
fn window(name: &Name<'_>) -> Window {
    for part in &name.parts {
        match part.split("::").next().unwrap_or_default() {
            "global" | "const" => return Window::Global,
            "shared" => return Window::Shared,
            "local" => return Window::Local,
            "param" => return Window::Param,
            _ => {}
        }
    }
    Window::Generic
}

fn class(window: Window) -> Class {
    match window {
        Window::Generic | Window::Global => Class::Global,
        Window::Shared => Class::Shared,
        Window::Local => Class::Local,
        Window::Param => Class::Param,
    }
}

fn order(name: &Name<'_>) -> Order {
    if name.has("acq_rel") {
        Order::AcquireRelease
    } else if name.has("acquire") {
        Order::Acquire
    } else if name.has("release") {
        Order::Release
    } else if name.has("relaxed") || name.has("volatile") || name.has("mmio") {
        Order::Relaxed
    } else {
        Order::Weak
    }
}

impl Decoder<'_> {
    pub(super) fn load(&mut self, name: &Name<'_>) -> Result<()> {
        let access = self.access(name, 0, 1)?;
        let class = class(access.address.window);
        self.emit(Op::Load(Box::new(access)), class);
        Ok(())
    }

    pub(super) fn store(&mut self, name: &Name<'_>) -> Result<()> {
        if name.has("async") {
            return self.unknown();
        }
        let access = self.access(name, 1, 0)?;
        let class = class(access.address.window);
        self.emit(Op::Store(Box::new(access)), class);
        Ok(())
    }

    fn access(&mut self, name: &Name<'_>, data: usize, address: usize) -> Result<Access> {
        let Some(scalar) = Scalar::parse(name.kind()).filter(|scalar| scalar.bytes() <= 8) else {
            return self.unknown();
        };
        let bytes = scalar.bytes();
        let address = self.address(self.arg(address)?, window(name))?;
        let items = items(self.arg(data)?);
        let elements: Result<Vec<_>> =
            items.into_iter().map(|item| self.element(item, bytes)).collect();
        let elements = elements?;
        let expected = if name.has("v2") {
            2
        } else if name.has("v4") {
            4
        } else if name.has("v8") {
            8
        } else {
            1
        };
        if elements.len() != expected {
            return self.error("the vector's length does not fit");
        }
        let is_signed = matches!(scalar, Scalar::Signed(_));
        Ok(Access { address, bytes, is_signed, order: order(name), elements })
    }

    pub(super) fn atomic(&mut self, name: &Name<'_>) -> Result<()> {
        let is_atom = name.base == "atom";
        let op = name.parts.iter().find_map(|part| atomic_op(part));
        // Vector forms are written with the type before the operation, too.
        let kind = name.parts.iter().rev().find_map(|part| atomic_type(part));
        let (Some(op), Some(kind)) = (op, kind) else {
            return self.unknown();
        };
        if name.has("async") || name.has("b128") {
            return self.unknown();
        }
        let code = match kind {
            AtomicType::U64 | AtomicType::S64 | AtomicType::F64 => Code::Double,
            _ => Code::Word,
        };
        let first = usize::from(is_atom);
        let address = self.address(self.arg(first)?, window(name))?;
        let sources = items(self.arg(first + 1)?);
        let targets = if is_atom { items(self.arg(0)?) } else { vec![] };
        let mut elements = vec![];
        for (index, source) in sources.into_iter().enumerate() {
            let d = match targets.get(index) {
                Some(Arg::Sink) | None => NONE,
                Some(target) => self.destination(target, code)?,
            };
            let b = self.source(source, code)?;
            let c = if op == AtomicOp::CompareExchange {
                self.source(self.arg(first + 2)?, code)?
            } else {
                NONE
            };
            elements.push([d, b, c]);
        }
        // Without a word about order, atomics are relaxed.
        let order = if order(name) == Order::Weak { Order::Relaxed } else { order(name) };
        let class = class(address.window);
        self.emit(Op::Atomic(Box::new(Atomic { op, kind, address, order, elements })), class);
        Ok(())
    }

    pub(super) fn copy_async(&mut self, name: &Name<'_>) -> Result<()> {
        if name.parts.first() != Some(&"async") || name.has("bulk") || name.has("mbarrier") {
            return self.unknown();
        }
        match name.parts.get(1) {
            Some(&"commit_group") => self.emit(Op::CommitCopies, Class::Control),
            Some(&"wait_all") => self.emit(Op::WaitCopies(NONE), Class::Control),
            Some(&"wait_group") => {
                let Arg::Int(count) = self.arg(0)? else { return self.error("a number expected") };
                self.emit(Op::WaitCopies(*count as u32), Class::Control);
            }
            _ => {
                let to = self.address(self.arg(0)?, Window::Shared)?;
                let from = self.address(self.arg(1)?, Window::Global)?;
                let Arg::Int(bytes) = *self.arg(2)? else { return self.error("a size expected") };
                let is_allowed = bytes == 16 || (name.has("ca") && matches!(bytes, 4 | 8));
                if !is_allowed {
                    return self.error("this size cannot be copied");
                }
                let has_policy = name.parts.iter().any(|part| part.ends_with("cache_hint"));
                let (mut size, mut ignore) = (NONE, (NONE, false));
                if self.num_args() > 3 + usize::from(has_policy) {
                    match self.arg(3)? {
                        Arg::Pred(pred, is_negated) => ignore = (*pred, *is_negated),
                        other => size = self.source(other, Code::Word)?,
                    }
                }
                let copy = CopyAsync { to, from, bytes: bytes as u32, size, ignore };
                self.emit(Op::CopyAsync(Box::new(copy)), Class::Global);
            }
        }
        Ok(())
    }
}

fn atomic_op(part: &str) -> Option<AtomicOp> {
    Some(match part {
        "add" => AtomicOp::Add,
        "and" => AtomicOp::And,
        "or" => AtomicOp::Or,
        "xor" => AtomicOp::Xor,
        "min" => AtomicOp::Min,
        "max" => AtomicOp::Max,
        "inc" => AtomicOp::Inc,
        "dec" => AtomicOp::Dec,
        "exch" => AtomicOp::Exchange,
        "cas" => AtomicOp::CompareExchange,
        _ => return None,
    })
}

fn atomic_type(kind: &str) -> Option<AtomicType> {
    Some(match kind {
        "b16" => AtomicType::U16,
        "b32" | "u32" => AtomicType::U32,
        "s32" => AtomicType::S32,
        "b64" | "u64" => AtomicType::U64,
        "s64" => AtomicType::S64,
        "f32" => AtomicType::F32,
        "f64" => AtomicType::F64,
        "f16" => AtomicType::F16,
        "f16x2" => AtomicType::F16x2,
        "bf16" => AtomicType::Bf16,
        "bf16x2" => AtomicType::Bf16x2,
        _ => return None,
    })
}
