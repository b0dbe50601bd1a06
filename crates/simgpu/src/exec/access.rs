//! Loads and stores.

use super::global::{self, MAX_BYTES};
use super::kernel::Stop;
use super::program::{Access, Address, Element, Order, Window};
use super::races::Touch;
use super::registers::{LANES, Registers};
use super::warp::{Env, Warp};
use super::windows::{LOCAL_BASE, PARAM_BASE, SHARED_BASE, is_in};
use crate::fault::{FaultKind, Space};

/// Lanes of a mask, lowest first.
#[inline(always)]
pub(crate) fn lanes(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let lane = mask.trailing_zeros() as usize;
        mask &= mask - 1;
        Some(lane)
    })
}

impl Address {
    /// The address of every lane.
    #[inline]
    pub(crate) fn all(&self, registers: &Registers) -> [u64; LANES] {
        let offset = self.offset as u64;
        let mut addresses = [0; LANES];
        if self.is_wide {
            let bases = registers.get::<u64>(self.row);
            addresses
                .iter_mut()
                .zip(bases)
                .for_each(|(address, base)| *address = base.wrapping_add(offset));
        } else {
            let bases = registers.get::<u32>(self.row);
            let sum = |base: u32| u64::from(base.wrapping_add(offset as u32));
            addresses.iter_mut().zip(bases).for_each(|(address, &base)| *address = sum(base));
        }
        addresses
    }

    /// The memory that an address points to, and where in it.
    #[inline]
    pub(crate) fn resolve(&self, address: u64) -> (Space, u64) {
        match self.window {
            Window::Shared => (Space::Shared, address),
            Window::Local => (Space::Local, address.wrapping_sub(LOCAL_BASE)),
            Window::Param => (Space::Param, address),
            Window::Generic if is_in(address, SHARED_BASE) => {
                (Space::Shared, address - SHARED_BASE)
            }
            Window::Generic if is_in(address, LOCAL_BASE) => (Space::Local, address - LOCAL_BASE),
            Window::Generic if is_in(address, PARAM_BASE) => (Space::Param, address),
            Window::Global | Window::Generic => (Space::Global, address),
        }
    }
}

impl Order {
    pub(crate) fn is_strong(self) -> bool {
        self != Self::Weak
    }

    pub(crate) fn releases(self) -> bool {
        matches!(self, Self::Release | Self::AcquireRelease)
    }
}

