//! A worker that computes nothing but checks everything: what it reads from the KV cache must be
//! what the sequence's own tokens put there.

use std::collections::{BTreeMap, VecDeque};

use oarlock_scheduler::Limits;
use oarlock_types::{
    BLOCK_TOKENS, BlockId, CacheSalt, Chunk, Epoch, Priority, Request, RequestId, SampledToken,
    SamplingParams, SlotError, SlotResult, SlotStart, StepId, StepPlan, StepResult, StopCriteria,
    TenantId, TokenId, TokenScore,
};

/// Tokens of the fake model's vocabulary. Few, so that stop tokens come up.
pub(crate) const VOCAB_SIZE: u32 = 50;

/// Hash of a sequence's beginning: what the KV cache holds at its last position.
fn extend_hash(hash: u64, token: TokenId) -> u64 {
    let mixed = (hash ^ u64::from(token.0)).wrapping_add(0x9E37_79B9_7F4A_7C15);
    let product = u128::from(mixed) * 0xD6E8_FEB8_6659_FD93;
    product as u64 ^ (product >> 64) as u64
}

/// Hash of all tokens. The seed stands for the salt, so that sharing across salts shows.
fn prefix_hash(seed: u64, tokens: &[TokenId]) -> u64 {
    tokens.iter().fold(seed, |hash, &token| extend_hash(hash, token))
}

/// The fake model: the token after these.
pub(crate) fn next_token(seed: u64, tokens: &[TokenId]) -> TokenId {
    TokenId((prefix_hash(seed, tokens) >> 20) as u32 % VOCAB_SIZE)
}

/// The fake model's logprob of the last of these tokens.
pub(crate) fn logprob(seed: u64, tokens: &[TokenId]) -> f32 {
    -((prefix_hash(seed, tokens) >> 40) as f32)
}

/// A request with sane values; its sampling seed is its salt.
pub(crate) fn request(id: u64, salt: u64, tokens: Vec<TokenId>, max_tokens: u32) -> Request {
    Request {
        id: RequestId(id),
        num_prompt: tokens.len() as u32,
        tokens,
        sampling: SamplingParams { seed: salt, ..SamplingParams::default() },
        stop: StopCriteria { max_tokens, stop_token_ids: Vec::new() },
        prompt_logprobs: None,
        priority: Priority::default(),
        tenant: TenantId(0),
        salt: CacheSalt(salt),
        deadline: None,
        group: None,
    }
}

struct Slot {
    tokens: Vec<TokenId>,
    num_prompt: u32,
    seed: u64,
    wants_scores: bool,
    table: Vec<BlockId>,
    /// Which start this is, to tell apart sequences that had the slot one after another.
    tenure: u64,
    failed: bool,
}

/// The state of a worker: slots, and for each KV entry the hash of the tokens that it was made of.
pub(crate) struct Worker {
    limits: Limits,
    epoch: Epoch,
    step: StepId,
    slots: Vec<Option<Slot>>,
    cache: Vec<[u64; BLOCK_TOKENS]>,
    num_tenures: u64,
    /// For each plan in flight, who named which blocks.
    named: VecDeque<(StepId, BTreeMap<BlockId, Vec<u64>>)>,
}

impl Worker {
    pub(crate) fn new(limits: Limits, epoch: Epoch) -> Self {
        Self {
            limits,
            epoch,
            step: StepId(0),
            slots: (0..limits.max_seqs).map(|_| None).collect(),
            cache: vec![[0; BLOCK_TOKENS]; limits.num_blocks as usize],
            num_tenures: 0,
            named: VecDeque::new(),
        }
    }

