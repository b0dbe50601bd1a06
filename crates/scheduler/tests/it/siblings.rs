//! Siblings wait for the first one's prompt, and never for ever.

use oarlock_scheduler::Limits;
use oarlock_types::{CacheSalt, FinishReason, GroupId, Priority, Request, RequestId, TenantId};

use crate::harness::{Harness, roomy};
use crate::rules::text;
use crate::worker::request;

fn sibling(id: u64, num_prompt: u32) -> Request {
    let mut sibling = request(id, 0, text(0, num_prompt), 5);
    sibling.group = Some(GroupId(7));
    sibling
}

fn cached(harness: &Harness, id: u64) -> Option<u32> {
    harness.clients.watches[&RequestId(id)].cached_tokens
}

#[test]
fn the_prompt_is_computed_once() {
    for max_plans_in_flight in 1..=2 {
        let limits =
            Limits { step_tokens: 40, max_chunk_tokens: 30, max_plans_in_flight, ..roomy() };
        let mut harness = Harness::new(limits);
        for id in 1..=4 {
            harness.submit(sibling(id, 70)).unwrap();
        }
        harness.submit(request(5, 0, text(9, 3), 5)).unwrap();
        harness.step();
        // Nobody else waits for them.
        assert_eq!([2, 3, 4, 5].map(|id| cached(&harness, id)), [None, None, None, Some(0)]);
        harness.drain();
        assert_eq!(
            [1, 2, 3, 4].map(|id| cached(&harness, id)),
            [Some(0), Some(64), Some(64), Some(64)]
        );
        let computed: u32 =
            harness.plans.iter().flat_map(|plan| &plan.chunks).map(|chunk| chunk.len).sum();
        // 70 once, three tails of 6, three generated tokens and more of each; the last one never is.
        assert_eq!(computed, 70 + 3 * 6 + 4 * 4 + 3 + 4);
    }
}

#[test]
fn a_short_prompt_has_no_block_to_wait_for() {
    let mut harness = Harness::new(roomy());
    for id in 1..=3 {
        harness.submit(sibling(id, 16)).unwrap();
    }
    assert_eq!(harness.plan().map(|plan| plan.start.len()), Some(3));
    harness.drain();
}

#[test]
fn when_the_first_is_gone_the_next_is_the_first() {
    let mut harness = Harness::new(Limits { step_tokens: 40, ..roomy() });
    for id in 1..=4 {
        harness.submit(sibling(id, 100)).unwrap();
    }
    harness.step();
    harness.cancel(RequestId(1));
    harness.step();
    assert_eq!([2, 3].map(|id| cached(&harness, id)), [Some(32), None]);
    harness.plan_failing(|_| true);
    harness.commit();
    harness.drain();
    assert_eq!([3, 4].map(|id| cached(&harness, id)), [Some(64), Some(96)]);
    let finished = |id| harness.clients.watches[&RequestId(id)].finished.clone();
    assert!(matches!(finished(2), Some(FinishReason::Failed(_))));
    assert_eq!([3, 4].map(finished), [Some(FinishReason::Length), Some(FinishReason::Length)]);
}

#[test]
fn a_preempted_first_starts_again_before_its_siblings() {
    let mut harness =
        Harness::new(Limits { step_tokens: 20, max_seqs: 2, max_plans_in_flight: 2, ..roomy() });
    for id in 1..=3 {
        harness.submit(sibling(id, 100)).unwrap();
    }
    harness.step();
    for id in 4..=5 {
        let mut urgent = request(id, 0, text(11, 60), 20);
        urgent.priority = Priority(1);
        harness.submit(urgent).unwrap();
    }
    harness.step();
    harness.step();
    assert!(harness.scheduler.stats().preemptions > 0);
    harness.drain();
    assert!((1..=5).all(|id| cached(&harness, id).is_some()));
    assert_eq!([2, 3].map(|id| cached(&harness, id)), [Some(96), Some(96)]);
}

/// One group id, and nothing else in common: nobody waits, and salts share nothing.
#[test]
fn a_group_id_alone_joins_nothing() {
    let mut harness = Harness::new(Limits { max_plans_in_flight: 2, ..roomy() });
    let mut salted = sibling(2, 60);
    salted.salt = CacheSalt(5);
    salted.sampling.seed = 5;
    let mut owned = sibling(3, 60);
    owned.tenant = TenantId(9);
    let mut urgent = sibling(4, 60);
    urgent.priority = Priority(1);
    let mut other = request(5, 0, text(3, 60), 5);
    other.group = Some(GroupId(7));
    let mut scored = sibling(6, 60);
    scored.prompt_logprobs = Some(0);
    for request in [sibling(1, 60), salted, owned, urgent, other, scored, sibling(7, 60)] {
        harness.submit(request).unwrap();
    }
    assert_eq!(harness.plan().map(|plan| plan.start.len()), Some(6));
    harness.drain();
    assert_eq!(
        (cached(&harness, 2), cached(&harness, 6), cached(&harness, 7)),
        (Some(0), Some(0), Some(48))
    );
}

#[test]
fn after_a_reset_one_is_the_first_again() {
    let mut harness = Harness::new(Limits { max_plans_in_flight: 2, ..roomy() });
    for id in 1..=4 {
        harness.submit(sibling(id, 60)).unwrap();
    }
    for _ in 0..3 {
        harness.step();
    }
    harness.reset();
    assert_eq!(harness.plan().map(|plan| plan.start.len()), Some(1));
    harness.drain();
}
