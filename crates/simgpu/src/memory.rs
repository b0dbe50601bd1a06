//! A device's global memory: allocations with guard zones, and a shadow byte for every byte.

mod allocator;
mod reservation;
mod shadow;

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use allocator::Allocator;
use reservation::Reservation;
use shadow::Shadow;
use thiserror::Error;

/// Shadow bit of a byte that belongs to an allocation.
pub(crate) const ALLOCATED: u8 = 1;
/// Shadow bit of a byte that has been written.
const WRITTEN: u8 = 2;
/// Shadow of a byte that may be read.
pub(crate) const INITIALIZED: u8 = ALLOCATED | WRITTEN;

/// Device addresses start here: no user-space pointer of an x86-64 or aarch64 host is this high, so
/// a host pointer handed to a device is never valid by accident.
const FIRST_ADDRESS: u64 = 1 << 48;
/// Every device has addresses of its own, so that one's pointer is out of bounds on another.
const ADDRESSES_PER_DEVICE: u64 = 1 << 43;

static NUM_DEVICES: AtomicU64 = AtomicU64::new(0);

/// What is wrong with an access to a device's memory.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MemoryError {
    /// No room is left.
    #[error("out of memory: {requested} bytes requested, {free} of {capacity} free")]
    OutOfMemory {
        /// Bytes asked for.
        requested: u64,
        /// Bytes not allocated.
        free: u64,
        /// Bytes of the device.
        capacity: u64,
    },
    /// The bytes are not all inside one allocation.
    #[error("{len} bytes at {address:#x} are not allocated")]
    OutOfBounds {
        /// First byte of the access.
        address: u64,
        /// Its length.
        len: u64,
    },
    /// Not the start of an allocation.
    #[error("{address:#x} is not the start of an allocation")]
    NotAllocated {
        /// What was to be freed.
        address: u64,
    },
    /// A byte was never written.
    #[error("the byte at {address:#x} was never written")]
    Uninitialized {
        /// The first such byte.
        address: u64,
    },
}

/// A device's global memory. Threads share it; racing accesses are the device program's business, as
/// on hardware.
#[derive(Debug)]
pub struct Memory {
    capacity: u64,
    base: u64,
    data: Reservation,
    shadow: Shadow,
    allocator: Mutex<Allocator>,
}

impl Memory {
    /// Memory of `capacity` bytes. Pages are taken from the host when first written.
    ///
    /// # Panics
    ///
    /// When the host has no address space left.
    pub fn new(capacity: u64) -> Self {
        // Room for guard zones, and for freed ranges to rest before they are used again.
        let span = (capacity * 2 + (64 << 20)).next_multiple_of(1 << 16);
        assert!(span < ADDRESSES_PER_DEVICE, "a device of {capacity} bytes is too large");
        let device = NUM_DEVICES.fetch_add(1, Ordering::Relaxed) % 1024;
        Self {
            capacity,
            base: FIRST_ADDRESS + device * ADDRESSES_PER_DEVICE,
            data: Reservation::new(span as usize),
            shadow: Shadow::new(span),
            allocator: Mutex::new(Allocator::new(capacity, span)),
        }
    }

    /// Bytes of the device.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Bytes not allocated.
    pub fn free_bytes(&self) -> u64 {
        self.allocator().free_bytes()
    }

    /// Allocates `len` bytes, at least one, aligned to 256, uninitialized, with guard zones around.
    pub fn allocate(&self, len: u64) -> Result<u64, MemoryError> {
        let len = len.max(1);
        let offset = self.allocator().allocate(len)?;
        self.shadow.allocate(offset, len);
        Ok(self.base + offset)
    }

    /// Frees the allocation that starts at `address`.
    pub fn free(&self, address: u64) -> Result<(), MemoryError> {
        let not_allocated = MemoryError::NotAllocated { address };
        let offset = address.checked_sub(self.base).ok_or(not_allocated.clone())?;
        let mut allocator = self.allocator();
        let len = allocator.free(offset).ok_or(not_allocated)?;
        // Under the lock: the next owner's shadow must not be overwritten.
        self.shadow.free(offset, len);
        self.data.discard(offset as usize, len as usize);
        Ok(())
    }

    /// Start and length of the allocation that holds `address`.
    pub fn allocation(&self, address: u64) -> Option<(u64, u64)> {
        let (offset, len) = self.allocator().containing(address.checked_sub(self.base)?)?;
        Some((self.base + offset, len))
    }

