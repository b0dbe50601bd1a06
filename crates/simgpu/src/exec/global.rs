//! Global memory as a block sees it: checks by the shadow, and its own late stores.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::stores::Stores;
use crate::fault::{FaultKind, Space};
use crate::memory::{ALLOCATED, INITIALIZED, Memory};

/// Most bytes of one thread's access.
pub(crate) const MAX_BYTES: usize = 32;

const SPACE: Space = Space::Global;

/// Pointers to data and shadow that a check found allocated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    data: *mut u8,
    shadow: *mut u8,
}

/// Finds the bytes of an access, which must be aligned to its length, allocated, and for reads
/// written before.
#[inline]
pub(crate) fn place(
    memory: &Memory,
    address: u64,
    len: u32,
    reads: bool,
) -> Result<Place, FaultKind> {
    if address & u64::from(len - 1) != 0 {
        return Err(FaultKind::Misaligned { space: SPACE, address, len });
    }
    let out = FaultKind::OutOfBounds { space: SPACE, address, len };
    let Some((data, shadow)) = memory.pointers(address, u64::from(len)) else {
        return Err(out);
    };
    let place = Place { data, shadow };
    if !place.has(len, ALLOCATED) {
        memory.touch_shadow(address, u64::from(len));
        if !place.has(len, ALLOCATED) {
            return Err(out);
        }
    }
    if reads && !place.has(len, INITIALIZED) {
        return Err(FaultKind::Uninitialized { space: SPACE, address, len });
    }
    Ok(place)
}

impl Place {
    /// Whether all bytes' shadows have the bits.
    #[inline]
    fn has(self, len: u32, bits: u8) -> bool {
        let wide = u64::from(bits) * 0x0101_0101_0101_0101;
        // SAFETY: `place` found `len` bytes inside the reservation, whose shadow is aligned alike; `len`
        // is a power of two to which the address is aligned, so each atomic is aligned too.
        unsafe {
            match len {
                1 => AtomicU8::from_ptr(self.shadow).load(Ordering::Relaxed) & bits == bits,
                2 => {
                    let wide = wide as u16;
                    AtomicU16::from_ptr(self.shadow.cast()).load(Ordering::Relaxed) & wide == wide
                }
                4 => {
                    let wide = wide as u32;
                    AtomicU32::from_ptr(self.shadow.cast()).load(Ordering::Relaxed) & wide == wide
                }
                _ => {
                    let words = 0..len as usize / 8;
                    let all = words.fold(u64::MAX, |all, i| {
                        let word = AtomicU64::from_ptr(self.shadow.cast::<u64>().add(i));
                        all & word.load(Ordering::Relaxed)
                    });
                    all & wide == wide
                }
            }
        }
    }

    /// One byte of an access that `place` found.
    fn byte(self, index: u32) -> Self {
        // SAFETY: callers keep the index below the access's length, all of which is in the reservation.
        unsafe {
            Self { data: self.data.add(index as usize), shadow: self.shadow.add(index as usize) }
        }
    }

    /// Copies `out.len()` bytes, which is the access's length, out of memory.
    #[inline]
    pub(crate) fn read(self, out: &mut [u8]) {
        // SAFETY: as in `has`, for the data.
        unsafe { copy_out(self.data, out) }
    }

    /// Copies bytes to memory and marks them written.
    #[inline]
    pub(crate) fn write(self, bytes: &[u8]) {
        // SAFETY: as in `has`.
        unsafe {
            copy_in(self.data, bytes);
            self.mark(bytes.len());
        }
    }

    /// Marks bytes written.
    ///
    /// # Safety
    ///
    /// The place has `len` bytes, and is aligned to it.
    #[inline]
    unsafe fn mark(self, len: usize) {
        const ALL: [u8; 32 * MAX_BYTES] = [INITIALIZED; 32 * MAX_BYTES];
        // SAFETY: the caller's.
        unsafe { copy_in(self.shadow, &ALL[..len]) }
    }

    /// The place of a 32-bit atomic.
    pub(crate) fn atomic32(&self) -> &AtomicU32 {
        // SAFETY: callers checked 4 aligned bytes.
        unsafe { AtomicU32::from_ptr(self.data.cast()) }
    }

