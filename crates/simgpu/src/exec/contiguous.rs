//! Accesses of a whole warp to one range of memory: the usual case, in one piece.

use super::global::{self, MAX_BYTES};
use super::program::{Access, Element, Order};
use super::registers::{LANES, Registers};
use super::warp::{Env, Warp};
use super::windows::{LOCAL_BASE, SHARED_BASE};

/// Most bytes of a warp's access.
const MAX_SPAN: usize = LANES * MAX_BYTES;

/// Whether the addresses follow each other, `len` bytes apart, outside of the windows of other spaces.
#[inline]
fn is_contiguous(addresses: &[u64; LANES], len: u64) -> bool {
    let first = addresses[0];
    let mut differences = 0;
    for (lane, address) in addresses.iter().enumerate() {
        differences |= address ^ first.wrapping_add(lane as u64 * len);
    }
    // No device address is below the windows.
    differences == 0 && first > LOCAL_BASE.max(SHARED_BASE)
}

/// The same for offsets in shared memory.
#[inline]
fn is_contiguous_shared(addresses: &[u64; LANES], len: u64) -> bool {
    let first = addresses[0];
    let mut differences = 0;
    for (lane, address) in addresses.iter().enumerate() {
        differences |= address ^ (first.wrapping_add(lane as u64 * len));
    }
    differences == 0
}

impl Warp {
    /// Loads if the lanes read one range that can be read; otherwise nothing happened.
    pub(crate) fn load_span(
        &mut self,
        env: &Env<'_>,
        access: &Access,
        addresses: &[u64; LANES],
    ) -> bool {
        let len = access.bytes as usize * access.elements.len();
        let checks = env.kernel.options.check_uninitialized;
        let first = addresses[0];
        if addresses.iter().all(|&address| address == first) {
            return self.load_same(env, access, first, len);
        }
        if !is_contiguous(addresses, len as u64) || env.stores.holds_any(first, LANES * len) {
            return false;
        }
        let Some(place) = global::span(env.kernel.memory, first, LANES * len, checks) else {
            return false;
        };
        let mut buffer = [0; MAX_SPAN];
        let bytes = &mut buffer[..LANES * len];
        place.read(bytes);
        scatter_all(&mut self.registers, access, bytes)
    }

    /// The same in shared memory.
    pub(crate) fn load_shared_span(
        &mut self,
        env: &mut Env<'_>,
        access: &Access,
        addresses: &[u64; LANES],
    ) -> bool {
        let len = access.bytes as usize * access.elements.len();
        if !is_contiguous_shared(addresses, len as u64) {
            return false;
        }
        let touch = self.touch(0, false, access.order.is_strong());
        let Some(bytes) = env.shared.read_span(addresses[0], len as u32, touch) else {
            return false;
        };
        scatter_all(&mut self.registers, access, bytes)
    }

    /// The same in shared memory.
    pub(crate) fn store_shared_span(
        &mut self,
        env: &mut Env<'_>,
        access: &Access,
        addresses: &[u64; LANES],
    ) -> bool {
        let len = access.bytes as usize * access.elements.len();
        if !is_contiguous_shared(addresses, len as u64) {
            return false;
        }
        let touch = self.touch(0, true, access.order.is_strong());
        let Some(bytes) = env.shared.write_span(addresses[0], len as u32, touch) else {
            return false;
        };
        gather_all(&self.registers, access, bytes)
    }

    /// All lanes read the same bytes.
    fn load_same(&mut self, env: &Env<'_>, access: &Access, address: u64, len: usize) -> bool {
        let checks = env.kernel.options.check_uninitialized;
        let mut buffer = [0; MAX_BYTES];
        let bytes = &mut buffer[..len];
        if address <= LOCAL_BASE.max(SHARED_BASE)
            || global::read(env.kernel.memory, &env.stores, address, bytes, checks).is_err()
        {
            return false;
        }
        for (element, part) in access.elements.iter().zip(bytes.chunks_exact(access.bytes as usize))
        {
            let value = super::access::extend(part, access.is_signed);
            if element.is_wide {
                *self.registers.get_mut::<u64>(element.row) = [value; LANES];
            } else {
                *self.registers.get_mut::<u32>(element.row) = [value as u32; LANES];
            }
        }
        true
    }

