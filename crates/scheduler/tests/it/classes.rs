//! Strict classes: who takes from whom, and only what it lacks.

use oarlock_scheduler::Limits;
use oarlock_types::{Priority, Request, RequestId};

use crate::harness::{Harness, roomy};
use crate::rules::text;
use crate::worker::request;

fn classed(id: u64, class: u8, num_prompt: u32, max_tokens: u32) -> Request {
    // Different first tokens, so that no prefix is shared.
    let mut classed = request(id, 0, text(id as u32 * 7, num_prompt), max_tokens);
    classed.priority = Priority(class);
    classed
}

/// The requests that run, by slot.
fn running(harness: &Harness) -> Vec<u64> {
    let mut slots = std::collections::BTreeMap::new();
    for plan in &harness.plans {
        for slot in &plan.release {
            slots.remove(slot);
        }
        for start in &plan.start {
            slots.insert(start.slot, u64::from(start.sampling.choice));
        }
    }
    let mut ids: Vec<u64> = slots.into_values().collect();
    ids.sort_unstable();
    ids
}

#[test]
fn a_slot_is_taken_from_the_latest_of_the_lowest_class() {
    for max_plans_in_flight in 1..=2 {
        let mut harness = Harness::new(Limits { max_seqs: 4, max_plans_in_flight, ..roomy() });
        for (id, class) in [(1, 9), (2, 5), (3, 9), (4, 5)] {
            harness.submit(classed(id, class, 20, 30)).unwrap();
        }
        harness.step();
        harness.step();
        assert_eq!(running(&harness), [1, 2, 3, 4]);
        // The slot is there at once; the sequence starts in the very next plan.
        harness.submit(classed(5, 5, 20, 30)).unwrap();
        harness.step();
        assert_eq!(running(&harness), [1, 2, 4, 5]);
        harness.submit(classed(6, 1, 20, 30)).unwrap();
        harness.submit(classed(7, 1, 20, 30)).unwrap();
        harness.step();
        assert_eq!(running(&harness), [2, 4, 6, 7]);
        assert_eq!(harness.scheduler.stats().preemptions, 3);
        // An equal class takes nothing.
        harness.submit(classed(8, 5, 20, 30)).unwrap();
        harness.step();
        assert_eq!(running(&harness), [2, 4, 6, 7]);
        harness.drain();
    }
}

#[test]
fn nobody_is_preempted_while_there_is_room() {
    let mut harness = Harness::new(Limits { max_seqs: 3, max_plans_in_flight: 2, ..roomy() });
    harness.submit(classed(1, 9, 40, 30)).unwrap();
    harness.submit(classed(2, 9, 40, 30)).unwrap();
    harness.step();
    harness.submit(classed(3, 1, 40, 30)).unwrap();
    harness.drain();
    assert_eq!(harness.scheduler.stats().preemptions, 0);
}

#[test]
fn blocks_are_taken_as_many_as_are_lacking() {
    for max_plans_in_flight in 1..=2 {
        // Three of a low class with 3 blocks each; one block is left.
        let limits = Limits { num_blocks: 10, max_plans_in_flight, ..roomy() };
        let mut harness = Harness::new(limits);
        for id in 1..=3 {
            harness.submit(classed(id, 9, 40, 6)).unwrap();
        }
        harness.step();
        harness.step();
        // Four blocks: the last one's three and the free one.
        harness.submit(classed(4, 1, 60, 2)).unwrap();
        harness.plan();
        assert!(!running(&harness).contains(&3));
        while harness.commit() {}
        harness.plan();
        assert_eq!(running(&harness), [1, 2, 4]);
        assert_eq!(harness.scheduler.stats().preemptions, 1);
        harness.drain();
    }
}

#[test]
fn what_would_not_suffice_is_not_taken() {
    let mut harness = Harness::new(Limits { num_blocks: 10, max_plans_in_flight: 2, ..roomy() });
    harness.submit(classed(1, 1, 80, 3)).unwrap();
    harness.submit(classed(2, 9, 30, 17)).unwrap();
    harness.step();
    harness.step();
    // Eight blocks, and with all of the lower class gone there would be four.
    harness.submit(classed(3, 1, 120, 2)).unwrap();
    harness.plan();
    assert_eq!(running(&harness), [1, 2]);
    assert_eq!(harness.scheduler.stats().preemptions, 0);
    harness.drain();
    // When the first had ended, the lower class gave way.
    assert_eq!(harness.scheduler.stats().preemptions, 1);
}

