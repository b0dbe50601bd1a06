//! Requests that kill their workers are found and fail alone; the others get what they would have got.

use std::collections::BTreeSet;

use oarlock_scheduler::Limits;
use oarlock_types::{FinishReason, GroupId, Priority, RequestId, SlotError, StepPlan, TokenId};
use proptest::prelude::*;

use crate::harness::{Harness, roomy};
use crate::trace::limits;
use crate::worker::request;

/// A request that kills the group whenever a plan computes its position `at`.
#[derive(Clone, Copy, Debug)]
struct Poison {
    id: RequestId,
    at: u32,
}

/// Whether a plan computes a poisonous position. A request's id is its sampling's choice; slots tell
/// whose a chunk is.
fn kills(plan: &StepPlan, slots: &[Option<RequestId>], poisons: &[Poison]) -> bool {
    plan.chunks.iter().any(|chunk| {
        let id = slots[chunk.slot.index()];
        let span = chunk.start..chunk.start + chunk.len;
        poisons.iter().any(|poison| Some(poison.id) == id && span.contains(&poison.at))
    })
}

/// Runs everything to its end with a group that dies of every poison; returns the deaths.
fn run(harness: &mut Harness, poisons: &[Poison]) -> u32 {
    let mut deaths = 0;
    let mut slots: Vec<Option<RequestId>> = vec![None; 64];
    let mut rounds = 0;
    while harness.scheduler.has_work() {
        rounds += 1;
        assert!(rounds < 20_000, "no progress");
        let mut dies = false;
        while let Some(plan) = harness.plan().cloned() {
            for start in &plan.start {
                slots[start.slot.index()] = Some(RequestId(start.sampling.choice.into()));
            }
            dies |= kills(&plan, &slots, poisons);
        }
        if !dies {
            harness.commit();
            continue;
        }
        deaths += 1;
        harness.die();
        slots.fill(None);
    }
    deaths
}

fn ends(harness: &Harness) -> Vec<(RequestId, FinishReason)> {
    let watches = harness.clients.watches.iter();
    watches.map(|(id, watch)| (*id, watch.finished.clone().expect("an end"))).collect()
}

#[test]
fn the_one_fails_and_the_others_finish() {
    let limits = Limits { max_plans_in_flight: 2, ..roomy() };
    let mut harness = Harness::new(limits);
    for id in 1..=6 {
        let tokens = (0..20).map(|at| TokenId((at + id as u32) % 50)).collect();
        harness.submit(request(id, id, tokens, 30)).expect("room");
    }
    let deaths = run(&mut harness, &[Poison { id: RequestId(4), at: 27 }]);
    assert_eq!(deaths, 3, "twice in company, once alone");
    for (id, reason) in ends(&harness) {
        let expected = if id == RequestId(4) {
            FinishReason::Failed(SlotError::KillsWorkers)
        } else {
            FinishReason::Length
        };
        assert_eq!(reason, expected, "{id}");
    }
    // The token at position 27 may have been sampled by a plan that died with the one that computed it.
    let num_known = harness.clients.watches[&RequestId(4)].tokens.len();
    assert!((27..=28).contains(&num_known), "{num_known}");
}

#[test]
fn a_suspect_that_is_cleared_gives_way_and_new_requests_wait() {
    let mut harness = Harness::new(Limits { max_plans_in_flight: 2, ..roomy() });
    for id in 1..=3 {
        let tokens = (0..20).map(|at| TokenId(at % 50)).collect();
        harness.submit(request(id, id, tokens, 60)).expect("room");
    }
    harness.step();
    harness.plan();
    assert_eq!(harness.die(), None);
    assert!(!harness.scheduler.is_isolating(), "once is nobody's fault");
    harness.step();
    harness.plan();
    assert_eq!(harness.die(), None, "three were in flight");
    assert!(harness.scheduler.is_isolating());
    harness.submit(request(9, 9, vec![TokenId(1); 5], 3)).expect("room");
    let mut seen = Vec::new();
    while harness.scheduler.is_isolating() {
        while let Some(plan) = harness.plan() {
            let starts = plan.start.iter().map(|start| start.sampling.choice);
            seen.extend(starts);
        }
        harness.commit();
    }
    // The last suspect runs on, and the new request starts in the plan that ended the isolation.
    assert_eq!(seen[..3], [1, 2, 3]);
    harness.drain();
}

/// Steps that others commit in between acquit nobody: a poison deep in a long prompt is reached late.
#[test]
fn a_poison_far_behind_is_found() {
    let mut harness = Harness::new(Limits { max_chunk_tokens: 4, ..roomy() });
    let tokens = |len: u32| (0..len).map(|at| TokenId(at % 50)).collect::<Vec<_>>();
    harness.submit(request(1, 1, tokens(400), 5)).expect("room");
    harness.submit(request(2, 2, tokens(10), 150)).expect("room");
    assert_eq!(run(&mut harness, &[Poison { id: RequestId(1), at: 390 }]), 3);
    let failed = FinishReason::Failed(SlotError::KillsWorkers);
    assert_eq!(ends(&harness), [(RequestId(1), failed), (RequestId(2), FinishReason::Length)]);
}

