//! Plans in, results out, on the tiny model and the oracle backend: what a worker keeps of a slot,
//! and that it refuses plans that cannot be.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use oarlock_backend::{BackendLimits, OracleBackend};
use oarlock_collective::{Alone, Collective, HostCollective, local_group};
use oarlock_model::{Checkpoint, load};
use oarlock_testkit::{TINY_VOCABULARY, TinyModel};
use oarlock_types::{
    BlockId, Chunk, Epoch, NewBlocks, SampledToken, SamplingParams, SlotError, SlotId, SlotStart,
    StepId, StepPlan, StepResult, TokenId, WorkerLimits,
};
use oarlock_worker::{Execute as _, Executor};

const LIMITS: WorkerLimits = WorkerLimits {
    epoch: Epoch(3),
    num_slots: 2,
    num_blocks: 16,
    max_step_tokens: 64,
    max_sequence_tokens: 128,
};

/// A token whose logits are NaN.
const POISON: u32 = 255;

/// An executor with the tiny model, and the step that is next.
struct Harness {
    executor: Executor<OracleBackend>,
    next: u64,
}

impl Harness {
    fn new() -> Self {
        Self::of(Box::new(Alone))
    }

    /// A rank of a group.
    fn of(collective: Box<dyn Collective<OracleBackend>>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.gguf");
        TinyModel { seed: 1, poison: Some(POISON), ..TinyModel::default() }.write(&path).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let limits =
            BackendLimits { max_tokens: 64, max_gathered: 4, max_chunks: 2, max_positions: 128 };
        let mut backend = OracleBackend::new(limits);
        let model = load(&checkpoint, &mut backend, collective, 16, &mut |_| ()).unwrap();
        Self { executor: Executor::new(backend, model, LIMITS), next: 1 }
    }

    fn plan(&mut self, plan: StepPlan) -> Result<StepResult, String> {
        let plan = StepPlan { epoch: Epoch(3), step: StepId(self.next), ..plan };
        self.next += 1;
        self.executor.execute(&plan).map_err(|error| error.to_string())
    }
}

fn prompt() -> Vec<TokenId> {
    (0..20).map(|index| TokenId(index * 11 % TINY_VOCABULARY as u32)).collect()
}

fn start(slot: u32, tokens: Vec<TokenId>, sampling: SamplingParams) -> SlotStart {
    SlotStart {
        slot: SlotId(slot),
        num_prompt: tokens.len() as u32,
        tokens,
        sampling,
        prompt_logprobs: Some(2),
    }
}

fn blocks(slot: u32, blocks: impl IntoIterator<Item = u32>) -> NewBlocks {
    NewBlocks { slot: SlotId(slot), blocks: blocks.into_iter().map(BlockId).collect() }
}

fn chunk(slot: u32, start: u32, len: u32, sample: bool) -> Chunk {
    Chunk { slot: SlotId(slot), start, len, sample, score_start: 0, score_end: 0 }
}

fn seeded() -> SamplingParams {
    SamplingParams { seed: 5, top_logprobs: Some(1), ..SamplingParams::default() }
}

fn token(result: &StepResult, index: usize) -> SampledToken {
    result.slots[index].outcome.clone().unwrap().expect("a token was asked for")
}

/// Runs a sequence of its own in slot 0 with the prompt cut at `cuts`, for `steps` more tokens.
fn generate(cuts: &[u32], first_block: u32, steps: u32) -> Vec<SampledToken> {
    let mut harness = Harness::new();
    let mut plan = StepPlan {
        start: vec![start(0, prompt(), seeded())],
        blocks: vec![blocks(0, first_block..first_block + 3)],
        ..StepPlan::default()
    };
    let mut from = 0;
    let mut tokens = Vec::new();
    let ends = cuts.iter().copied().chain([20]).chain(21..21 + steps);
    for end in ends {
        plan.chunks = vec![chunk(0, from, end - from, end >= 20)];
        let result = harness.plan(std::mem::take(&mut plan)).unwrap();
        if end >= 20 {
            tokens.push(token(&result, 0));
        }
        from = end;
    }
    tokens
}