#[test]
fn the_budget_goes_to_the_higher_class_first() {
    let limits = Limits { step_tokens: 32, max_plans_in_flight: 2, ..roomy() };
    let mut harness = Harness::new(limits);
    harness.submit(classed(1, 9, 200, 3)).unwrap();
    harness.step();
    harness.submit(classed(2, 1, 40, 3)).unwrap();
    let plan = harness.plan().expect("work to do");
    let chunks: Vec<_> = plan.chunks.iter().map(|chunk| (chunk.slot.0, chunk.len)).collect();
    assert_eq!(chunks, [(1, 31), (0, 1)]);
    harness.drain();
}

#[test]
fn blocks_on_their_way_to_a_higher_class_are_not_taken_by_others() {
    let limits = Limits { num_blocks: 9, max_plans_in_flight: 2, ..roomy() };
    let mut harness = Harness::new(limits);
    // Blocks: 3, 2 and 3; one is left. The first one needs it for its third step.
    harness.submit(classed(1, 9, 47, 30)).unwrap();
    harness.submit(classed(2, 9, 20, 30)).unwrap();
    harness.submit(classed(3, 9, 40, 30)).unwrap();
    harness.plan();
    harness.plan();
    harness.commit();
    // Needs the one that is left and the three of the last one, which a plan in flight names.
    harness.submit(classed(4, 1, 60, 2)).unwrap();
    let plan = harness.plan().expect("work to do").clone();
    assert_eq!((plan.release.len(), plan.start.len(), plan.blocks), (1, 0, vec![]));
    while harness.commit() {}
    harness.plan();
    assert!(running(&harness).contains(&4));
    harness.drain();
}

/// Found by a random trace: a sequence that took a block from the lowest class kept all others from
/// starting in that step, also those above the ones that went on.
#[test]
fn between_who_takes_and_who_gives_others_may_start() {
    let mut harness = Harness::new(Limits { num_blocks: 11, ..roomy() });
    harness.submit(classed(1, 5, 16, 40)).unwrap();
    harness.submit(classed(2, 9, 70, 30)).unwrap();
    harness.submit(classed(3, 9, 70, 30)).unwrap();
    harness.step();
    assert_eq!(running(&harness), [1, 2, 3]);
    // The first lacks its second block now, and takes those of the last.
    harness.submit(classed(4, 5, 40, 3)).unwrap();
    harness.plan();
    assert_eq!(running(&harness), [1, 2, 4]);
    harness.drain();
}

/// A stream of urgent requests stops the others, and once it ends they all finish.
#[test]
fn the_lower_class_gets_on_when_the_higher_one_is_done() {
    let limits = Limits { num_blocks: 12, max_seqs: 2, max_plans_in_flight: 2, ..roomy() };
    let mut harness = Harness::new(limits);
    harness.submit(classed(1, 9, 40, 60)).unwrap();
    harness.submit(classed(2, 9, 40, 60)).unwrap();
    for id in 3..40 {
        harness.submit(classed(id, 1, 50, 5)).unwrap();
        for _ in 0..4 {
            harness.step();
        }
    }
    harness.drain();
    let watches = &harness.clients.watches;
    assert!((1..40).all(|id| watches[&RequestId(id)].finished.is_some()));
}

/// What was taken for a higher class is reserved for it together with the prefix that it has in the
/// cache.
#[test]
fn a_prefix_that_waits_for_the_rest_is_not_evicted() {
    let limits = Limits { num_blocks: 10, max_plans_in_flight: 2, ..roomy() };
    let mut harness = Harness::new(limits);
    harness.submit(classed(4, 1, 65, 1)).unwrap();
    harness.drain();
    // Four blocks are cached, and three are of each of these. The first needs one more in its third
    // step.
    harness.submit(classed(1, 9, 47, 30)).unwrap();
    harness.submit(classed(3, 9, 40, 30)).unwrap();
    harness.plan();
    harness.plan();
    harness.commit();
    let mut again = classed(4, 1, 65, 2);
    again.id = RequestId(5);
    harness.submit(again).unwrap();
    let plan = harness.plan().expect("work to do").clone();
    assert_eq!((plan.release.len(), plan.start.len(), plan.blocks), (1, 0, vec![]));
    while harness.commit() {}
    harness.plan();
    assert_eq!(harness.clients.watches[&RequestId(5)].cached_tokens, Some(64));
    harness.drain();
}
