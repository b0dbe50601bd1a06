//! What is always true of a pool; used by property tests here and in the scheduler.

use oarlock_types::BlockId;

use crate::{BlockPool, BlockTable};

impl BlockPool {
    /// Checks everything that is always true. Takes time in proportion to the number of blocks.
    ///
    /// `tables` are all tables that were begun and not released.
    ///
    /// # Panics
    /// If something is not true.
    pub fn check_invariants<'a>(&self, tables: impl IntoIterator<Item = &'a BlockTable>) {
        self.check_references(tables);
        self.check_states();
        self.check_forest();
    }

    /// Reference counts equal the tables that hold the block, and those in quarantine.
    fn check_references<'a>(&self, tables: impl IntoIterator<Item = &'a BlockTable>) {
        let mut references = vec![0; self.num_blocks()];
        for table in tables {
            if table.life != self.life {
                continue;
            }
            for (at, block) in table.blocks().iter().enumerate() {
                references[block.index()] += 1;
                assert!(!table.blocks()[..at].contains(block), "block {block} is twice in a table");
                let node = self.index.node(*block);
                assert!(!node.indexed || node.salt == table.salt, "block {block} has another salt");
            }
        }
        let mut quarantined = vec![0; self.num_blocks()];
        for entry in &self.quarantine {
            references[entry.block.index()] += 1;
            quarantined[entry.block.index()] += 1;
        }
        assert_eq!(references, self.references, "reference counts");
        assert_eq!(quarantined, self.quarantined, "counts of the quarantine");
        let counts = references.iter().zip(&quarantined);
        let num_returning = counts.filter(|(all, held)| all == held && **held > 0).count();
        assert_eq!(num_returning, self.num_returning(), "blocks that only the quarantine holds");
    }

    /// Each block is free, cached or owned.
    fn check_states(&self) {
        let mut seen = vec![false; self.num_blocks()];
        let mut see = |block: BlockId| {
            assert!(
                !std::mem::replace(&mut seen[block.index()], true),
                "block {block} is listed twice"
            );
        };
        for &block in &self.free {
            see(block);
            assert!(!self.index.node(block).indexed, "free block {block} is indexed");
        }
        for block in self.cached.iter() {
            see(block);
            assert!(self.index.node(block).indexed, "cached block {block} is not indexed");
        }
        assert_eq!(self.cached.iter().count(), self.cached.len(), "length of the list");
        for (listed, &references) in seen.iter().zip(&self.references) {
            assert_eq!(*listed, references == 0, "a block is listed exactly if nobody holds it");
        }
    }

    /// Every indexed block is found under its parent, and parents know their children.
    fn check_forest(&self) {
        let mut children = vec![0; self.num_blocks()];
        for block in (0..self.num_blocks() as u32).map(BlockId) {
            let node = self.index.node(block);
            if !node.indexed {
                assert!(
                    node.first_child.is_none() && node.parent.is_none(),
                    "links of block {block}"
                );
                continue;
            }
            let found = self.index.find(node.parent, node.salt, self.index.tokens_of(block));
            assert_eq!(found, Some(block), "an indexed block is found");
            if let Some(parent) = node.parent {
                let parent_node = self.index.node(parent);
                assert!(parent_node.indexed, "the parent of {block} is indexed");
                assert_eq!(parent_node.salt, node.salt, "a chain has one salt");
                children[parent.index()] += 1;
            }
        }
        for block in (0..self.num_blocks() as u32).map(BlockId) {
            let first = self.index.node(block).first_child;
            let siblings =
                std::iter::successors(first, |child| self.index.node(*child).next_sibling);
            let mut count = 0;
            for child in siblings {
                assert_eq!(self.index.node(child).parent, Some(block), "a child knows its parent");
                count += 1;
            }
            assert_eq!(count, children[block.index()], "a parent knows its children");
        }
    }
}