#[test]
fn chunks_and_blocks_do_not_change_a_bit() {
    let whole = generate(&[], 0, 8);
    assert_eq!(whole.len(), 9);
    assert_eq!(generate(&[7, 14], 0, 8), whole);
    assert_eq!(generate(&[1, 2, 3, 16, 17], 9, 8), whole);
}

#[test]
fn a_neighbour_does_not_change_a_bit_and_a_slot_can_be_used_again() {
    let alone = generate(&[], 0, 0);
    let mut harness = Harness::new();
    let both = StepPlan {
        start: vec![start(1, prompt(), SamplingParams::default()), start(0, prompt(), seeded())],
        blocks: vec![blocks(1, [8, 7]), blocks(0, [5, 2])],
        chunks: vec![chunk(1, 0, 13, false), chunk(0, 0, 20, true)],
        ..StepPlan::default()
    };
    let result = harness.plan(both).unwrap();
    assert_eq!(result.slots[0].outcome, Ok(None));
    assert_eq!(token(&result, 1), alone[0]);
    let again = StepPlan {
        release: vec![SlotId(1)],
        start: vec![start(1, prompt(), seeded())],
        blocks: vec![blocks(1, [9, 10])],
        chunks: vec![chunk(1, 0, 20, true)],
        ..StepPlan::default()
    };
    assert_eq!(token(&harness.plan(again).unwrap(), 0), alone[0]);
}

#[test]
fn prompt_scores_name_the_following_token_and_agree_in_any_chunking() {
    let score = |cuts: &[u32]| {
        let mut harness = Harness::new();
        let mut plan = StepPlan {
            start: vec![start(0, prompt(), seeded())],
            blocks: vec![blocks(0, 0..2)],
            ..StepPlan::default()
        };
        let mut scores = Vec::new();
        let mut from = 0;
        for end in cuts.iter().copied().chain([20]) {
            let scored = Chunk {
                score_start: from,
                score_end: end.min(19),
                ..chunk(0, from, end - from, end == 20)
            };
            plan.chunks = vec![scored];
            let result = harness.plan(std::mem::take(&mut plan)).unwrap();
            scores.extend(result.slots[0].prompt_scores.clone());
            from = end;
        }
        scores
    };
    let whole = score(&[]);
    assert_eq!(whole.len(), 19);
    assert!(
        whole.iter().all(|score| score.logprob < 0.0 && score.top.len() == 2 && score.rank >= 1)
    );
    assert_eq!(score(&[3, 4, 17]), whole);
}

#[test]
fn one_slot_fails_alone_and_stays_failed() {
    let mut harness = Harness::new();
    let mut poisoned = prompt();
    poisoned[7] = TokenId(POISON);
    let first = StepPlan {
        start: vec![start(0, poisoned, seeded()), start(1, prompt(), seeded())],
        blocks: vec![blocks(0, [0, 1]), blocks(1, [2, 3])],
        chunks: vec![chunk(0, 0, 20, true), chunk(1, 0, 20, true)],
        ..StepPlan::default()
    };
    let result = harness.plan(first).unwrap();
    assert_eq!(result.slots[0].outcome, Err(SlotError::InvalidLogits));
    assert_eq!(token(&result, 1), generate(&[], 0, 0)[0]);
    // The plan after it was made before the failure was known.
    let next = StepPlan {
        chunks: vec![chunk(0, 20, 1, true), chunk(1, 20, 1, true)],
        ..StepPlan::default()
    };
    let result = harness.plan(next).unwrap();
    assert_eq!(result.slots[0].outcome, Err(SlotError::InvalidLogits));
    assert_eq!(token(&result, 1), generate(&[], 0, 1)[1]);
}

