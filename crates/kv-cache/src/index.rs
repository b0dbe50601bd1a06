//! The prefix index: full, committed blocks by parent, tokens and salt.
//!
//! A forest of blocks and a hash table over it, both linked through arrays with one node per block.

use oarlock_types::{BLOCK_TOKENS, BlockId, CacheSalt, TokenId};

/// One stay of a block in the index. A block that left and came back has another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Registration {
    pub(crate) block: BlockId,
    generation: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Node {
    pub(crate) indexed: bool,
    pub(crate) salt: CacheSalt,
    pub(crate) parent: Option<BlockId>,
    pub(crate) first_child: Option<BlockId>,
    pub(crate) next_sibling: Option<BlockId>,
    previous_sibling: Option<BlockId>,
    /// Next node in the same bucket of the hash table.
    next_in_bucket: Option<BlockId>,
    generation: u64,
}

#[derive(Debug)]
pub(crate) struct PrefixIndex {
    nodes: Vec<Node>,
    /// Tokens of each block, flat.
    tokens: Vec<TokenId>,
    /// A power of two, at least the number of blocks.
    buckets: Vec<Option<BlockId>>,
}

impl PrefixIndex {
    pub(crate) fn new(num_blocks: usize) -> Self {
        Self::with_buckets(num_blocks, num_blocks.next_power_of_two())
    }

    fn with_buckets(num_blocks: usize, num_buckets: usize) -> Self {
        Self {
            nodes: vec![Node::default(); num_blocks],
            tokens: vec![TokenId::default(); num_blocks * BLOCK_TOKENS],
            buckets: vec![None; num_buckets],
        }
    }

    pub(crate) fn node(&self, block: BlockId) -> &Node {
        &self.nodes[block.index()]
    }

    /// The block with these tokens under this parent.
    pub(crate) fn find(
        &self,
        parent: Option<BlockId>,
        salt: CacheSalt,
        tokens: &[TokenId],
    ) -> Option<BlockId> {
        let mut next = self.buckets[self.bucket(parent, salt, tokens)];
        while let Some(block) = next {
            let node = self.node(block);
            if node.parent == parent && node.salt == salt && self.tokens_of(block) == tokens {
                return Some(block);
            }
            next = node.next_in_bucket;
        }
        None
    }

    /// Adds a block that is not indexed; its parent is, and no equal block.
    pub(crate) fn insert(
        &mut self,
        block: BlockId,
        parent: Option<BlockId>,
        salt: CacheSalt,
        tokens: &[TokenId],
    ) {
        debug_assert!(!self.node(block).indexed, "block {block} is indexed already");
        debug_assert!(parent.is_none_or(|parent| self.node(parent).indexed && parent != block));
        debug_assert!(self.find(parent, salt, tokens).is_none(), "an equal block is indexed");
        self.tokens[block.index() * BLOCK_TOKENS..][..BLOCK_TOKENS].copy_from_slice(tokens);
        let bucket = self.bucket(parent, salt, tokens);
        let next_sibling = match parent {
            Some(parent) => self.nodes[parent.index()].first_child.replace(block),
            None => None,
        };
        if let Some(sibling) = next_sibling {
            self.nodes[sibling.index()].previous_sibling = Some(block);
        }
        let generation = self.node(block).generation + 1;
        self.nodes[block.index()] = Node {
            indexed: true,
            salt,
            parent,
            first_child: None,
            next_sibling,
            previous_sibling: None,
            next_in_bucket: self.buckets[bucket].replace(block),
            generation,
        };
    }

    /// Takes out a block that is indexed and has no children.
    pub(crate) fn remove_leaf(&mut self, block: BlockId) {
        let node = self.node(block).clone();
        debug_assert!(node.indexed && node.first_child.is_none());
        self.unlink_from_bucket(block, &node);
        if let Some(next) = node.next_sibling {
            self.nodes[next.index()].previous_sibling = node.previous_sibling;
        }
        match (node.previous_sibling, node.parent) {
            (Some(previous), _) => self.nodes[previous.index()].next_sibling = node.next_sibling,
            (None, Some(parent)) => self.nodes[parent.index()].first_child = node.next_sibling,
            (None, None) => {}
        }
        self.nodes[block.index()] = Node { generation: node.generation, ..Node::default() };
    }

