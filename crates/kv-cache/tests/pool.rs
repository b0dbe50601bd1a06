//! The pool's rules one by one, and its invariants over random operations.

use oarlock_kv_cache::{BlockPool, BlockTable, OutOfBlocks};
use oarlock_types::{BLOCK_TOKENS, BlockId, CacheSalt, StepId, TokenId};
use proptest::prelude::*;

const SALT: CacheSalt = CacheSalt(1);
const NOW: StepId = StepId(0);

fn tokens(first: u32, len: usize) -> Vec<TokenId> {
    (first..).take(len).map(TokenId).collect()
}

/// A table whose blocks hold `tokens`, registered.
fn filled(pool: &mut BlockPool, salt: CacheSalt, tokens: &[TokenId]) -> BlockTable {
    let mut table = BlockTable::default();
    pool.acquire(&mut table, salt, tokens, usize::MAX);
    let missing = tokens.len().div_ceil(BLOCK_TOKENS) - table.len();
    pool.extend(&mut table, missing).expect("the pool is large enough");
    pool.register(&mut table, tokens);
    table
}

#[test]
fn what_can_get_better_for_a_waiting_table_is_seen() {
    let mut pool = BlockPool::new(8);
    let prompt = tokens(0, 64);
    let mut short = filled(&mut pool, SALT, &prompt[..32]);
    let mut waiting = BlockTable::default();
    assert_eq!(pool.acquire(&mut waiting, SALT, &prompt, 3), 2);
    let end = waiting.prefix_end();
    pool.release(&mut waiting, NOW);
    let (before, longer) =
        (pool.num_releases(), |pool: &BlockPool| pool.may_be_longer(end, SALT, &prompt, 3));
    assert!(!longer(&pool));
    // Taking blocks and putting others into the index helps nobody.
    let mut other = filled(&mut pool, CacheSalt(2), &prompt);
    assert!(!longer(&pool));
    assert_eq!(pool.num_releases(), before);
    // Blocks come back later, and then once more.
    pool.release(&mut other, StepId(1));
    let releasing = pool.num_releases();
    assert!(releasing > before);
    pool.committed(StepId(1));
    assert!(pool.num_releases() > releasing);
    // Somebody else has computed the next block.
    let mut long = filled(&mut pool, SALT, &prompt[..48]);
    assert!(longer(&pool));
    assert!(!pool.may_be_longer(end, SALT, &prompt, 2), "not beyond the most that may be taken");
    assert!(!pool.may_be_longer(end, SALT, &prompt[..47], 3), "not beyond the full blocks");
    // The end itself has left the index.
    pool.release(&mut short, NOW);
    pool.release(&mut long, NOW);
    let mut all = BlockTable::default();
    pool.acquire(&mut all, SALT, &[], 0);
    pool.extend(&mut all, 8).expect("nobody holds a block");
    assert!(longer(&pool));
    pool.release(&mut all, NOW);
    pool.check_invariants(std::iter::empty());
}

#[test]
fn a_released_prefix_is_found_again() {
    let mut pool = BlockPool::new(8);
    let prompt = tokens(0, 40);
    let mut first = filled(&mut pool, SALT, &prompt);
    let blocks = first.blocks().to_vec();
    pool.release(&mut first, NOW);
    assert_eq!((pool.num_cached(), pool.num_available()), (2, 8));

    assert_eq!(pool.lookup(SALT, &prompt, 9), 2);
    assert_eq!(pool.lookup(SALT, &prompt, 1), 1);
    assert_eq!(pool.lookup(SALT, &prompt[..31], 9), 1);
    assert_eq!(pool.lookup(SALT, &prompt[1..], 9), 0);
    let mut second = BlockTable::default();
    assert_eq!(pool.acquire(&mut second, SALT, &prompt, 2), 2);
    assert_eq!(second.blocks(), &blocks[..2]);
    assert_eq!(pool.num_available(), 6);
    pool.check_invariants([&first, &second]);
}

#[test]
fn salts_share_nothing() {
    let mut pool = BlockPool::new(8);
    let prompt = tokens(0, 32);
    let first = filled(&mut pool, SALT, &prompt);
    assert_eq!(pool.lookup(CacheSalt(2), &prompt, 9), 0);
    let second = filled(&mut pool, CacheSalt(2), &prompt);
    assert!(first.blocks().iter().all(|block| !second.blocks().contains(block)));
    pool.check_invariants([&first, &second]);
}

#[test]
fn the_same_tokens_under_another_parent_are_another_block() {
    let mut pool = BlockPool::new(8);
    let (a, b) = (tokens(0, 16), tokens(100, 16));
    let _ab = filled(&mut pool, SALT, &[&a[..], &b].concat());
    assert_eq!(pool.lookup(SALT, &[&b[..], &b].concat(), 9), 0);
    assert_eq!(pool.lookup(SALT, &[&a[..], &a].concat(), 9), 1);
}

