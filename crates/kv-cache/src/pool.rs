//! The owner of all blocks.

use oarlock_types::{BLOCK_TOKENS, BlockId, CacheSalt, StepId, TokenId};

use crate::index::PrefixIndex;
use crate::lru::LruList;
use crate::table::{BlockTable, PrefixEnd};

/// There are not enough blocks that nobody holds. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfBlocks;

/// A reference that lasts until a step has committed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quarantined {
    pub(crate) until: StepId,
    pub(crate) block: BlockId,
}

/// All blocks of a KV cache, and which prefixes they hold.
#[derive(Debug)]
pub struct BlockPool {
    /// Tables that hold each block, plus its entries in quarantine.
    pub(crate) references: Vec<u32>,
    /// Of these, entries in quarantine.
    pub(crate) quarantined: Vec<u32>,
    /// Blocks that only the quarantine holds.
    num_returning: usize,
    /// Scratch of [`BlockPool::releases_needed`], all 0 between calls.
    trial: Vec<u32>,
    /// Blocks that hold nothing; the last one is given out next.
    pub(crate) free: Vec<BlockId>,
    pub(crate) cached: LruList,
    pub(crate) index: PrefixIndex,
    pub(crate) quarantine: Vec<Quarantined>,
    /// The last step that has committed.
    committed: StepId,
    /// Counts what made blocks available, or will.
    num_releases: u64,
    /// Counts resets, so that tables from before one are told apart.
    pub(crate) life: u64,
}

impl BlockPool {
    /// A pool of free blocks.
    pub fn new(num_blocks: u32) -> Self {
        let len = num_blocks as usize;
        let mut pool = Self {
            references: vec![0; len],
            quarantined: vec![0; len],
            num_returning: 0,
            trial: vec![0; len],
            free: Vec::with_capacity(len),
            cached: LruList::new(len),
            index: PrefixIndex::new(len),
            quarantine: Vec::with_capacity(len),
            committed: StepId(0),
            num_releases: 0,
            life: 0,
        };
        pool.fill_free();
        pool
    }

    fn fill_free(&mut self) {
        self.free.clear();
        self.free.extend((0..self.references.len() as u32).rev().map(BlockId));
    }

    /// Blocks in all.
    pub fn num_blocks(&self) -> usize {
        self.references.len()
    }

    /// Blocks that [`BlockPool::extend`] can give out: free and cached ones.
    pub fn num_available(&self) -> usize {
        self.free.len() + self.cached.len()
    }

    /// Blocks that hold a cached prefix and that nobody holds.
    pub fn num_cached(&self) -> usize {
        self.cached.len()
    }

    /// Released blocks that will be available once the plans in flight have committed.
    pub fn num_returning(&self) -> usize {
        self.num_returning
    }

    /// Counts calls by which blocks became available, or will: as long as it stays the same, there are
    /// not more of them than before, also not in any set of tables.
    pub fn num_releases(&self) -> u64 {
        self.num_releases
    }

    /// Whether [`BlockPool::acquire`] could give more blocks than when the prefix ended as `end` says;
    /// one lookup. Also `true` if that end has left the index.
    pub fn may_be_longer(
        &self,
        end: PrefixEnd,
        salt: CacheSalt,
        tokens: &[TokenId],
        max_blocks: usize,
    ) -> bool {
        if end.tail.is_some_and(|tail| !self.index.is_current(tail)) {
            return true;
        }
        let next = tokens.chunks_exact(BLOCK_TOKENS).take(max_blocks).nth(end.len);
        let parent = end.tail.map(|tail| tail.block);
        next.is_some_and(|chunk| self.index.find(parent, salt, chunk).is_some())
    }

