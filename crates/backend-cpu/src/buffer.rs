//! Memory of the backend: zeroed, aligned to cache lines, and views of it that threads share.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;

use bytemuck::Zeroable;
use oarlock_backend::BackendError;

/// Bytes of one cache line, and of one vector register.
const ALIGNMENT: usize = 64;
/// Buffers of at least this size are pages of their own and ask for huge ones.
const HUGE_PAGE: usize = 2 << 20;
/// Mappings end at multiples of this: pages have 4 KiB on x86-64 and up to 64 KiB elsewhere.
#[cfg(target_os = "linux")]
const MAPPING_UNIT: usize = 64 << 10;

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
    /// `len` zeros, all of whose memory is there: who has the buffer will not run out of it later.
    pub(crate) fn zeroed(len: usize, what: &str) -> Result<Self, BackendError> {
        /// No page is smaller.
        const PAGE: usize = 4096;
        let mut buffer = Self::unwritten(len, what)?;
        for first in (0..len).step_by((PAGE / size_of::<T>()).max(1)) {
            // SAFETY: inside the buffer. Volatile, since the zero that is written is there already.
            unsafe { (&raw mut buffer[first]).write_volatile(T::zeroed()) };
        }
        Ok(buffer)
    }

    /// `len` zeros for a caller that writes them all. Pages of large buffers come when they are first
    /// written, so that the threads that fill a buffer clear its pages together, and just before.
    pub(crate) fn unwritten(len: usize, what: &str) -> Result<Self, BackendError> {
        let bytes = len.saturating_mul(size_of::<T>());
        let no_memory = || BackendError::OutOfMemory { what: what.to_owned(), bytes };
        if bytes == 0 {
            let nowhere = NonNull::without_provenance(ALIGNMENT.try_into().expect("not zero"));
            return Ok(Self { pointer: nowhere, len: 0 });
        }
        let layout = Self::layout(len).ok_or_else(no_memory)?;
        let pointer = allocate(layout).ok_or_else(no_memory)?;
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
            // SAFETY: allocated with this layout. `T` is `Copy`, so nothing else to drop.
            unsafe { free(self.pointer.cast(), layout) }
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

/// Zeroed memory of a layout that is not empty; `None` where there is none. Large layouts are mapped:
/// `alloc_zeroed` of the system's allocator writes zeros where it is asked for an alignment.
fn allocate(layout: Layout) -> Option<NonNull<u8>> {
    #[cfg(target_os = "linux")]
    if layout.size() >= HUGE_PAGE {
        return map_huge(layout.size());
    }
    // SAFETY: the layout is not empty.
    NonNull::new(unsafe { alloc_zeroed(layout) })
}

/// Gives back what [`allocate`] gave.
///
/// # Safety
/// The memory came from `allocate` of this layout, and nobody uses it any more.
unsafe fn free(pointer: NonNull<u8>, layout: Layout) {
    #[cfg(target_os = "linux")]
    if layout.size() >= HUGE_PAGE {
        // SAFETY: a whole mapping of `map_huge`, by the caller's promise. It cannot fail for one.
        unsafe {
            libc::munmap(pointer.as_ptr().cast(), layout.size().next_multiple_of(MAPPING_UNIT))
        };
        return;
    }
    // SAFETY: by the caller's promise.
    unsafe { dealloc(pointer.as_ptr(), layout) }
}

/// Fresh pages, huge ones where the kernel has some to give: fewer faults while a buffer is filled and fewer
/// page-table walks while weights stream by. The mapping begins at a huge page, so that only its end has
/// small ones.
#[cfg(target_os = "linux")]
fn map_huge(bytes: usize) -> Option<NonNull<u8>> {
    let kept = bytes.checked_next_multiple_of(MAPPING_UNIT)?;
    let wanted = kept.checked_add(HUGE_PAGE)?;
    // SAFETY: a new mapping at a place that the kernel chooses; what it fails with is checked.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            wanted,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return None;
    }
    let before = start.addr().next_multiple_of(HUGE_PAGE) - start.addr();
    // SAFETY: at most a huge page less one of the system's goes in front, so all of `kept` is left; both ranges lie inside the mapping and outside of the part that is kept; the advice does not
    // change the contents of the pages.
    unsafe {
        let pointer = start.byte_add(before);
        if before > 0 {
            libc::munmap(start, before);
        }
        libc::munmap(pointer.byte_add(kept), wanted - before - kept);
        libc::madvise(pointer, kept, libc::MADV_HUGEPAGE);
        NonNull::new(pointer.cast())
    }
}

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
        // Mapped, with an odd end.
        for bytes in [HUGE_PAGE - 1, HUGE_PAGE, 3 * HUGE_PAGE + 12_345] {
            let mut buffer = AlignedBuffer::<u8>::unwritten(bytes, "test").unwrap();
            assert_eq!(buffer.as_ptr().addr() % ALIGNMENT, 0);
            assert!(buffer.iter().all(|&v| v == 0));
            buffer.fill(1);
        }
    }

    /// What lies behind a buffer stays when the buffer goes, wherever the kernel put the two.
    #[test]
    #[cfg(target_os = "linux")]
    fn neighbors_survive() {
        let sizes = (0..400).map(|round| HUGE_PAGE + (round * 7919 % 700) * 4096 + round % 5 * 100);
        let mut kept: Vec<AlignedBuffer<u8>> = Vec::new();
        for (round, size) in sizes.enumerate() {
            let buffer = AlignedBuffer::<u8>::zeroed(size, "test").unwrap();
            let mut neighbor = AlignedBuffer::<u8>::zeroed(HUGE_PAGE, "test").unwrap();
            neighbor.fill(7);
            drop(buffer);
            assert!(neighbor.iter().all(|byte| *byte == 7), "round {round}");
            if round % 40 == 0 {
                kept.push(neighbor);
            }
        }
        assert!(kept.iter().all(|buffer| buffer.iter().all(|byte| *byte == 7)));
    }

    #[test]
    fn too_much_is_an_error() {
        let error = AlignedBuffer::<f32>::zeroed(usize::MAX / 2, "everything").unwrap_err();
        assert!(matches!(error, BackendError::OutOfMemory { .. }));
    }
}