#[test]
fn only_full_blocks_are_registered() {
    let mut pool = BlockPool::new(4);
    let prompt = tokens(0, 31);
    let mut table = filled(&mut pool, SALT, &prompt);
    assert_eq!(pool.lookup(SALT, &tokens(0, 64), 9), 1);
    pool.register(&mut table, &tokens(0, 32));
    assert_eq!(pool.lookup(SALT, &tokens(0, 64), 9), 2);
}

#[test]
fn extension_is_all_or_nothing() {
    let mut pool = BlockPool::new(4);
    let mut table = filled(&mut pool, SALT, &tokens(0, 33));
    assert_eq!(pool.extend(&mut table, 2), Err(OutOfBlocks));
    assert_eq!((table.len(), pool.num_available()), (3, 1));
    assert_eq!(pool.extend(&mut table, 1), Ok(()));
    pool.check_invariants([&table]);
}

#[test]
fn the_least_recently_used_leaves_first_children_before_parents() {
    let mut pool = BlockPool::new(4);
    let (old, new) = (tokens(0, 32), tokens(500, 32));
    let mut first = filled(&mut pool, SALT, &old);
    let mut second = filled(&mut pool, SALT, &new);
    pool.release(&mut first, NOW);
    pool.release(&mut second, NOW);
    let mut table = filled(&mut pool, SALT, &tokens(900, 1));
    assert_eq!(pool.lookup(SALT, &old, 9), 1);
    pool.extend(&mut table, 1).unwrap();
    assert_eq!((pool.lookup(SALT, &old, 9), pool.lookup(SALT, &new, 9)), (0, 2));
    pool.extend(&mut table, 1).unwrap();
    assert_eq!(pool.lookup(SALT, &new, 9), 1);
    pool.check_invariants([&table]);
}

#[test]
fn an_equal_block_is_kept_but_not_indexed_and_its_children_are() {
    let mut pool = BlockPool::new(8);
    let shared = tokens(0, 16);
    let long = tokens(0, 48);
    // Both compute the same first block at the same time.
    let (mut first, mut second) = (BlockTable::default(), BlockTable::default());
    for table in [&mut first, &mut second] {
        pool.acquire(table, SALT, &[], 0);
        pool.extend(table, 1).unwrap();
    }
    pool.register(&mut first, &shared);
    pool.register(&mut second, &shared);
    assert_ne!(first.blocks(), second.blocks());
    pool.extend(&mut second, 1).unwrap();
    pool.register(&mut second, &long[..32]);
    assert_eq!(pool.lookup(SALT, &long, 9), 2);
    pool.check_invariants([&first, &second]);

    // The first one's block is evicted: what hung below it is found no more, until the second one
    // registers again, now with its own blocks.
    pool.release(&mut first, NOW);
    let mut other = BlockTable::default();
    pool.acquire(&mut other, SALT, &[], 0);
    pool.extend(&mut other, 6).unwrap();
    assert_eq!(pool.lookup(SALT, &long, 9), 0);
    pool.check_invariants([&second, &other]);
    pool.release(&mut other, NOW);
    pool.extend(&mut second, 1).unwrap();
    pool.register(&mut second, &long);
    assert_eq!(pool.lookup(SALT, &long, 9), 3);
    pool.release(&mut second, NOW);
    assert_eq!((pool.num_available(), pool.num_cached()), (8, 3));
    pool.check_invariants([]);
}

#[test]
fn blocks_of_a_plan_in_flight_are_not_given_out() {
    let mut pool = BlockPool::new(2);
    let mut table = filled(&mut pool, SALT, &tokens(0, 20));
    pool.release(&mut table, StepId(3));
    assert!(pool.num_returning() == 2 && table.is_empty());
    assert_eq!(pool.num_available(), 0);
    pool.committed(StepId(2));
    assert_eq!(pool.num_available(), 0);
    pool.check_invariants([]);
    pool.committed(StepId(3));
    assert_eq!((pool.num_available(), pool.num_cached()), (2, 1));
    // A plan that has committed already holds nothing back.
    let mut table = filled(&mut pool, SALT, &tokens(50, 20));
    pool.release(&mut table, StepId(3));
    assert!(pool.num_returning() == 0);
    pool.check_invariants([]);
}

#[test]
fn a_reset_forgets_everything() {
    let mut pool = BlockPool::new(4);
    let mut table = filled(&mut pool, SALT, &tokens(0, 32));
    pool.reset();
    assert_eq!((pool.num_available(), pool.lookup(SALT, &tokens(0, 32), 9)), (4, 0));
    pool.release(&mut table, StepId(9));
    pool.check_invariants([&table]);
    assert_eq!(pool.num_available(), 4);
    assert_eq!(filled(&mut pool, SALT, &tokens(0, 32)).blocks(), [BlockId(0), BlockId(1)]);
}