    /// How many of `tables`, in their order and `at_least` that many, have to be released until `n`
    /// blocks are available, at once or when the plans in flight have committed. `None`: all of them
    /// do not suffice.
    pub fn releases_needed<'a>(
        &mut self,
        tables: impl Iterator<Item = &'a BlockTable> + Clone,
        at_least: usize,
        n: usize,
    ) -> Option<usize> {
        let mut sum = self.num_available() + self.num_returning;
        let mut count = 0;
        for table in tables.clone() {
            if count >= at_least && sum >= n {
                break;
            }
            self.assert_own(table);
            for &block in table.blocks() {
                let at = block.index();
                self.trial[at] += 1;
                sum += usize::from(self.trial[at] + self.quarantined[at] == self.references[at]);
            }
            count += 1;
        }
        for block in tables.take(count).flat_map(BlockTable::blocks) {
            self.trial[block.index()] = 0;
        }
        (count >= at_least && sum >= n).then_some(count)
    }

    /// Number of blocks, `max_blocks` at most, that hold the beginning of `tokens`.
    pub fn lookup(&self, salt: CacheSalt, tokens: &[TokenId], max_blocks: usize) -> usize {
        self.chain(salt, tokens).take(max_blocks).count()
    }

    /// The indexed blocks that hold the beginning of `tokens`, in order.
    fn chain(&self, salt: CacheSalt, tokens: &[TokenId]) -> impl Iterator<Item = BlockId> {
        tokens.chunks_exact(BLOCK_TOKENS).scan(None, move |parent, chunk| {
            *parent = self.index.find(*parent, salt, chunk);
            *parent
        })
    }

    /// Begins a table in the namespace `salt` with the cached blocks that hold the beginning of
    /// `tokens`, `max_blocks` at most; returns how many they are.
    ///
    /// # Panics
    /// If the table holds blocks.
    pub fn acquire(
        &mut self,
        table: &mut BlockTable,
        salt: CacheSalt,
        tokens: &[TokenId],
        max_blocks: usize,
    ) -> usize {
        assert!(table.is_empty(), "only an empty table can begin with a cached prefix");
        table.clear();
        table.salt = salt;
        table.life = self.life;
        let mut parent = None;
        for chunk in tokens.chunks_exact(BLOCK_TOKENS).take(max_blocks) {
            let Some(block) = self.index.find(parent, salt, chunk) else { break };
            let references = self.references[block.index()];
            if references == 0 {
                self.cached.remove(block);
            } else if references == self.quarantined[block.index()] {
                self.num_returning -= 1;
            }
            self.references[block.index()] += 1;
            table.blocks.push(block);
            parent = Some(block);
        }
        table.num_registered = table.len();
        table.tail = parent.map(|block| self.index.registration(block));
        table.len()
    }

    /// Appends `n` blocks without content, evicting cached ones as needed, or none at all.
    pub fn extend(&mut self, table: &mut BlockTable, n: usize) -> Result<(), OutOfBlocks> {
        self.assert_own(table);
        if n > self.num_available() {
            return Err(OutOfBlocks);
        }
        for _ in 0..n {
            if self.free.is_empty() {
                self.evict_oldest();
            }
            let block = self.free.pop().expect("availability was checked");
            self.references[block.index()] = 1;
            table.blocks.push(block);
        }
        Ok(())
    }

    /// Offers the full blocks of a table to the index. `tokens` are those whose computation has
    /// committed, from position 0; call this after each such step, before the release.
    ///
    /// # Panics
    /// If the table is too short for the tokens.
    pub fn register(&mut self, table: &mut BlockTable, tokens: &[TokenId]) {
        self.assert_own(table);
        let num_full = tokens.len() / BLOCK_TOKENS;
        assert!(num_full <= table.len(), "more tokens than the table has blocks for");
        if num_full <= table.num_registered {
            return;
        }
        // The entry of an equal block, held by nobody, may have been evicted meanwhile: the chain is
        // then built anew from this table's own blocks.
        if table.tail.is_some_and(|tail| !self.index.is_current(tail)) {
            table.tail = None;
            table.num_registered = 0;
        }
        let mut parent = table.tail.map(|tail| tail.block);
        for at in table.num_registered..num_full {
            let chunk = &tokens[at * BLOCK_TOKENS..][..BLOCK_TOKENS];
            let block = table.blocks[at];
            let equal = self.index.find(parent, table.salt, chunk);
            if equal.is_none() {
                self.index.insert(block, parent, table.salt, chunk);
            }
            parent = equal.or(Some(block));
        }
        table.num_registered = num_full;
        table.tail = parent.map(|block| self.index.registration(block));
    }

    /// Takes back all blocks of a table. `last_step` is the last plan that names any of them: until
    /// it has committed, they are kept from others. A table from before a reset just becomes empty.
    pub fn release(&mut self, table: &mut BlockTable, last_step: StepId) {
        if table.life == self.life && !table.is_empty() {
            self.num_releases += 1;
            // The deepest first, so that it is evicted before its parents.
            for at in (0..table.len()).rev() {
                let block = table.blocks[at];
                if last_step > self.committed {
                    self.quarantine.push(Quarantined { until: last_step, block });
                    self.quarantined[block.index()] += 1;
                    self.note_returning(block);
                } else {
                    self.unreference(block);
                }
            }
        }
        table.clear();
    }

    /// Notes that a step has committed, and with it all before.
    pub fn committed(&mut self, step: StepId) {
        self.committed = self.committed.max(step);
        if self.quarantine.is_empty() {
            return;
        }
        self.num_releases += 1;
        let mut quarantine = std::mem::take(&mut self.quarantine);
        quarantine.retain(|entry| {
            let over = entry.until <= self.committed;
            if over {
                let at = entry.block.index();
                let returns = self.references[at] == self.quarantined[at];
                self.num_returning -= usize::from(returns);
                self.quarantined[at] -= 1;
                // Counts it again if another entry still holds it.
                self.unreference(entry.block);
            }
            !over
        });
        self.quarantine = quarantine;
    }

    /// Forgets all contents, tables and steps: the memory behind the blocks is gone.
    pub fn reset(&mut self) {
        self.references.fill(0);
        self.quarantined.fill(0);
        self.num_returning = 0;
        self.cached.clear();
        self.index.clear();
        self.quarantine.clear();
        self.committed = StepId(0);
        self.life += 1;
        self.num_releases += 1;
        self.fill_free();
    }

    /// Counts a block as returning if only the quarantine holds it any more.
    fn note_returning(&mut self, block: BlockId) {
        let quarantined = self.quarantined[block.index()];
        let returns = quarantined > 0 && quarantined == self.references[block.index()];
        self.num_returning += usize::from(returns);
    }

    fn unreference(&mut self, block: BlockId) {
        let references = &mut self.references[block.index()];
        *references -= 1;
        if *references == 0 {
            if self.index.node(block).indexed {
                self.cached.push(block);
            } else {
                self.free.push(block);
            }
        } else {
            self.note_returning(block);
        }
    }

    /// Frees the least recently used cached block. Its descendants leave the index with it: they are
    /// older and gone already, unless a table holds one whose parents are another table's blocks.
    fn evict_oldest(&mut self) {
        let Some(root) = self.cached.oldest() else { return };
        let mut at = root;
        loop {
            if let Some(child) = self.index.node(at).first_child {
                at = child;
                continue;
            }
            let parent = self.index.node(at).parent;
            self.index.remove_leaf(at);
            if self.references[at.index()] == 0 {
                self.cached.remove(at);
                self.free.push(at);
            }
            match parent {
                Some(parent) if at != root => at = parent,
                _ => return,
            }
        }
    }

    fn assert_own(&self, table: &BlockTable) {
        assert!(table.life == self.life, "a table from before a reset, or that was not begun");
    }
}
