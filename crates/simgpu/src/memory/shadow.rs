//! A byte of state for every byte of memory.
//!
//! A large allocation must not take as much of the host's memory as it has bytes, so whole pages of
//! it are only noted as allocated, and get their bytes of state when something in them is touched.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::ALLOCATED;
use super::reservation::Reservation;

/// Bytes of a page.
const PAGE_BYTES: u64 = 1 << 16;

/// The state of a device's memory.
#[derive(Debug)]
pub(super) struct Shadow {
    bytes: Reservation,
    /// Pages that are allocated and never touched; their bytes of state say nothing.
    is_fresh: Vec<AtomicBool>,
    /// Held while pages stop being fresh.
    lock: Mutex<()>,
}

impl Shadow {
    /// State of `span` bytes, a multiple of the page.
    pub(super) fn new(span: u64) -> Self {
        let num_pages = (span / PAGE_BYTES) as usize;
        let is_fresh = std::iter::repeat_with(AtomicBool::default).take(num_pages).collect();
        Self { bytes: Reservation::new(span as usize), is_fresh, lock: Mutex::new(()) }
    }

    /// Pointer to the state of the byte at `offset`.
    ///
    /// # Safety
    ///
    /// `offset` is at most the span.
    #[inline]
    pub(super) unsafe fn at(&self, offset: u64) -> *mut u8 {
        // SAFETY: the caller's.
        unsafe { self.bytes.at(offset as usize) }
    }

    fn fresh(&self, offset: u64, len: u64) -> &[AtomicBool] {
        let end = (offset + len).div_ceil(PAGE_BYTES) as usize;
        &self.is_fresh[(offset / PAGE_BYTES) as usize..end]
    }

    /// A new allocation.
    pub(super) fn allocate(&self, offset: u64, len: u64) {
        let first = offset.next_multiple_of(PAGE_BYTES);
        let last = (offset + len) / PAGE_BYTES * PAGE_BYTES;
        if first >= last {
            self.set(offset, len, ALLOCATED);
            return;
        }
        self.set(offset, first - offset, ALLOCATED);
        self.set(last, offset + len - last, ALLOCATED);
        self.fresh(first, last - first).iter().for_each(|page| page.store(true, Ordering::Release));
    }

    /// The allocation is gone.
    pub(super) fn free(&self, offset: u64, len: u64) {
        let end = offset + len;
        let mut at = offset;
        for page in self.fresh(offset, len) {
            let next = (at / PAGE_BYTES + 1) * PAGE_BYTES;
            if !page.swap(false, Ordering::AcqRel) {
                self.set(at, next.min(end) - at, 0);
            }
            at = next;
        }
        self.bytes.discard(offset as usize, len as usize);
    }

    /// Sets the state of bytes, none of which lies in a fresh page.
    fn set(&self, offset: u64, len: u64, state: u8) {
        // SAFETY: callers pass ranges of allocations, which lie inside the span.
        unsafe { self.at(offset).write_bytes(state, len as usize) };
    }

    /// Sets the state of bytes of an allocation.
    pub(super) fn mark(&self, offset: u64, len: u64, state: u8) {
        self.touch(offset, len);
        self.set(offset, len, state);
    }

    /// Gives fresh pages their bytes of state.
    pub(super) fn touch(&self, offset: u64, len: u64) {
        if len == 0 || self.fresh(offset, len).iter().all(|page| !page.load(Ordering::Acquire)) {
            // Another thread may be at it: it is done when the lock is free.
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            return;
        }
        let _guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, page) in self.fresh(offset, len).iter().enumerate() {
            if page.load(Ordering::Acquire) {
                let start = (offset / PAGE_BYTES + index as u64) * PAGE_BYTES;
                for at in (start..start + PAGE_BYTES).step_by(8) {
                    // SAFETY: the page lies inside the span, and `at` is aligned. Each word is written
                    // once: a thread that sees it may mark its bytes while the rest is written.
                    let word = unsafe { AtomicU64::from_ptr(self.at(at).cast()) };
                    word.store(u64::from_ne_bytes([ALLOCATED; 8]), Ordering::Relaxed);
                }
                page.store(false, Ordering::Release);
            }
        }
    }
}