    /// The place of a 64-bit atomic.
    pub(crate) fn atomic64(&self) -> &AtomicU64 {
        // SAFETY: callers checked 8 aligned bytes.
        unsafe { AtomicU64::from_ptr(self.data.cast()) }
    }

    /// The place of a 16-bit atomic.
    pub(crate) fn atomic16(&self) -> &AtomicU16 {
        // SAFETY: callers checked 2 aligned bytes.
        unsafe { AtomicU16::from_ptr(self.data.cast()) }
    }
}

/// The place of a longer range, aligned to 8, if all of it is allocated (and for reads written).
#[inline]
pub(crate) fn span(memory: &Memory, address: u64, len: usize, reads: bool) -> Option<Place> {
    if !address.is_multiple_of(8) || !len.is_multiple_of(8) {
        return None;
    }
    let (data, shadow) = memory.pointers(address, len as u64)?;
    let place = Place { data, shadow };
    place.has(len as u32, if reads { INITIALIZED } else { ALLOCATED }).then_some(place)
}

/// Reads with relaxed atomics: other blocks may write at the same time, as on hardware.
///
/// # Safety
///
/// `from` is valid for `out.len()` bytes (1, 2, 4, or a multiple of 8), and aligned to that or to 8.
#[inline]
unsafe fn copy_out(from: *mut u8, out: &mut [u8]) {
    // SAFETY: the caller's.
    unsafe {
        match out.len() {
            1 => out[0] = AtomicU8::from_ptr(from).load(Ordering::Relaxed),
            2 => out.copy_from_slice(
                &AtomicU16::from_ptr(from.cast()).load(Ordering::Relaxed).to_ne_bytes(),
            ),
            4 => out.copy_from_slice(
                &AtomicU32::from_ptr(from.cast()).load(Ordering::Relaxed).to_ne_bytes(),
            ),
            _ => {
                for (i, chunk) in out.chunks_exact_mut(8).enumerate() {
                    let word =
                        AtomicU64::from_ptr(from.cast::<u64>().add(i)).load(Ordering::Relaxed);
                    chunk.copy_from_slice(&word.to_ne_bytes());
                }
            }
        }
    }
}

/// Writes with relaxed atomics.
///
/// # Safety
///
/// As for `copy_out`.
#[inline]
unsafe fn copy_in(to: *mut u8, bytes: &[u8]) {
    // SAFETY: the caller's; lengths of slices are matched before they are taken apart.
    unsafe {
        match *bytes {
            [byte] => AtomicU8::from_ptr(to).store(byte, Ordering::Relaxed),
            [a, b] => {
                AtomicU16::from_ptr(to.cast()).store(u16::from_ne_bytes([a, b]), Ordering::Relaxed);
            }
            [a, b, c, d] => {
                AtomicU32::from_ptr(to.cast())
                    .store(u32::from_ne_bytes([a, b, c, d]), Ordering::Relaxed);
            }
            _ => {
                for (i, chunk) in bytes.chunks_exact(8).enumerate() {
                    let mut word = [0; 8];
                    word.copy_from_slice(chunk);
                    let target = AtomicU64::from_ptr(to.cast::<u64>().add(i));
                    target.store(u64::from_ne_bytes(word), Ordering::Relaxed);
                }
            }
        }
    }
}

/// Reads what the block sees.
#[inline]
pub(crate) fn read(
    memory: &Memory,
    stores: &Stores,
    address: u64,
    out: &mut [u8],
    checks: bool,
) -> Result<(), FaultKind> {
    let len = out.len() as u32;
    if stores.is_empty() {
        place(memory, address, len, checks)?.read(out);
        return Ok(());
    }
    let place = place(memory, address, len, false)?;
    place.read(out);
    let held = stores.overlay(address, out);
    let is_known = |i: u32| held >> i & 1 == 1 || place.byte(i).has(1, INITIALIZED);
    if checks && !(0..len).all(is_known) {
        return Err(FaultKind::Uninitialized { space: SPACE, address, len });
    }
    Ok(())
}
