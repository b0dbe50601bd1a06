//! Memory of the backend: zeroed, aligned to cache lines, and views of it that threads share.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;

use bytemuck::Zeroable;
use oarlock_backend::BackendError;

/// Bytes of one cache line, and of one vector register.
const ALIGNMENT: usize = 64;
/// Buffers of at least this size ask for huge pages.
const HUGE_PAGE: usize = 2 << 20;

/// A fixed number of values, aligned to 64 bytes.
#[derive(Debug)]
pub(crate) struct AlignedBuffer<T> {
    pointer: NonNull<T>,
    len: usize,
}

// SAFETY: the buffer owns its memory, and gives references by the usual rules only.
unsafe impl<T: Send> Send for AlignedBuffer<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for AlignedBuffer<T> {}

impl<T: Zeroable + Copy> AlignedBuffer<T> {
    /// `len` zeros.
    pub(crate) fn zeroed(len: usize, what: &str) -> Result<Self, BackendError> {
        let bytes = len.saturating_mul(size_of::<T>());
        let no_memory = || BackendError::OutOfMemory { what: what.to_owned(), bytes };
        if bytes == 0 {
            return Ok(Self { pointer: NonNull::dangling(), len: 0 });
        }
        let layout = Self::layout(len).ok_or_else(no_memory)?;
        // SAFETY: the layout is not empty.
        let pointer = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(no_memory)?;
        advise_huge_pages(pointer, bytes);
        Ok(Self { pointer: pointer.cast(), len })
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        (self.len * size_of::<T>()) as u64
    }
}

impl<T> AlignedBuffer<T> {
    fn layout(len: usize) -> Option<Layout> {
        Layout::array::<T>(len).and_then(|layout| layout.align_to(ALIGNMENT)).ok()
    }
}

impl<T> Drop for AlignedBuffer<T> {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.len)
            && self.len > 0
        {
            // SAFETY: allocated in `zeroed` with this layout. `T` is `Copy`, so nothing else to drop.
            unsafe { dealloc(self.pointer.as_ptr().cast(), layout) }
        }
    }
}

impl<T> Deref for AlignedBuffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` values, zeroed at first, live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for AlignedBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.len) }
    }
}

/// Fewer page-table walks while weights stream by; without effect where the kernel has none to give.
#[cfg(target_os = "linux")]
fn advise_huge_pages(pointer: NonNull<u8>, bytes: usize) {
    let first = pointer.as_ptr().addr().next_multiple_of(HUGE_PAGE);
    let end = (pointer.as_ptr().addr() + bytes) / HUGE_PAGE * HUGE_PAGE;
    if end > first {
        // SAFETY: the range lies inside the allocation; the advice does not change its contents.
        unsafe {
            libc::madvise(
                pointer.as_ptr().with_addr(first).cast(),
                end - first,
                libc::MADV_HUGEPAGE,
            );
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_: NonNull<u8>, _: usize) {}

/// A slice that several threads write, each its own ranges.
#[derive(Clone, Copy)]
pub(crate) struct SharedSlice<T> {
    pointer: *mut T,
    len: usize,
}

// SAFETY: access goes through `range`, whose caller promises that ranges are disjoint.
unsafe impl<T: Send> Send for SharedSlice<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedSlice<T> {}

impl<T> SharedSlice<T> {
    /// Borrows `slice` for as long as the caller keeps it borrowed.
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self { pointer: slice.as_mut_ptr(), len: slice.len() }
    }

    /// One range of it.
    ///
    /// # Safety
    /// The slice still lives, and no other reference to any element of the range exists.
    ///
    /// # Panics
    /// If the range is outside.
    #[expect(clippy::mut_from_ref, reason = "threads hold the same view and take disjoint ranges")]
    pub(crate) unsafe fn range(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "range of a shared slice");
        // SAFETY: inside the slice by the assertion; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_zeroed() {
        let mut buffer = AlignedBuffer::<f32>::zeroed(1000, "test").unwrap();
        assert_eq!(buffer.as_ptr().addr() % ALIGNMENT, 0);
        assert!(buffer.iter().all(|&v| v == 0.0));
        buffer[999] = 1.0;
        assert_eq!(buffer.bytes(), 4000);
        assert!(AlignedBuffer::<u8>::zeroed(0, "test").unwrap().is_empty());
    }

    #[test]
    fn too_much_is_an_error() {
        let error = AlignedBuffer::<f32>::zeroed(usize::MAX / 2, "everything").unwrap_err();
        assert!(matches!(error, BackendError::OutOfMemory { .. }));
    }
}