#[inline(always)]
pub(crate) fn extend(bytes: &[u8], is_signed: bool) -> u64 {
    match *bytes {
        [a] if is_signed => i64::from(a as i8) as u64,
        [a] => u64::from(a),
        [a, b] if is_signed => i64::from(i16::from_le_bytes([a, b])) as u64,
        [a, b] => u64::from(u16::from_le_bytes([a, b])),
        [a, b, c, d] if is_signed => i64::from(i32::from_le_bytes([a, b, c, d])) as u64,
        [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => 0,
    }
}

impl Element {
    #[inline(always)]
    pub(crate) fn set(self, registers: &mut Registers, lane: usize, value: u64) {
        if self.is_wide {
            registers.get_mut::<u64>(self.row)[lane] = value;
        } else {
            registers.get_mut::<u32>(self.row)[lane] = value as u32;
        }
    }

    #[inline(always)]
    pub(crate) fn lane(self, registers: &Registers, lane: usize) -> u64 {
        if self.is_wide {
            registers.get::<u64>(self.row)[lane]
        } else {
            u64::from(registers.get::<u32>(self.row)[lane])
        }
    }
}

impl Warp {
    pub(crate) fn touch(&self, lane: usize, is_write: bool, is_strong: bool) -> Touch {
        Touch { thread: self.index * 32 + lane as u32, is_write, is_strong }
    }

    pub(crate) fn load(
        &mut self,
        env: &mut Env<'_>,
        access: &Access,
        active: u32,
        pc: u32,
    ) -> Result<(), Stop> {
        let addresses = access.address.all(&self.registers);
        let len = access.bytes as usize * access.elements.len();
        if access.address.window == Window::Param {
            return self.load_param(env, access, &addresses, len, active);
        }
        if env.tally.counts_memory() {
            env.count(&access.address, &addresses, len as u32, active, pc, false);
        }
        let is_global = matches!(access.address.window, Window::Global | Window::Generic);
        if active == u32::MAX && is_global && self.load_span(env, access, &addresses) {
            return Ok(());
        }
        let is_shared = access.address.window == Window::Shared;
        if active == u32::MAX && is_shared && self.load_shared_span(env, access, &addresses) {
            return Ok(());
        }
        if is_shared {
            match len {
                4 => return self.load_shared::<4>(env, access, &addresses, active),
                8 => return self.load_shared::<8>(env, access, &addresses, active),
                16 => return self.load_shared::<16>(env, access, &addresses, active),
                _ => {}
            }
        }
        let mut buffer = [0; MAX_BYTES];
        let bytes = &mut buffer[..len];
        for lane in lanes(active) {
            let touch = self.touch(lane, false, access.order.is_strong());
            self.read(env, &access.address, addresses[lane], bytes, touch)
                .map_err(|what| Stop { lane: lane as u32, what })?;
            for (element, part) in
                access.elements.iter().zip(bytes.chunks_exact(access.bytes as usize))
            {
                element.set(&mut self.registers, lane, extend(part, access.is_signed));
            }
        }
        Ok(())
    }

    /// Loads of one length from shared memory, lane by lane.
    fn load_shared<const N: usize>(
        &mut self,
        env: &mut Env<'_>,
        access: &Access,
        addresses: &[u64; LANES],
        active: u32,
    ) -> Result<(), Stop> {
        for lane in lanes(active) {
            let touch = self.touch(lane, false, access.order.is_strong());
            let bytes = env.shared.read_fixed::<N>(addresses[lane], touch);
            let bytes = bytes.map_err(|what| Stop { lane: lane as u32, what })?;
            for (element, part) in
                access.elements.iter().zip(bytes.chunks_exact(access.bytes as usize))
            {
                element.set(&mut self.registers, lane, extend(part, access.is_signed));
            }
        }
        Ok(())
    }

    /// Stores of one length to shared memory, lane by lane.
    fn store_shared<const N: usize>(
        &mut self,
        env: &mut Env<'_>,
        access: &Access,
        addresses: &[u64; LANES],
        active: u32,
    ) -> Result<(), Stop> {
        let size = access.bytes as usize;
        for lane in lanes(active) {
            let mut bytes = [0; N];
            for (element, part) in access.elements.iter().zip(bytes.chunks_exact_mut(size)) {
                let value = element.lane(&self.registers, lane).to_le_bytes();
                part.copy_from_slice(&value[..size]);
            }
            let touch = self.touch(lane, true, access.order.is_strong());
            let stored = env.shared.write_fixed(addresses[lane], bytes, touch);
            stored.map_err(|what| Stop { lane: lane as u32, what })?;
        }
        Ok(())
    }

    /// Parameters are most often read from one place by all lanes.
    fn load_param(
        &mut self,
        env: &mut Env<'_>,
        access: &Access,
        addresses: &[u64; LANES],
        len: usize,
        active: u32,
    ) -> Result<(), Stop> {
        let mut buffer = [0; MAX_BYTES];
        let mut last = None;
        for lane in lanes(active) {
            if last != Some(addresses[lane]) {
                let read = env.kernel.param(addresses[lane], &mut buffer[..len]);
                read.map_err(|what| Stop { lane: lane as u32, what })?;
                last = Some(addresses[lane]);
            }
            for (element, part) in
                access.elements.iter().zip(buffer.chunks_exact(access.bytes as usize))
            {
                element.set(&mut self.registers, lane, extend(part, access.is_signed));
            }
        }
        Ok(())
    }

    /// Reads one lane's bytes from whatever memory the address points to.
    #[inline]
    pub(crate) fn read(
        &mut self,
        env: &mut Env<'_>,
        address: &Address,
        at: u64,
        out: &mut [u8],
        touch: Touch,
    ) -> Result<(), FaultKind> {
        let checks = env.kernel.options.check_uninitialized;
        match address.resolve(at) {
            (Space::Global, at) => global::read(env.kernel.memory, &env.stores, at, out, checks),
            (Space::Shared, at) => {
                let range = env.shared.read(at, out.len() as u32, touch)?;
                out.copy_from_slice(&env.shared.data[range]);
                Ok(())
            }
            (Space::Local, at) => self.local.read((touch.thread % 32) as usize, at, out, checks),
            (Space::Param, at) => env.kernel.param(at, out),
        }
    }

    pub(crate) fn store(
        &mut self,
        env: &mut Env<'_>,
        access: &Access,
        active: u32,
        pc: u32,
    ) -> Result<(), Stop> {
        let addresses = access.address.all(&self.registers);
        let size = access.bytes as usize;
        let len = size * access.elements.len();
        if env.tally.counts_memory() {
            env.count(&access.address, &addresses, len as u32, active, pc, true);
        }
        if access.order.releases() {
            env.publish();
        }
        let is_late = env.is_late(access.order);
        let is_global = matches!(access.address.window, Window::Global | Window::Generic);
        if active == u32::MAX && is_global && self.store_span(env, access, &addresses, is_late) {
            return Ok(());
        }
        let is_shared = access.address.window == Window::Shared;
        if active == u32::MAX && is_shared && self.store_shared_span(env, access, &addresses) {
            return Ok(());
        }
        if is_shared {
            match len {
                4 => return self.store_shared::<4>(env, access, &addresses, active),
                8 => return self.store_shared::<8>(env, access, &addresses, active),
                16 => return self.store_shared::<16>(env, access, &addresses, active),
                _ => {}
            }
        }
        // Of lanes that write one place, any may win.
        let is_reversed = env.kernel.options.hostile_schedule && env.random.one_in(2);
        let mut buffer = [0; MAX_BYTES];
        let mut left = active;
        while left != 0 {
            let lane = if is_reversed { left.ilog2() } else { left.trailing_zeros() } as usize;
            left &= !(1 << lane);
            for (element, part) in access.elements.iter().zip(buffer.chunks_exact_mut(size)) {
                let value = element.lane(&self.registers, lane);
                part.copy_from_slice(&value.to_le_bytes()[..size]);
            }
            let touch = self.touch(lane, true, access.order.is_strong());
            let bytes = &buffer[..len];
            let stored = match access.address.resolve(addresses[lane]) {
                (Space::Global, at) => env.store_global(at, bytes, access.order, is_late),
                (Space::Shared, at) => env.shared.write(at, bytes, touch),
                (Space::Local, at) => self.local.write(lane, at, bytes),
                (Space::Param, address) => {
                    Err(FaultKind::OutOfBounds { space: Space::Param, address, len: len as u32 })
                }
            };
            stored.map_err(|what| Stop { lane: lane as u32, what })?;
        }
        Ok(())
    }
}

impl Env<'_> {
    /// Whether the plain stores of one instruction are held back.
    fn is_late(&mut self, order: Order) -> bool {
        self.kernel.options.late_stores && order == Order::Weak && {
            if self.stores.is_full() {
                self.stores.release_some(self.kernel.memory, &mut self.random);
            }
            self.random.one_in(2)
        }
    }

    fn store_global(
        &mut self,
        address: u64,
        bytes: &[u8],
        order: Order,
        is_late: bool,
    ) -> Result<(), FaultKind> {
        let place = global::place(self.kernel.memory, address, bytes.len() as u32, false)?;
        let holds = self.stores.holds(address);
        if is_late || (holds && order == Order::Weak) {
            self.stores.hold(address, bytes);
            return Ok(());
        }
        if holds {
            self.stores.release_line(self.kernel.memory, address);
        }
        place.write(bytes);
        Ok(())
    }

    /// A fence: everything that the block stored becomes visible.
    pub(crate) fn publish(&mut self) {
        self.stores.release_all(self.kernel.memory, &mut self.random);
    }

    /// Counts an access of the active lanes.
    pub(crate) fn count(
        &mut self,
        address: &Address,
        addresses: &[u64; LANES],
        len: u32,
        active: u32,
        pc: u32,
        is_write: bool,
    ) {
        let (mut global, mut shared) = (vec![], vec![]);
        for lane in lanes(active) {
            match address.resolve(addresses[lane]) {
                (Space::Global, at) => global.push((at, len)),
                (Space::Shared, at) => shared.push((at, len)),
                _ => {}
            }
        }
        if !global.is_empty() {
            self.count_global(pc, &global, is_write);
        }
        self.tally.shared(pc, &shared);
    }

    pub(crate) fn count_global(&mut self, pc: u32, accesses: &[(u64, u32)], is_write: bool) {
        let mut cache = self.cache.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.tally.global(pc, accesses, is_write, &mut cache);
    }
}
