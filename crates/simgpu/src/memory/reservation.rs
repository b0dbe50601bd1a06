//! Address space whose pages come from the host when they are first written.

use std::ffi::c_void;
use std::ptr::{NonNull, null_mut};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Smallest granule that `discard` gives back.
const PAGE_BYTES: usize = 1 << 16;

/// A private mapping of zeros.
#[derive(Debug)]
pub(super) struct Reservation {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the value, and every access goes through raw pointers whose users
// say why it is sound.
unsafe impl Send for Reservation {}
// SAFETY: as above.
unsafe impl Sync for Reservation {}

impl Reservation {
    pub(super) fn new(len: usize) -> Self {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the system's choice touches nothing.
        let start = unsafe { mmap_anonymous(null_mut(), len, protection, flags) };
        let start = start.ok().and_then(|start| NonNull::new(start.cast::<u8>()));
        let start = start.unwrap_or_else(|| panic!("no address space left for {len} bytes"));
        Self { start, len }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Pointer to the byte at `offset`.
    ///
    /// # Safety
    ///
    /// `offset` is at most the length.
    #[inline]
    pub(super) unsafe fn at(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset <= self.len);
        // SAFETY: the caller keeps the offset inside the mapping.
        unsafe { self.start.as_ptr().add(offset) }
    }

    /// Gives whole pages of the range back to the host; they read as zeros afterwards.
    pub(super) fn discard(&self, offset: usize, len: usize) {
        let start = offset.next_multiple_of(PAGE_BYTES);
        let end = (offset + len) / PAGE_BYTES * PAGE_BYTES;
        if start >= end || end > self.len {
            return;
        }
        // SAFETY: the pages are inside this private mapping, and the caller freed them.
        let advised =
            unsafe { madvise(self.at(start).cast::<c_void>(), end - start, Advice::LinuxDontNeed) };
        debug_assert!(advised.is_ok());
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nobody can use it any more.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast::<c_void>(), self.len) };
        debug_assert!(unmapped.is_ok());
    }
}