    /// Writes bytes, which are then initialized.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let offset = self.check(address, bytes.len() as u64)?;
        // SAFETY: `check` found the range inside an allocation, hence inside the reservation.
        unsafe { self.data.at(offset as usize).copy_from(bytes.as_ptr(), bytes.len()) };
        self.shadow.mark(offset, bytes.len() as u64, INITIALIZED);
        Ok(())
    }

    /// Reads bytes. The host may read what was never written (it may copy a whole buffer of which a
    /// kernel filled a part); kernels may not.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        let offset = self.check(address, out.len() as u64)?;
        // SAFETY: as in `write`.
        unsafe { self.data.at(offset as usize).copy_to(out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    /// The first byte of the range that was never written, if there is one.
    pub fn first_uninitialized(&self, address: u64, len: u64) -> Result<Option<u64>, MemoryError> {
        let offset = self.check(address, len)?;
        self.shadow.touch(offset, len);
        let found = (0..len).find(|&i| self.shadow_byte(offset + i) != INITIALIZED);
        Ok(found.map(|i| address + i))
    }

    /// Fills `len` bytes with repetitions of `pattern` (1, 2 or 4 bytes, as the driver has them).
    pub fn fill(&self, address: u64, len: u64, pattern: &[u8]) -> Result<(), MemoryError> {
        let offset = self.check(address, len)?;
        // SAFETY: as in `write`.
        unsafe {
            match *pattern {
                [byte] => self.data.at(offset as usize).write_bytes(byte, len as usize),
                _ => {
                    for (i, value) in (offset..offset + len).zip(pattern.iter().cycle()) {
                        self.data.at(i as usize).write(*value);
                    }
                }
            }
        }
        self.shadow.mark(offset, len, INITIALIZED);
        Ok(())
    }

    /// Copies inside the device; bytes that were never written stay so.
    pub fn copy(&self, to: u64, from: u64, len: u64) -> Result<(), MemoryError> {
        self.copy_from(to, self, from, len)
    }

    /// Copies from another device (or this one); bytes that were never written stay so.
    pub fn copy_from(
        &self,
        to: u64,
        other: &Memory,
        from: u64,
        len: u64,
    ) -> Result<(), MemoryError> {
        let source = other.check(from, len)?;
        let target = self.check(to, len)?;
        other.shadow.touch(source, len);
        self.shadow.touch(target, len);
        // SAFETY: both ranges are inside allocations; `copy_from` allows them to overlap.
        unsafe {
            let data = other.data.at(source as usize);
            self.data.at(target as usize).copy_from(data, len as usize);
            self.shadow.at(target).copy_from(other.shadow.at(source), len as usize);
        }
        Ok(())
    }

    /// Where the device's memory starts, as an offset into the reservation; whole range allocated.
    fn check(&self, address: u64, len: u64) -> Result<u64, MemoryError> {
        let out = MemoryError::OutOfBounds { address, len };
        let offset = address.checked_sub(self.base).ok_or(out.clone())?;
        if len == 0 {
            return Ok(offset.min(self.data.len() as u64));
        }
        let (start, size) = self.allocator().containing(offset).ok_or(out.clone())?;
        if len > start + size - offset { Err(out) } else { Ok(offset) }
    }

    fn allocator(&self) -> MutexGuard<'_, Allocator> {
        self.allocator.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shadow_byte(&self, offset: u64) -> u8 {
        // SAFETY: callers pass offsets inside allocations; an atomic byte has no alignment.
        unsafe { AtomicU8::from_ptr(self.shadow.at(offset)) }.load(Ordering::Relaxed)
    }

    /// Pointers to the data and the shadow of `len` bytes at `address`, when these lie inside the
    /// reservation; the shadow says whether they are allocated.
    #[inline]
    pub(crate) fn pointers(&self, address: u64, len: u64) -> Option<(*mut u8, *mut u8)> {
        let offset = address.wrapping_sub(self.base);
        if offset >= self.data.len() as u64 || offset + len > self.data.len() as u64 {
            return None;
        }
        // SAFETY: the offset was just found inside both reservations, which have the same length.
        Some(unsafe { (self.data.at(offset as usize), self.shadow.at(offset)) })
    }

    /// Gives the shadow of bytes that lie inside the reservation its final form, if it was put off.
    #[cold]
    pub(crate) fn touch_shadow(&self, address: u64, len: u64) {
        self.shadow.touch(address.wrapping_sub(self.base), len);
    }
}