#[derive(Clone, Debug)]
enum Op {
    /// Begin a sequence of this salt and of tokens drawn from a tiny alphabet.
    Begin {
        salt: u64,
        first: Vec<u32>,
    },
    /// Compute this many tokens more and register them.
    Grow {
        which: usize,
        len: usize,
    },
    Release {
        which: usize,
        in_flight: u64,
    },
    Commit,
    Reset,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0_u64..2, prop::collection::vec(0_u32..2, 0..6))
            .prop_map(|(salt, first)| Op::Begin { salt, first }),
        8 => (any::<usize>(), 1_usize..40).prop_map(|(which, len)| Op::Grow { which, len }),
        4 => (any::<usize>(), 0_u64..3).prop_map(|(which, in_flight)| Op::Release { which, in_flight }),
        3 => Just(Op::Commit),
        1 => (0_u32..20).prop_map(|n| if n == 0 { Op::Reset } else { Op::Commit }),
    ]
}

struct Sequence {
    table: BlockTable,
    salt: CacheSalt,
    tokens: Vec<TokenId>,
    computed: usize,
}

/// The pool beside a simple model of what it must do.
struct Model {
    pool: BlockPool,
    running: Vec<Sequence>,
    /// What was last computed into each block: salt and all tokens up to its end.
    contents: Vec<Option<(CacheSalt, Vec<TokenId>)>>,
    /// The last step that names each block.
    named_until: Vec<u64>,
    step: u64,
}

impl Model {
    fn new(num_blocks: u32) -> Self {
        Self {
            pool: BlockPool::new(num_blocks),
            running: Vec::new(),
            contents: vec![None; num_blocks as usize],
            named_until: vec![0; num_blocks as usize],
            step: 0,
        }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Begin { salt, first } => self.begin(CacheSalt(salt), &first),
            Op::Grow { which, len } if !self.running.is_empty() => {
                self.grow(which % self.running.len(), len);
            }
            Op::Release { which, in_flight } if !self.running.is_empty() => {
                self.release(which % self.running.len(), self.step + in_flight);
            }
            Op::Grow { .. } | Op::Release { .. } => {}
            Op::Commit => {
                self.step += 1;
                self.pool.committed(StepId(self.step));
            }
            Op::Reset => {
                self.pool.reset();
                self.running.clear();
                self.contents.fill(None);
                self.named_until.fill(0);
                self.step = 0;
            }
        }
        self.pool.check_invariants(self.running.iter().map(|sequence| &sequence.table));
    }

    /// Each digit is one block of equal tokens, so that prefixes coincide often.
    fn begin(&mut self, salt: CacheSalt, digits: &[u32]) {
        let tokens: Vec<TokenId> =
            digits.iter().flat_map(|&digit| [TokenId(digit); BLOCK_TOKENS]).collect();
        let mut table = BlockTable::default();
        let expected = self.pool.lookup(salt, &tokens, 4);
        let hit = self.pool.acquire(&mut table, salt, &tokens, 4);
        assert_eq!(hit, expected);
        for (at, block) in table.blocks().iter().enumerate() {
            let want = (salt, tokens[..(at + 1) * BLOCK_TOKENS].to_vec());
            assert_eq!(self.contents[block.index()].as_ref(), Some(&want));
        }
        self.running.push(Sequence { table, salt, tokens, computed: hit * BLOCK_TOKENS });
    }

    fn grow(&mut self, which: usize, len: usize) {
        let sequence = &mut self.running[which];
        let end = sequence.computed + len;
        if sequence.tokens.len() < end {
            sequence.tokens.resize(end, TokenId(7));
        }
        let have = sequence.table.len();
        let missing = end.div_ceil(BLOCK_TOKENS).saturating_sub(have);
        let fits = missing <= self.pool.num_available();
        assert_eq!(self.pool.extend(&mut sequence.table, missing).is_ok(), fits);
        if !fits {
            return;
        }
        for block in &sequence.table.blocks()[have..] {
            assert!(self.named_until[block.index()] <= self.step, "named by a plan in flight");
        }
        for at in sequence.computed / BLOCK_TOKENS..end.div_ceil(BLOCK_TOKENS) {
            let upto = ((at + 1) * BLOCK_TOKENS).min(end);
            let block = sequence.table.blocks()[at];
            self.contents[block.index()] = Some((sequence.salt, sequence.tokens[..upto].to_vec()));
        }
        sequence.computed = end;
        self.pool.register(&mut sequence.table, &sequence.tokens[..end]);
    }

    fn release(&mut self, which: usize, last_step: u64) {
        let mut sequence = self.running.swap_remove(which);
        for block in sequence.table.blocks() {
            let until = &mut self.named_until[block.index()];
            *until = (*until).max(last_step);
        }
        self.pool.release(&mut sequence.table, StepId(last_step));
    }

    /// Everything given back is there again.
    fn finish(mut self) {
        while !self.running.is_empty() {
            self.release(0, self.step);
        }
        self.pool.committed(StepId(self.step + 3));
        self.pool.check_invariants([]);
        assert_eq!(self.pool.num_available(), self.pool.num_blocks(), "every block came back");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn random_operations_keep_the_invariants(
        num_blocks in 1_u32..24,
        ops in prop::collection::vec(op(), 1..300),
    ) {
        let mut model = Model::new(num_blocks);
        for op in ops {
            model.apply(op);
        }
        model.finish();
    }
}