/// Deaths of which a request is past again when the next one comes are not in a row.
#[test]
fn deaths_far_apart_isolate_nobody() {
    let mut harness = Harness::new(roomy());
    harness.submit(request(1, 1, vec![TokenId(3); 9], 200)).expect("room");
    for _ in 0..5 {
        for _ in 0..12 {
            harness.step();
        }
        harness.plan();
        assert!(harness.scheduler.has_work());
        harness.die();
        assert!(!harness.scheduler.is_isolating());
        assert!(harness.scheduler.is_suspicious());
    }
    harness.drain();
    assert!(!harness.scheduler.is_suspicious());
}

/// A fault that no request shows alone ends all the same.
#[test]
fn nobody_dies_for_ever() {
    let mut harness = Harness::new(Limits { max_plans_in_flight: 1, ..roomy() });
    for id in 1..=2 {
        harness.submit(request(id, id, vec![TokenId(3); 9], 60)).expect("room");
    }
    let mut deaths = 0;
    while harness.scheduler.has_work() {
        match harness.plan() {
            Some(plan) if plan.chunks.len() > 1 => {
                deaths += 1;
                assert!(deaths < 100, "no end");
                harness.die();
            }
            _ => drop(harness.commit()),
        }
    }
    let killed = FinishReason::Failed(SlotError::KillsWorkers);
    assert_eq!(ends(&harness), [(RequestId(1), killed), (RequestId(2), FinishReason::Length)]);
}

#[test]
fn a_cancelled_suspect_holds_nobody_up() {
    let mut harness = Harness::new(roomy());
    for id in 1..=2 {
        harness.submit(request(id, id, vec![TokenId(3); 9], 40)).expect("room");
    }
    for _ in 0..2 {
        harness.step();
        harness.plan();
        harness.die();
    }
    assert!(harness.scheduler.is_isolating());
    harness.cancel(RequestId(1));
    harness.cancel(RequestId(2));
    harness.submit(request(3, 3, vec![TokenId(3); 9], 4)).expect("room");
    harness.drain();
    assert!(!harness.scheduler.is_isolating());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Exactly the poisonous ones fail, whatever the limits, classes and siblings.
    #[test]
    fn only_poison_fails(
        limits in limits(),
        shapes in prop::collection::vec((1_usize..60, 1_u32..30, 0_u8..3, 0_u64..4), 1..10),
        poisons in prop::collection::btree_map(0_usize..10, 0_u32..80, 0..3),
    ) {
        let mut harness = Harness::new(limits);
        let mut accepted = BTreeSet::new();
        for (index, (len, max_tokens, class, group)) in shapes.iter().enumerate() {
            let id = index as u64 + 1;
            let tokens = (0..*len as u32).map(|at| TokenId((at * 7 + *group as u32) % 50)).collect();
            // Siblings share a prompt, and with it the cache; nobody else does.
            let salt = if *group > 0 { 1000 + group } else { id };
            let mut wish = request(id, salt, tokens, *max_tokens);
            wish.priority = Priority(100 + class);
            wish.group = (*group > 0).then_some(GroupId(*group));
            if harness.submit(wish).is_ok() {
                accepted.insert(RequestId(id));
            }
        }
        let poisons: Vec<_> = poisons
            .iter()
            .map(|(index, at)| Poison { id: RequestId(*index as u64 + 1), at: *at })
            .collect();
        let deaths = run(&mut harness, &poisons);
        let mut failed = 0;
        for (id, reason) in ends(&harness) {
            let watch = &harness.clients.watches[&id];
            if reason == FinishReason::Failed(SlotError::KillsWorkers) {
                failed += 1;
                let poison = poisons.iter().find(|poison| poison.id == id);
                prop_assert!(poison.is_some(), "an innocent failed");
                // Tokens of plans that died with the group are not known here.
                let num_sampled = watch.tokens.len() as u32 + limits.max_plans_in_flight;
                prop_assert!(poison.unwrap().at <= num_sampled);
            } else {
                prop_assert_eq!(reason, FinishReason::Length);
                let computed = watch.tokens.len() as u32 - 1;
                // What comes from the cache was computed by a sibling.
                let is_alone = shapes[id.0 as usize - 1].3 == 0;
                let dies = poisons.iter().any(|poison| poison.id == id && poison.at < computed);
                prop_assert!(!is_alone || !dies, "a poison survived its position");
            }
        }
        // Each costs one death alone and at most two in company, and the first two come before.
        prop_assert!(deaths <= 2 + 3 * failed, "{deaths} deaths for {failed}");
    }
}
