//! Random operation traces on caches so small that preemption is constant.

use oarlock_scheduler::Limits;
use oarlock_types::{Priority, Request, RequestId, StepPlan, Tick, TokenId};
use proptest::prelude::*;

use crate::harness::Harness;
use crate::worker::{VOCAB_SIZE, request};

#[derive(Clone, Debug)]
enum Op {
    Submit(Box<Wish>),
    Plan,
    /// Plan, and of the chunks the one of this slot fails.
    PlanFailing(u32),
    Commit,
    Cancel(usize),
    Wait(u64),
    Reset,
}

/// What a random request is made of.
#[derive(Clone, Debug)]
struct Wish {
    salt: u64,
    /// Prompts are cuts of a few long texts, so that prefixes coincide.
    text: u32,
    num_prompt: usize,
    num_moved: usize,
    max_tokens: u32,
    stops: bool,
    scores: bool,
    priority: u8,
    deadline: Option<u64>,
}

fn wish() -> impl Strategy<Value = Wish> {
    let chance = |percent: u32| (0_u32..100).prop_map(move |n| n < percent);
    let moved = prop_oneof![5 => Just(0), 1 => 1_usize..20];
    let deadline = prop_oneof![5 => Just(None), 1 => (1_u64..60).prop_map(Some)];
    let shape = (0_u64..2, 0_u32..3, 1_usize..90, moved, 0_u32..40);
    (shape, chance(30), chance(15), 0_u8..2, deadline).prop_map(
        |((salt, text, num_prompt, num_moved, max_tokens), stops, scores, priority, deadline)| {
            Wish {
                salt,
                text,
                num_prompt,
                num_moved,
                max_tokens,
                stops,
                scores,
                priority,
                deadline,
            }
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => wish().prop_map(|wish| Op::Submit(Box::new(wish))),
        20 => Just(Op::Plan),
        1 => (0_u32..4).prop_map(Op::PlanFailing),
        18 => Just(Op::Commit),
        2 => any::<usize>().prop_map(Op::Cancel),
        1 => (1_u64..20).prop_map(Op::Wait),
        1 => (0_u32..4).prop_map(|n| if n == 0 { Op::Reset } else { Op::Plan }),
    ]
}

fn limits() -> impl Strategy<Value = Limits> {
    (1_u32..14, 1_u32..6, 1_u32..48, 0_u32..24, 20_u32..200, 1_u32..4).prop_map(
        |(num_blocks, max_seqs, step_tokens, chunk, sequence, in_flight)| Limits {
            num_blocks,
            max_seqs,
            max_queued: 12,
            step_tokens,
            max_chunk_tokens: chunk,
            max_sequence_tokens: sequence,
            vocab_size: VOCAB_SIZE,
            max_plans_in_flight: in_flight,
        },
    )
}

fn build(id: u64, wish: &Wish, now: Tick) -> Request {
    let text = |at: u32| TokenId((at * at + wish.text * (at / 20)) % VOCAB_SIZE);
    let mut tokens: Vec<TokenId> = (0..wish.num_prompt as u32).map(text).collect();
    let mut built = request(id, wish.salt, tokens.clone(), wish.max_tokens);
    if !wish.scores {
        for _ in 0..wish.num_moved {
            tokens.push(crate::worker::next_token(wish.salt, &tokens));
        }
    }
    built.tokens = tokens;
    if wish.stops {
        built.stop.stop_token_ids = vec![TokenId(3), TokenId(11), TokenId(40)];
    }
    built.prompt_logprobs = wish.scores.then_some(2);
    built.priority = Priority(wish.priority);
    built.deadline = wish.deadline.map(|left| Tick(now.0 + left));
    built
}

/// Runs a trace to its end, and everything in it to its own; returns the plans.
fn run(limits: Limits, ops: &[Op], cancel_all: bool) -> Vec<StepPlan> {
    let mut harness = Harness::new(limits);
    let mut ids = 0;
    for op in ops {
        match op {
            Op::Submit(wish) => {
                ids += 1;
                // May be refused: too long, or the queue is full.
                let _outcome = harness.submit(build(ids, wish, harness.now));
            }
            Op::Plan => {
                harness.plan();
            }
            Op::PlanFailing(slot) => {
                harness.plan_failing(|chunk| chunk.slot.0 == *slot);
            }
            Op::Commit => {
                harness.commit();
            }
            Op::Cancel(which) => {
                let unfinished: Vec<RequestId> = harness.clients.unfinished().collect();
                if !unfinished.is_empty() {
                    harness.cancel(unfinished[which % unfinished.len()]);
                }
            }
            Op::Wait(time) => harness.now.0 += time,
            Op::Reset => harness.reset(),
        }
    }
    if cancel_all {
        let unfinished: Vec<RequestId> = harness.clients.unfinished().collect();
        for id in unfinished {
            harness.cancel(id);
        }
        while harness.commit() {}
        assert_eq!(harness.scheduler.stats().blocks_in_use, 0, "blocks were lost");
    }
    harness.drain();
    harness.plans
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn random_traces(limits in limits(), ops in prop::collection::vec(op(), 150..250)) {
        run(limits, &ops, false);
    }

    #[test]
    fn cancelling_everything_gives_every_block_back(
        limits in limits(),
        ops in prop::collection::vec(op(), 10..80),
    ) {
        run(limits, &ops, true);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]

    #[test]
    fn the_same_trace_gives_the_same_plans(
        limits in limits(),
        ops in prop::collection::vec(op(), 50..150),
    ) {
        prop_assert_eq!(run(limits, &ops, false), run(limits, &ops, false));
    }
}
