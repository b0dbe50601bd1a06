//! Memory that is used again, by its capacity.

use oarlock_kv_cache::BlockTable;

/// Something that owns memory for a number of elements.
pub(crate) trait Reusable {
    fn with_capacity(capacity: usize) -> Self;
    fn capacity(&self) -> usize;
}

impl<T> Reusable for Vec<T> {
    fn with_capacity(capacity: usize) -> Self {
        Self::with_capacity(capacity)
    }

    fn capacity(&self) -> usize {
        self.capacity()
    }
}

impl Reusable for BlockTable {
    fn with_capacity(capacity: usize) -> Self {
        let mut table = Self::default();
        table.reserve(capacity);
        table
    }

    fn capacity(&self) -> usize {
        self.capacity()
    }
}

/// Items with memory, sorted into powers of two, so that a short sequence does not get a long one's
/// and a long one need not grow a short one's.
#[derive(Debug)]
pub(crate) struct Shelf<T> {
    /// At `n`, items with a capacity from 2ⁿ up to 2ⁿ⁺¹.
    by_capacity: Vec<Vec<T>>,
    len: usize,
    max_len: usize,
}

impl<T: Reusable> Shelf<T> {
    /// A shelf for so many items at most.
    pub(crate) fn new(max_len: usize) -> Self {
        let by_capacity = (0..usize::BITS).map(|_| Vec::new()).collect();
        Self { by_capacity, len: 0, max_len }
    }

    /// An item with at least this capacity: the smallest that fits, or a new one.
    pub(crate) fn take(&mut self, capacity: usize) -> T {
        let capacity = capacity.max(1).next_power_of_two();
        let mut fitting = self.by_capacity[capacity.ilog2() as usize..].iter_mut();
        match fitting.find_map(Vec::pop) {
            Some(item) => {
                self.len -= 1;
                item
            }
            None => T::with_capacity(capacity),
        }
    }

    /// Keeps an item. If there are too many, one of the smallest power is dropped.
    pub(crate) fn put(&mut self, item: T) {
        let Some(place) = item.capacity().checked_ilog2() else { return };
        let place = place as usize;
        if self.len == self.max_len {
            let smaller = self.by_capacity[..place].iter_mut().find(|items| !items.is_empty());
            if smaller.and_then(Vec::pop).is_none() {
                return;
            }
            self.len -= 1;
        }
        self.by_capacity[place].push(item);
        self.len += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_that_fits_is_taken_and_the_largest_are_kept() {
        let mut shelf: Shelf<Vec<u32>> = Shelf::new(2);
        for capacity in [100, 20, 3] {
            shelf.put(Vec::with_capacity(capacity));
        }
        shelf.put(Vec::new());
        assert_eq!(shelf.len, 2);
        assert_eq!(shelf.take(10).capacity(), 20);
        shelf.put(Vec::with_capacity(40));
        // Full: the smaller of the two goes.
        shelf.put(Vec::with_capacity(200));
        let taken = [shelf.take(1).capacity(), shelf.take(65).capacity(), shelf.take(5).capacity()];
        assert_eq!(taken, [100, 200, 8]);
        assert_eq!(shelf.len, 0);
    }
}
