//! Running sequences in order of class and arrival.

use std::collections::VecDeque;

use oarlock_types::Priority;

/// Who goes first: the lower class number, then the earlier arrival. Arrivals are unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Order {
    pub(crate) priority: Priority,
    pub(crate) arrival: u64,
}

/// Indices of sequences, sorted: who gets tokens and blocks first, and, from the end, who loses them.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    entries: VecDeque<(Order, usize)>,
}

impl Queue {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { entries: VecDeque::with_capacity(capacity) }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn get(&self, at: usize) -> usize {
        self.entries[at].1
    }

    /// The class of the entry at a place, if there is one.
    pub(crate) fn class(&self, at: usize) -> Option<Priority> {
        self.entries.get(at).map(|entry| entry.0.priority)
    }

    pub(crate) fn last(&self) -> Option<(Order, usize)> {
        self.entries.back().copied()
    }

    pub(crate) fn insert(&mut self, order: Order, sequence: usize) {
        let at = self.position(order);
        self.entries.insert(at, (order, sequence));
    }

    /// # Panics
    /// If it is not there.
    pub(crate) fn remove(&mut self, order: Order) {
        let at = self.position(order);
        let removed = self.entries.remove(at);
        assert!(removed.is_some_and(|entry| entry.0 == order), "not in the queue");
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (Order, usize)> + Clone + '_ {
        self.entries.iter().copied()
    }

    /// Where an entry is or would be. Most are at one of the ends.
    fn position(&self, order: Order) -> usize {
        match (self.entries.front(), self.entries.back()) {
            (_, Some(last)) if last.0 < order => self.entries.len(),
            (Some(first), _) if order <= first.0 => 0,
            _ => self.entries.partition_point(|entry| entry.0 < order),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_sorted() {
        let order = |priority, arrival| Order { priority: Priority(priority), arrival };
        let mut queue = Queue::default();
        for (at, key) in [order(1, 5), order(1, 2), order(0, 9), order(1, 7), order(1, 3)]
            .into_iter()
            .enumerate()
        {
            queue.insert(key, at);
        }
        assert_eq!(queue.iter().map(|entry| entry.1).collect::<Vec<_>>(), [2, 1, 4, 0, 3]);
        queue.remove(order(1, 3));
        queue.remove(order(0, 9));
        assert_eq!((queue.get(0), queue.last(), queue.len()), (1, Some((order(1, 7), 3)), 3));
        assert_eq!([0, 3].map(|at| queue.class(at)), [Some(Priority(1)), None]);
    }
}
