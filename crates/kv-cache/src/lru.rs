//! Blocks in order of last use: a doubly linked list through an array, so that any block can leave.

use oarlock_types::BlockId;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Links {
    older: Option<BlockId>,
    newer: Option<BlockId>,
}

/// Cached blocks that no table holds, from the least to the most recently used.
#[derive(Debug)]
pub(crate) struct LruList {
    links: Vec<Links>,
    oldest: Option<BlockId>,
    newest: Option<BlockId>,
    len: usize,
}

impl LruList {
    pub(crate) fn new(num_blocks: usize) -> Self {
        Self { links: vec![Links::default(); num_blocks], oldest: None, newest: None, len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn oldest(&self) -> Option<BlockId> {
        self.oldest
    }

    /// Appends a block that is not in the list, as the most recently used.
    pub(crate) fn push(&mut self, block: BlockId) {
        self.links[block.index()] = Links { older: self.newest, newer: None };
        match self.newest {
            Some(newest) => self.links[newest.index()].newer = Some(block),
            None => self.oldest = Some(block),
        }
        self.newest = Some(block);
        self.len += 1;
    }

    /// Takes out a block that is in the list.
    pub(crate) fn remove(&mut self, block: BlockId) {
        let Links { older, newer } = std::mem::take(&mut self.links[block.index()]);
        match older {
            Some(older) => self.links[older.index()].newer = newer,
            None => self.oldest = newer,
        }
        match newer {
            Some(newer) => self.links[newer.index()].older = older,
            None => self.newest = older,
        }
        self.len -= 1;
    }

    pub(crate) fn clear(&mut self) {
        self.links.fill(Links::default());
        (self.oldest, self.newest, self.len) = (None, None, 0);
    }

    /// From the least recently used on.
    pub(crate) fn iter(&self) -> impl Iterator<Item = BlockId> + '_ {
        std::iter::successors(self.oldest, |block| self.links[block.index()].newer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_block_can_leave() {
        let mut list = LruList::new(4);
        for id in [2, 0, 3, 1] {
            list.push(BlockId(id));
        }
        let ids = |list: &LruList| list.iter().map(|block| block.0).collect::<Vec<_>>();
        assert_eq!(ids(&list), [2, 0, 3, 1]);
        list.remove(BlockId(3));
        list.remove(BlockId(2));
        list.remove(BlockId(1));
        assert_eq!(ids(&list), [0]);
        list.push(BlockId(2));
        assert_eq!((ids(&list), list.len(), list.oldest()), (vec![0, 2], 2, Some(BlockId(0))));
        list.clear();
        assert_eq!((ids(&list), list.len(), list.oldest()), (vec![], 0, None));
    }
}
