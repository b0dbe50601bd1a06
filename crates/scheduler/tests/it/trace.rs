//! Random operation traces on caches so small that preemption is constant; used by the property tests
//! and by `examples/soak.rs`.

use std::cell::Cell;

use oarlock_scheduler::Limits;
use oarlock_types::{GroupId, Priority, Request, RequestId, StepPlan, TenantId, Tick, TokenId};
use proptest::prelude::*;

use crate::harness::Harness;
use crate::worker::{VOCAB_SIZE, next_token, request};

/// Something that happens to a scheduler from outside.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    /// So many siblings, or one request.
    Submit(Box<Wish>, u32),
    Plan,
    /// Plan, and of the chunks the one of this slot fails.
    PlanFailing(u32),
    Commit,
    Cancel(usize),
    Wait(u64),
    Reset,
    DieAgain,
}

/// What a random request is made of.
#[derive(Clone, Debug)]
pub(crate) struct Wish {
    salt: u64,
    tenant: u64,
    /// Prompts are cuts of a few long texts, so that prefixes coincide.
    text: u32,
    num_prompt: usize,
    num_moved: usize,
    max_tokens: u32,
    stops: bool,
    scores: bool,
    priority: u8,
    deadline: Option<u64>,
    /// Few ids, so that requests that have nothing in common share them, too.
    group: Option<u64>,
}

fn wish() -> impl Strategy<Value = Wish> {
    let chance = |percent: u32| (0_u32..100).prop_map(move |n| n < percent);
    let moved = prop_oneof![5 => Just(0), 1 => 1_usize..20];
    let deadline = prop_oneof![5 => Just(None), 1 => (1_u64..60).prop_map(Some)];
    let group = prop_oneof![1 => Just(None), 1 => (0_u64..3).prop_map(Some)];
    let priority = prop_oneof![3 => Just(100_u8), 1 => 0_u8..3, 1 => 99_u8..102];
    let shape = (0_u32..3, 1_usize..90, moved, 0_u32..40);
    let owner = (0_u64..2, 0_u64..3, priority, group);
    (owner, shape, chance(30), chance(15), deadline).prop_map(
        |(owner, (text, num_prompt, num_moved, max_tokens), stops, scores, deadline)| Wish {
            salt: owner.0,
            tenant: owner.1,
            text,
            num_prompt,
            num_moved,
            max_tokens,
            stops,
            scores,
            priority: owner.2,
            deadline,
            group: owner.3,
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    let num_siblings = prop_oneof![4 => Just(1_u32), 1 => 2_u32..5];
    prop_oneof![
        6 => (wish(), num_siblings).prop_map(|(wish, n)| Op::Submit(Box::new(wish), n)),
        20 => Just(Op::Plan),
        1 => (0_u32..4).prop_map(Op::PlanFailing),
        18 => Just(Op::Commit),
        2 => any::<usize>().prop_map(Op::Cancel),
        1 => prop_oneof![9 => 1_u64..20, 1 => 1_u64..5_000_000].prop_map(Op::Wait),
        1 => (0_u32..8).prop_map(|n| match n {
            0 => Op::Reset,
            1 => Op::DieAgain,
            _ => Op::Plan,
        }),
    ]
}

/// Operations of one trace.
pub(crate) fn ops(len: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(), len)
}

/// Little room, one to three plans in flight (mostly two).
pub(crate) fn limits() -> impl Strategy<Value = Limits> {
    let in_flight = prop_oneof![1 => Just(1_u32), 3 => Just(2), 1 => Just(3)];
    let queued_tokens = prop_oneof![2 => Just(u64::MAX), 1 => 50_u64..500];
    let step = (1_u32..48, 0_u32..24);
    let num_blocks = prop_oneof![4 => 1_u32..14, 1 => 14_u32..50];
    let max_seqs = prop_oneof![4 => 1_u32..6, 1 => 6_u32..12];
    let queued = (prop_oneof![4 => Just(12_u32), 1 => 1_u32..40], queued_tokens);
    (num_blocks, max_seqs, step, 20_u32..200, in_flight, queued).prop_map(
        |(num_blocks, max_seqs, (step_tokens, chunk), sequence, in_flight, queued)| Limits {
            num_blocks,
            max_seqs,
            max_queued: queued.0,
            max_queued_tokens: queued.1,
            step_tokens,
            max_chunk_tokens: chunk,
            max_sequence_tokens: sequence,
            vocab_size: VOCAB_SIZE,
            max_plans_in_flight: in_flight,
        },
    )
}

fn build(id: u64, wish: &Wish, num_siblings: u32, now: Tick) -> Request {
    let text = |at: u32| TokenId((at * at + wish.text * (at / 20)) % VOCAB_SIZE);
    let mut tokens: Vec<TokenId> = (0..wish.num_prompt as u32).map(text).collect();
    let mut built = request(id, wish.salt, tokens.clone(), wish.max_tokens);
    if !wish.scores {
        for _ in 0..wish.num_moved {
            tokens.push(next_token(wish.salt, &tokens));
        }
    }
    built.tokens = tokens;
    if wish.stops {
        built.stop.stop_token_ids = vec![TokenId(3), TokenId(11), TokenId(40)];
    }
    built.prompt_logprobs = wish.scores.then_some(2);
    built.priority = Priority(wish.priority);
    built.tenant = TenantId(wish.tenant);
    built.deadline = wish.deadline.map(|left| Tick(now.0 + left));
    let group = if num_siblings > 1 { Some(wish.group.unwrap_or(9)) } else { wish.group };
    built.group = group.map(GroupId);
    built
}

/// How a trace ends, before everything that is left runs to its own end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Drain,
    CancelAll,
}

/// Runs a trace to its end, and everything in it to its own; returns the plans. `at` is the operation
/// that runs, for whoever catches a panic.
pub(crate) fn run(limits: Limits, ops: &[Op], end: End, at: &Cell<usize>) -> Vec<StepPlan> {
    let mut harness = Harness::new(limits);
    let mut num_ids = 0;
    for (index, op) in ops.iter().enumerate() {
        at.set(index);
        apply(&mut harness, op, &mut num_ids);
    }
    at.set(ops.len());
    if end == End::CancelAll {
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

fn apply(harness: &mut Harness, op: &Op, num_ids: &mut u64) {
    match op {
        Op::Submit(wish, num_siblings) => {
            for _ in 0..*num_siblings {
                *num_ids += 1;
                // May be refused: too long, or a queue is full.
                let _ = harness.submit(build(*num_ids, wish, *num_siblings, harness.now));
            }
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
        Op::DieAgain => {
            harness.die();
        }
    }
}