    /// Stores if the lanes write one range that can be written; otherwise nothing happened.
    pub(crate) fn store_span(
        &mut self,
        env: &mut Env<'_>,
        access: &Access,
        addresses: &[u64; LANES],
        is_late: bool,
    ) -> bool {
        let len = access.bytes as usize * access.elements.len();
        let first = addresses[0];
        if access.order != Order::Weak || !is_contiguous(addresses, len as u64) {
            return false;
        }
        let is_held = env.stores.holds_any(first, LANES * len);
        let Some(place) = global::span(env.kernel.memory, first, LANES * len, false) else {
            return false;
        };
        let mut buffer = [0; MAX_SPAN];
        let bytes = &mut buffer[..LANES * len];
        if !gather_all(&self.registers, access, bytes) {
            return false;
        }
        if is_late || is_held {
            env.stores.hold_span(first, bytes);
        } else {
            place.write(bytes);
        }
        true
    }
}

/// Fills the registers of a load; false if nobody wrote this shape down.
fn scatter_all(registers: &mut Registers, access: &Access, bytes: &[u8]) -> bool {
    match (access.bytes, access.elements.len()) {
        (4, 1) => scatter::<4, 4>(registers, access, bytes),
        (4, 2) => scatter::<4, 8>(registers, access, bytes),
        (4, 4) => scatter::<4, 16>(registers, access, bytes),
        (2, 1) => scatter::<2, 2>(registers, access, bytes),
        (1, 1) => scatter::<1, 1>(registers, access, bytes),
        (8, 1) => scatter::<8, 8>(registers, access, bytes),
        (8, 2) => scatter::<8, 16>(registers, access, bytes),
        _ => return false,
    }
    true
}

/// Collects the registers of a store; false if nobody wrote this shape down.
fn gather_all(registers: &Registers, access: &Access, bytes: &mut [u8]) -> bool {
    match (access.bytes, access.elements.len()) {
        (4, 1) => gather::<4, 4>(registers, access, bytes),
        (4, 2) => gather::<4, 8>(registers, access, bytes),
        (4, 4) => gather::<4, 16>(registers, access, bytes),
        (2, 1) => gather::<2, 2>(registers, access, bytes),
        (8, 1) => gather::<8, 8>(registers, access, bytes),
        (8, 2) => gather::<8, 16>(registers, access, bytes),
        _ => return false,
    }
    true
}

/// Puts the bytes of each lane, `STEP` apart, into the registers of a load.
#[inline(always)]
fn scatter<const SIZE: usize, const STEP: usize>(
    registers: &mut Registers,
    access: &Access,
    bytes: &[u8],
) {
    for (index, &Element { row, is_wide }) in access.elements.iter().enumerate() {
        let value = |lane: &[u8]| {
            super::access::extend(&lane[index * SIZE..(index + 1) * SIZE], access.is_signed)
        };
        let lanes = bytes.chunks_exact(STEP);
        if is_wide {
            let row = registers.get_mut::<u64>(row);
            row.iter_mut().zip(lanes).for_each(|(target, lane)| *target = value(lane));
        } else {
            let row = registers.get_mut::<u32>(row);
            row.iter_mut().zip(lanes).for_each(|(target, lane)| *target = value(lane) as u32);
        }
    }
}

/// Collects the bytes of each lane, `STEP` apart, from the registers of a store.
#[inline(always)]
fn gather<const SIZE: usize, const STEP: usize>(
    registers: &Registers,
    access: &Access,
    bytes: &mut [u8],
) {
    for (index, &Element { row, is_wide }) in access.elements.iter().enumerate() {
        let lanes =
            bytes.chunks_exact_mut(STEP).map(|lane| &mut lane[index * SIZE..(index + 1) * SIZE]);
        if is_wide {
            let row = registers.get::<u64>(row);
            lanes
                .zip(row)
                .for_each(|(part, value)| part.copy_from_slice(&value.to_le_bytes()[..SIZE]));
        } else {
            let row = registers.get::<u32>(row);
            let value = |value: &u32| u64::from(*value).to_le_bytes();
            lanes.zip(row).for_each(|(part, word)| part.copy_from_slice(&value(word)[..SIZE]));
        }
    }
}