/// Ranks get the same plans. Rank 0 answers for all; the others keep up with what it sampled, and with
/// what failed, though only it knows why.
#[test]
fn ranks_go_in_step_and_the_first_answers() {
    let plans = || {
        let mut poisoned = prompt();
        poisoned[7] = TokenId(POISON);
        let first = StepPlan {
            start: vec![start(0, poisoned, seeded()), start(1, prompt(), seeded())],
            blocks: vec![blocks(0, [0, 1]), blocks(1, [2, 3])],
            chunks: vec![chunk(0, 0, 20, true), chunk(1, 0, 20, true)],
            ..StepPlan::default()
        };
        let next = |position: u32| StepPlan {
            chunks: vec![chunk(0, position, 1, true), chunk(1, position, 1, true)],
            ..StepPlan::default()
        };
        [first, next(20), next(21), StepPlan { release: vec![SlotId(0)], ..StepPlan::default() }]
    };
    let run = |mut harness: Harness| plans().map(|plan| harness.plan(plan).unwrap());
    let alone = run(Harness::new());
    let ranks: Vec<_> = std::thread::scope(|scope| {
        let rank = |transport| {
            scope.spawn(move || run(Harness::of(Box::new(HostCollective::new(transport)))))
        };
        let threads: Vec<_> = local_group(2).into_iter().map(rank).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (step, want) in alone.iter().enumerate() {
        assert_eq!(ranks[0][step].slots, want.slots, "step {step}");
        assert_eq!((ranks[1][step].step, &ranks[1][step].slots), (want.step, &Vec::new()));
    }
}

#[test]
fn impossible_plans_are_refused() {
    let running = || StepPlan {
        start: vec![start(0, prompt(), seeded())],
        blocks: vec![blocks(0, [0, 1])],
        ..StepPlan::default()
    };
    let with_chunk = |chunk: Chunk| StepPlan { chunks: vec![chunk], ..running() };
    let long: Vec<TokenId> = prompt().into_iter().cycle().take(80).collect();
    let cases = [
        (StepPlan { release: vec![SlotId(1)], ..StepPlan::default() }, "does not run"),
        (
            StepPlan { start: vec![start(2, prompt(), seeded())], ..StepPlan::default() },
            "does not exist",
        ),
        (
            StepPlan {
                start: vec![start(0, prompt(), seeded()), start(0, prompt(), seeded())],
                ..StepPlan::default()
            },
            "while it runs",
        ),
        (StepPlan { blocks: vec![blocks(0, [0])], ..StepPlan::default() }, "does not run"),
        (StepPlan { blocks: vec![blocks(0, [16])], ..running() }, "does not exist"),
        (StepPlan { blocks: vec![blocks(0, [0; 9])], ..running() }, "more blocks"),
        (with_chunk(chunk(0, 0, 33, false)), "no block"),
        (with_chunk(chunk(0, 0, 0, false)), "empty chunk"),
        (
            StepPlan { chunks: vec![chunk(0, 0, 4, false), chunk(0, 4, 4, false)], ..running() },
            "two chunks",
        ),
        (with_chunk(chunk(0, 0, 21, false)), "not known"),
        (with_chunk(chunk(0, 0, 19, true)), "before its last token"),
        (with_chunk(Chunk { score_start: 5, score_end: 20, ..chunk(0, 4, 16, false) }), "outside"),
        (
            StepPlan {
                start: vec![start(0, long, seeded())],
                blocks: vec![blocks(0, 0..5)],
                chunks: vec![chunk(0, 0, 65, false)],
                ..StepPlan::default()
            },
            "65 tokens, and the limit is 64",
        ),
    ];
    for (plan, reason) in cases {
        let error = Harness::new().plan(plan).expect_err(reason);
        assert!(error.contains(reason), "{error}");
    }
    let mut harness = Harness::new();
    harness.next = 2;
    assert!(harness.plan(StepPlan::default()).expect_err("a gap").contains("step 1 was due"));
    let other = StepPlan { epoch: Epoch(2), step: StepId(1), ..StepPlan::default() };
    assert!(
        harness.executor.execute(&other).expect_err("an old epoch").to_string().contains("epoch 2")
    );
}
