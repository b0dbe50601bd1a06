//! The blocks of one sequence, in order of position.

use oarlock_types::{BlockId, CacheSalt};

use crate::index::Registration;

/// The blocks that hold one sequence's KV cache, in order of position.
///
/// Only the pool changes it, it only grows until all of it is released, and it cannot be cloned: a
/// block is shared through the prefix index or not at all. A table that is dropped without
/// [`BlockPool::release`] keeps its blocks from others for good.
///
/// [`BlockPool::release`]: crate::BlockPool::release
#[derive(Debug, Default)]
pub struct BlockTable {
    pub(crate) blocks: Vec<BlockId>,
    pub(crate) salt: CacheSalt,
    /// Full blocks that were offered to the index.
    pub(crate) num_registered: usize,
    /// The index's entry for the last of them: of this block, or of an equal one before it.
    pub(crate) tail: Option<Registration>,
    /// The life of the pool that the blocks belong to.
    pub(crate) life: u64,
}

/// Where the cached prefix of a table ended, for [`BlockPool::may_be_longer`].
///
/// [`BlockPool::may_be_longer`]: crate::BlockPool::may_be_longer
#[derive(Clone, Copy, Debug)]
pub struct PrefixEnd {
    pub(crate) len: usize,
    pub(crate) tail: Option<Registration>,
}

impl BlockTable {
    /// The end of what is registered of it: right after [`BlockPool::acquire`], of its cached prefix.
    ///
    /// [`BlockPool::acquire`]: crate::BlockPool::acquire
    pub fn prefix_end(&self) -> PrefixEnd {
        PrefixEnd { len: self.num_registered, tail: self.tail }
    }

    /// The blocks, in order of position.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether it holds no block.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Blocks for which it has memory.
    pub fn capacity(&self) -> usize {
        self.blocks.capacity()
    }

    /// Makes room for `num_blocks` blocks in all, so that none of them allocates later.
    pub fn reserve(&mut self, num_blocks: usize) {
        self.blocks.reserve(num_blocks.saturating_sub(self.blocks.len()));
    }

    /// Forgets everything but keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.blocks.clear();
        self.num_registered = 0;
        self.tail = None;
    }
}