    /// Executes a plan. `fails` says which chunks fail.
    pub(crate) fn execute(
        &mut self,
        plan: &StepPlan,
        fails: impl Fn(&Chunk) -> bool,
    ) -> StepResult {
        assert_eq!(plan.epoch, self.epoch);
        assert_eq!(plan.step.0, self.step.0 + 1, "plans come without gaps");
        assert!(plan.num_tokens() <= self.limits.step_tokens as usize, "over the budget");
        self.step = plan.step;
        for slot in &plan.release {
            assert!(self.slots[slot.index()].take().is_some(), "slot {slot} was free already");
        }
        for start in &plan.start {
            self.start(start);
        }
        for new in &plan.blocks {
            self.slot(new.slot.index()).table.extend_from_slice(&new.blocks);
        }
        // All writes of a step come before all checks, since chunks run side by side.
        for chunk in &plan.chunks {
            self.write(chunk);
        }
        let mut named: BTreeMap<BlockId, Vec<u64>> = BTreeMap::new();
        let mut slots = Vec::new();
        for chunk in &plan.chunks {
            let slot = self.slot(chunk.slot.index());
            for &block in &slot.table {
                named.entry(block).or_default().push(slot.tenure);
            }
            slots.push(self.compute(chunk, fails(chunk)));
        }
        self.named.push_back((plan.step, named));
        StepResult { step: plan.step, slots, elapsed_us: 1 }
    }

    /// Notes that the scheduler has taken the oldest result.
    pub(crate) fn committed(&mut self) {
        self.named.pop_front();
    }

    fn slot(&mut self, at: usize) -> &mut Slot {
        self.slots[at].as_mut().expect("a slot in use")
    }

    fn start(&mut self, start: &SlotStart) {
        self.num_tenures += 1;
        let slot = &mut self.slots[start.slot.index()];
        assert!(slot.is_none(), "slot {} is in use", start.slot);
        assert!(start.num_prompt as usize <= start.tokens.len());
        *slot = Some(Slot {
            tokens: start.tokens.clone(),
            num_prompt: start.num_prompt,
            seed: start.sampling.seed,
            wants_scores: start.prompt_logprobs.is_some(),
            table: Vec::new(),
            tenure: self.num_tenures,
            failed: false,
        });
    }

    fn write(&mut self, chunk: &Chunk) {
        let slot = self.slots[chunk.slot.index()].as_ref().expect("a chunk of a slot in use");
        if slot.failed {
            return;
        }
        assert!(chunk.len > 0, "an empty chunk");
        let end = (chunk.start + chunk.len) as usize;
        assert!(end <= slot.tokens.len(), "a position without a token");
        assert!(end <= slot.table.len() * BLOCK_TOKENS, "a position without a block");
        for at in chunk.start as usize..end {
            let block = slot.table[at / BLOCK_TOKENS];
            for (_, named) in &self.named {
                let others = named.get(&block).into_iter().flatten();
                let alone = others.copied().all(|tenure| tenure == slot.tenure);
                assert!(alone, "block {block} is written while another plan in flight names it");
            }
            let hash = prefix_hash(slot.seed, &slot.tokens[..=at]);
            self.cache[block.index()][at % BLOCK_TOKENS] = hash;
        }
    }

    fn compute(&mut self, chunk: &Chunk, fails: bool) -> SlotResult {
        let slot = self.slots[chunk.slot.index()].as_mut().expect("a chunk of a slot in use");
        let mut result =
            SlotResult { slot: chunk.slot, outcome: Ok(None), prompt_scores: Vec::new() };
        if fails || slot.failed {
            slot.failed = true;
            result.outcome = Err(SlotError::InvalidLogits);
            return result;
        }
        let (start, end) = (chunk.start as usize, (chunk.start + chunk.len) as usize);
        let mut hash = slot.seed;
        for at in 0..end {
            hash = extend_hash(hash, slot.tokens[at]);
            let block = slot.table[at / BLOCK_TOKENS];
            let found = self.cache[block.index()][at % BLOCK_TOKENS];
            assert_eq!(found, hash, "position {at} of slot {} is not in the cache", chunk.slot);
        }
        let scored = chunk.score_start as usize..chunk.score_end as usize;
        assert!(scored.is_empty() || slot.wants_scores);
        assert!(scored.is_empty() || start <= scored.start && scored.end <= end);
        assert!(scored.is_empty() || scored.end < slot.num_prompt as usize);
        result.prompt_scores = scored
            .map(|at| TokenScore {
                logprob: logprob(slot.seed, &slot.tokens[..at + 2]),
                ..TokenScore::default()
            })
            .collect();
        if chunk.sample {
            assert_eq!(end, slot.tokens.len(), "sampling before the last known token");
            let token = next_token(slot.seed, &slot.tokens);
            slot.tokens.push(token);
            result.outcome = Ok(Some(SampledToken { token, score: None }));
        }
        result
    }
}
