//! Which ranges of a device's address space are allocated.

use std::collections::BTreeMap;

use super::MemoryError;

/// Every allocation starts at a multiple of this, as the driver's do.
const ALIGNMENT: u64 = 256;
/// Unallocated bytes between two allocations.
const GUARD_BYTES: u64 = 1024;

/// Next fit: a freed range is used again only when the search has gone round, so that a use after
/// free is found for as long as possible.
#[derive(Debug)]
pub(super) struct Allocator {
    capacity: u64,
    span: u64,
    used: u64,
    next: u64,
    /// Offset to length.
    allocations: BTreeMap<u64, u64>,
}

impl Allocator {
    pub(super) fn new(capacity: u64, span: u64) -> Self {
        Self { capacity, span, used: 0, next: 0, allocations: BTreeMap::new() }
    }

    pub(super) fn free_bytes(&self) -> u64 {
        self.capacity - self.used
    }

    pub(super) fn allocate(&mut self, len: u64) -> Result<u64, MemoryError> {
        let free = self.free_bytes();
        let out = MemoryError::OutOfMemory { requested: len, free, capacity: self.capacity };
        if rounded(len).is_none_or(|len| len > free) {
            return Err(out);
        }
        let offset = self.gap(self.next, len).or_else(|| self.gap(0, len)).ok_or(out)?;
        self.allocations.insert(offset, len);
        self.used += len.next_multiple_of(ALIGNMENT);
        self.next = offset + len;
        Ok(offset)
    }

    /// The first place at or after `from` where `len` bytes and the guards fit.
    fn gap(&self, from: u64, len: u64) -> Option<u64> {
        let before =
            self.allocations.range(..from).next_back().map_or(0, |(start, len)| start + len);
        let mut place = (before.max(from) + GUARD_BYTES).next_multiple_of(ALIGNMENT);
        for (&start, &size) in self.allocations.range(from..) {
            if place + len + GUARD_BYTES <= start {
                return Some(place);
            }
            place = (start + size + GUARD_BYTES).next_multiple_of(ALIGNMENT);
        }
        (place + len + GUARD_BYTES <= self.span).then_some(place)
    }

    /// Removes the allocation that starts at `offset`; its length.
    pub(super) fn free(&mut self, offset: u64) -> Option<u64> {
        let len = self.allocations.remove(&offset)?;
        self.used -= len.next_multiple_of(ALIGNMENT);
        Some(len)
    }

    pub(super) fn containing(&self, offset: u64) -> Option<(u64, u64)> {
        let (&start, &len) = self.allocations.range(..=offset).next_back()?;
        (offset < start + len).then_some((start, len))
    }
}

fn rounded(len: u64) -> Option<u64> {
    len.checked_next_multiple_of(ALIGNMENT)
}
