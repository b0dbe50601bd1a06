//! Atomic operations on global and shared memory.

use std::sync::atomic::Ordering;

use super::access::lanes;
use super::global;
use super::kernel::Stop;
use super::program::{Atomic, AtomicOp, AtomicType, Element, NONE};
use super::warp::{Env, Warp};
use crate::fault::{FaultKind, Space};
use crate::numbers::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};

impl AtomicType {
    fn bytes(self) -> u32 {
        match self {
            Self::U16 | Self::F16 | Self::Bf16 => 2,
            Self::U64 | Self::S64 | Self::F64 => 8,
            _ => 4,
        }
    }

    /// What the location becomes.
    fn apply(self, op: AtomicOp, old: u64, b: u64, c: u64) -> u64 {
        match op {
            AtomicOp::And => old & b,
            AtomicOp::Or => old | b,
            AtomicOp::Xor => old ^ b,
            AtomicOp::Exchange => b,
            AtomicOp::CompareExchange => {
                let mask = u64::MAX >> (64 - 8 * self.bytes());
                if old == b & mask { c } else { old }
            }
            AtomicOp::Inc => u64::from(if old as u32 >= b as u32 { 0 } else { old as u32 + 1 }),
            AtomicOp::Dec => {
                let is_reset = old as u32 == 0 || old as u32 > b as u32;
                u64::from(if is_reset { b as u32 } else { old as u32 - 1 })
            }
            AtomicOp::Add => self.add(old, b),
            AtomicOp::Min | AtomicOp::Max => {
                let takes_old = self.is_less(old, b) == (op == AtomicOp::Min);
                if takes_old { old } else { b }
            }
        }
    }

    fn add(self, old: u64, b: u64) -> u64 {
        let halves = |f: &dyn Fn(u32, u32) -> u32| {
            let low = f(old as u32 & 0xffff, b as u32 & 0xffff);
            let high = f(old as u32 >> 16, b as u32 >> 16);
            u64::from(low | high << 16)
        };
        let f16 = |a: u32, b: u32| f32_to_f16(f16_to_f32(a) + f16_to_f32(b));
        let bf16 = |a: u32, b: u32| f32_to_bf16(bf16_to_f32(a) + bf16_to_f32(b));
        match self {
            Self::F32 => {
                u64::from((f32::from_bits(old as u32) + f32::from_bits(b as u32)).to_bits())
            }
            Self::F64 => (f64::from_bits(old) + f64::from_bits(b)).to_bits(),
            Self::F16 => u64::from(f16(old as u32 & 0xffff, b as u32 & 0xffff)),
            Self::Bf16 => u64::from(bf16(old as u32 & 0xffff, b as u32 & 0xffff)),
            Self::F16x2 => halves(&f16),
            Self::Bf16x2 => halves(&bf16),
            _ => old.wrapping_add(b),
        }
    }

    fn is_less(self, a: u64, b: u64) -> bool {
        match self {
            Self::S32 => (a as i32) < b as i32,
            Self::S64 => (a as i64) < b as i64,
            Self::U64 => a < b,
            _ => (a as u32) < b as u32,
        }
    }
}

impl Warp {
    pub(crate) fn atomic(
        &mut self,
        env: &mut Env<'_>,
        atomic: &Atomic,
        active: u32,
        pc: u32,
    ) -> Result<(), Stop> {
        let addresses = atomic.address.all(&self.registers);
        let bytes = atomic.kind.bytes();
        if env.tally.counts_memory() {
            let len = bytes * atomic.elements.len() as u32;
            env.count(&atomic.address, &addresses, len, active, pc, true);
        }
        if atomic.order.releases() {
            env.publish();
        }
        let is_wide = bytes == 8;
        // Which lane comes first is not fixed.
        let mut order: Vec<usize> = lanes(active).collect();
        if env.kernel.options.hostile_schedule {
            env.random.shuffle(&mut order);
        }
        for lane in order {
            for (index, &[d, b, c]) in atomic.elements.iter().enumerate() {
                let value = |row: u32| {
                    if row == NONE {
                        0
                    } else {
                        Element { row, is_wide }.lane(&self.registers, lane)
                    }
                };
                let (b, c) = (value(b), value(c));
                let at = addresses[lane].wrapping_add(index as u64 * u64::from(bytes));
                let old = self.atomic_at(env, atomic, at, lane, b, c);
                let old = old.map_err(|what| Stop { lane: lane as u32, what })?;
                if d != NONE {
                    Element { row: d, is_wide }.set(&mut self.registers, lane, old);
                }
            }
        }
        Ok(())
    }

    fn atomic_at(
        &mut self,
        env: &mut Env<'_>,
        atomic: &Atomic,
        at: u64,
        lane: usize,
        b: u64,
        c: u64,
    ) -> Result<u64, FaultKind> {
        let bytes = atomic.kind.bytes();
        let apply = |old: u64| atomic.kind.apply(atomic.op, old, b, c);
        match atomic.address.resolve(at) {
            (Space::Global, at) => {
                if env.stores.holds(at) {
                    env.stores.release_line(env.kernel.memory, at);
                }
                let checks = env.kernel.options.check_uninitialized;
                let reads = checks && atomic.op != AtomicOp::Exchange;
                let place = global::place(env.kernel.memory, at, bytes, reads)?;
                if !reads {
                    // An exchange initializes; the value that it replaces is whatever was there.
                    let mut old = [0; 8];
                    place.read(&mut old[..bytes as usize]);
                    place.write(&old[..bytes as usize]);
                }
                Ok(fetch(place, bytes, apply))
            }
            (Space::Shared, at) => {
                let touch = self.touch(lane, true, true);
                let range = env.shared.read(at, bytes, touch)?;
                let mut old = [0; 8];
                old[..bytes as usize].copy_from_slice(&env.shared.data[range.clone()]);
                let old = u64::from_le_bytes(old);
                env.shared.data[range].copy_from_slice(&apply(old).to_le_bytes()[..bytes as usize]);
                Ok(old)
            }
            (space, address) => Err(FaultKind::OutOfBounds { space, address, len: bytes }),
        }
    }
}

/// Replaces the value at a place; returns the old one.
fn fetch(place: global::Place, bytes: u32, apply: impl Fn(u64) -> u64) -> u64 {
    const ORDER: Ordering = Ordering::SeqCst;
    let updated = match bytes {
        2 => {
            let new = |old| Some(apply(u64::from(old)) as u16);
            place.atomic16().fetch_update(ORDER, ORDER, new).map(u64::from).map_err(u64::from)
        }
        4 => {
            let new = |old| Some(apply(u64::from(old)) as u32);
            place.atomic32().fetch_update(ORDER, ORDER, new).map(u64::from).map_err(u64::from)
        }
        _ => place.atomic64().fetch_update(ORDER, ORDER, |old| Some(apply(old))),
    };
    updated.unwrap_or_else(|old| old)
}