    fn unlink_from_bucket(&mut self, block: BlockId, node: &Node) {
        let bucket = self.bucket(node.parent, node.salt, self.tokens_of(block));
        if self.buckets[bucket] == Some(block) {
            self.buckets[bucket] = node.next_in_bucket;
            return;
        }
        let mut at = self.buckets[bucket];
        while let Some(previous) = at {
            let next = self.node(previous).next_in_bucket;
            if next == Some(block) {
                self.nodes[previous.index()].next_in_bucket = node.next_in_bucket;
                return;
            }
            at = next;
        }
        debug_assert!(false, "block {block} is missing from its bucket");
    }

    /// A name for the present stay of an indexed block.
    pub(crate) fn registration(&self, block: BlockId) -> Registration {
        Registration { block, generation: self.node(block).generation }
    }

    /// Whether the block has been indexed ever since.
    pub(crate) fn is_current(&self, registration: Registration) -> bool {
        let node = self.node(registration.block);
        node.indexed && node.generation == registration.generation
    }

    pub(crate) fn tokens_of(&self, block: BlockId) -> &[TokenId] {
        &self.tokens[block.index() * BLOCK_TOKENS..][..BLOCK_TOKENS]
    }

    /// Empties the index. Generations go on, so that no old registration looks current.
    pub(crate) fn clear(&mut self) {
        self.buckets.fill(None);
        for node in &mut self.nodes {
            *node = Node { generation: node.generation, ..Node::default() };
        }
    }

    /// Multiply-and-fold over parent, salt and tokens. Its quality decides the speed, nothing else.
    fn bucket(&self, parent: Option<BlockId>, salt: CacheSalt, tokens: &[TokenId]) -> usize {
        // Digits of π, odd.
        const MULTIPLIER: u64 = 0x2437_6A88_85A3_08D3;
        let fold = |a: u64, b: u64| {
            let product = u128::from(a ^ b) * u128::from(MULTIPLIER);
            product as u64 ^ (product >> 64) as u64
        };
        let parent = parent.map_or(0, |parent| u64::from(parent.0) + 1);
        let mut hash = fold(fold(MULTIPLIER, parent), salt.0);
        for pair in tokens.chunks(2) {
            let high = pair.get(1).map_or(0, |token| u64::from(token.0));
            hash = fold(hash.rotate_left(29), high << 32 | u64::from(pair[0].0));
        }
        hash as usize & (self.buckets.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: CacheSalt = CacheSalt(5);

    fn tokens(last: u32) -> [TokenId; BLOCK_TOKENS] {
        let mut tokens = [TokenId(1); BLOCK_TOKENS];
        tokens[BLOCK_TOKENS - 1] = TokenId(last);
        tokens
    }

    /// Every hash collides, and still only the right block is found.
    #[test]
    fn parent_salt_and_tokens_are_compared() {
        let mut index = PrefixIndex::with_buckets(8, 1);
        let [a, b, c, d] = [0, 1, 2, 3].map(BlockId);
        index.insert(a, None, SALT, &tokens(1));
        index.insert(b, Some(a), SALT, &tokens(1));
        index.insert(c, Some(b), SALT, &tokens(1));
        index.insert(d, None, CacheSalt(6), &tokens(1));
        assert_eq!(index.find(None, SALT, &tokens(1)), Some(a));
        assert_eq!(index.find(Some(a), SALT, &tokens(1)), Some(b));
        assert_eq!(index.find(Some(b), SALT, &tokens(1)), Some(c));
        assert_eq!(index.find(None, CacheSalt(6), &tokens(1)), Some(d));
        assert_eq!(index.find(Some(c), SALT, &tokens(1)), None);
        assert_eq!(index.find(Some(d), SALT, &tokens(1)), None);
        assert_eq!(index.find(None, CacheSalt(7), &tokens(1)), None);
        assert_eq!(index.find(None, SALT, &tokens(2)), None);
    }

    #[test]
    fn leaving_unlinks_from_bucket_and_siblings() {
        let mut index = PrefixIndex::with_buckets(8, 1);
        let parent = BlockId(7);
        index.insert(parent, None, SALT, &tokens(0));
        for id in 0..4 {
            index.insert(BlockId(id), Some(parent), SALT, &tokens(id));
        }
        let first = index.registration(BlockId(2));
        for id in [2, 3, 0] {
            index.remove_leaf(BlockId(id));
            assert_eq!(index.find(Some(parent), SALT, &tokens(id)), None);
        }
        assert_eq!(index.find(Some(parent), SALT, &tokens(1)), Some(BlockId(1)));
        assert_eq!(index.node(parent).first_child, Some(BlockId(1)));
        assert_eq!(index.node(BlockId(1)).next_sibling, None);
        index.insert(BlockId(2), Some(parent), SALT, &tokens(2));
        assert!(!index.is_current(first) && index.is_current(index.registration(BlockId(2))));
    }
}
