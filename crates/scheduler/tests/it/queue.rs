//! The bounds of the queue, whom they keep out, and when clients are told to come back.

use oarlock_scheduler::Limits;
use oarlock_types::{GroupId, Priority, Rejected, Request, RequestId, TenantId, Tick};

use crate::harness::{Harness, roomy};
use crate::rules::text;
use crate::tenants::submit;
use crate::worker::request;

/// A request of a tenant in a class, with 30 tokens that no other one shares.
fn owned(id: u64, tenant: u64, class: u8) -> Request {
    let mut owned = request(id, id, text(id as u32 % 50, 30), 2);
    owned.tenant = TenantId(tenant);
    owned.priority = Priority(class);
    owned
}

/// When a refused client is to come back.
fn retry_after_ms(refused: Result<(), Rejected>) -> u32 {
    match refused {
        Err(
            Rejected::QueueFull { retry_after_ms, .. }
            | Rejected::QueueTokensFull { retry_after_ms, .. },
        ) => retry_after_ms,
        other => panic!("not refused for a full queue: {other:?}"),
    }
}

/// Submits requests of one tenant until one is refused; returns how many were taken, and when to come
/// back.
fn flood(harness: &mut Harness, first: u64, tenant: u64, class: u8) -> (u64, u32) {
    for id in first..first + 1_000 {
        let outcome = harness.submit(owned(id, tenant, class));
        if outcome.is_err() {
            return (id - first, retry_after_ms(outcome));
        }
    }
    panic!("a queue without a bound");
}

#[test]
fn the_queue_is_bounded_in_tokens() {
    let limits = Limits { max_queued_tokens: 100, max_seqs: 1, ..roomy() };
    let mut harness = Harness::new(limits);
    // The first one is taken, however long: otherwise it never could be.
    submit(&mut harness, 1, 0, 300, 5);
    let mut late = request(1, 0, text(0, 1), 5);
    late.tenant = TenantId(1);
    let full = Err(Rejected::QueueTokensFull { limit: 100, retry_after_ms: 1000 });
    assert_eq!(harness.submit(late.clone()), full);
    assert_eq!(harness.scheduler.stats().waiting_tokens, 300);
    harness.step();
    submit(&mut harness, 1, 1, 60, 5);
    submit(&mut harness, 1, 2, 40, 5);
    assert_eq!(harness.submit(late.clone()), full);
    let stats = harness.scheduler.stats();
    assert_eq!((stats.rejected, stats.rejected_queue_full, stats.waiting_tokens), (2, 2, 100));
    // Another tenant is let in, but not for ever.
    submit(&mut harness, 2, 0, 20, 5);
    late.tenant = TenantId(3);
    assert_eq!(retry_after_ms(harness.submit(late.clone())), 1000);
    harness.drain();
    harness.submit(late).unwrap();
    harness.drain();
}

#[test]
fn what_waits_below_keeps_nobody_above_out() {
    let mut harness = Harness::new(Limits { max_queued: 6, max_seqs: 2, ..roomy() });
    assert_eq!(flood(&mut harness, 0, 1, 9).0, 8, "two that can start, and six that wait");
    harness.step();
    assert_eq!(harness.scheduler.stats().num_running, 2);
    harness.submit(owned(2_000, 1, 1)).unwrap();
    harness.step();
    assert_eq!(harness.scheduler.stats().preemptions, 1, "it would run at once, and does");
    // One of the low class has ended, so that its slot is free.
    assert_eq!(flood(&mut harness, 3_000, 1, 1).0, 7);
    // What waits above counts, and the first of a tenant in its class is taken beyond.
    assert_eq!(flood(&mut harness, 5_000, 1, 5).0, 1);
    harness.drain();
}

#[test]
fn a_tenant_that_keeps_the_queue_full_keeps_nobody_out() {
    let mut harness = Harness::new(Limits { max_queued: 16, max_seqs: 1, ..roomy() });
    assert_eq!(flood(&mut harness, 0, 1, 100).0, 17);
    // An eighth more, one of each tenant.
    harness.submit(owned(1_001, 2, 100)).unwrap();
    retry_after_ms(harness.submit(owned(1_002, 2, 100)));
    harness.submit(owned(1_003, 3, 100)).unwrap();
    retry_after_ms(harness.submit(owned(1_004, 4, 100)));
    harness.drain();
    // Choices of one request are not kept out by each other.
    assert_eq!(flood(&mut harness, 2_000, 1, 100).0, 17);
    for id in 3_000..3_002 {
        let mut sibling = request(id, 7, text(3, 30), 2);
        (sibling.tenant, sibling.group) = (TenantId(2), Some(GroupId(1)));
        harness.submit(sibling).unwrap();
    }
    harness.drain();
}

#[test]
fn preempted_requests_do_not_count() {
    let mut harness = Harness::new(Limits { max_queued: 4, max_seqs: 4, ..roomy() });
    for id in 0..4 {
        let mut long = owned(id, 1, 100);
        long.stop.max_tokens = 60;
        harness.submit(long).unwrap();
    }
    harness.step();
    for id in 10..14 {
        let mut long = owned(id, 2, 1);
        long.stop.max_tokens = 60;
        harness.submit(long).unwrap();
    }
    harness.step();
    let stats = harness.scheduler.stats();
    assert_eq!((stats.preemptions, stats.num_waiting), (4, 4));
    assert_eq!(flood(&mut harness, 20, 1, 100).0, 4);
    harness.drain();
}

#[test]
fn what_the_next_plan_can_start_is_not_refused() {
    let mut harness = Harness::new(Limits { max_queued: 4, max_plans_in_flight: 2, ..roomy() });
    assert_eq!(flood(&mut harness, 0, 1, 100).0, 12);
    harness.plan();
    assert_eq!(harness.scheduler.stats().num_running, 8);
    assert_eq!(flood(&mut harness, 100, 1, 100).0, 0);
    // A slot that is given back counts before the workers are told.
    harness.cancel(RequestId(0));
    assert_eq!(flood(&mut harness, 200, 1, 100).0, 1);
    harness.drain();
}

/// Eight choices of a prompt that fits the queue twice.
#[test]
fn siblings_count_for_what_they_do_not_share() {
    let limits = Limits { max_queued_tokens: 170, max_seqs: 2, ..roomy() };
    let mut harness = Harness::new(limits);
    let sibling = |id: u64, tenant: u64| {
        let mut sibling = request(id, 0, text(0, 83), 5);
        (sibling.group, sibling.tenant) = (Some(GroupId(7)), TenantId(tenant));
        sibling
    };
    for id in 0..8 {
        harness.submit(sibling(id, 1)).unwrap();
    }
    // 83 tokens and seven times three.
    retry_after_ms(
        harness
            .submit(owned(100, 1, 100))
            .and_then(|()| harness.submit(owned(101, 1, 100)))
            .and_then(|()| harness.submit(owned(102, 1, 100))),
    );
    // The next one has to compute what the first one did not.
    harness.cancel(RequestId(0));
    retry_after_ms(harness.submit(owned(103, 1, 100)));
    harness.drain();
    // Prompt logprobs do not read the cache: nothing is shared.
    harness.submit(owned(199, 1, 100)).unwrap();
    harness.submit(sibling(200, 1)).unwrap();
    let mut scored = sibling(201, 1);
    scored.prompt_logprobs = Some(0);
    retry_after_ms(harness.submit(scored));
    harness.submit(sibling(202, 1)).unwrap();
    harness.drain();
}

/// One request at a time, in two steps of a second each; the queue of tenant 1 stays full.
fn run_backlogged(harness: &mut Harness, numbers: std::ops::Range<u64>) {
    for number in numbers {
        flood(harness, 1_000 * number, 1, 100);
        for _ in 0..2 {
            harness.step();
            harness.now.0 += 1_000_000;
        }
    }
}

#[test]
fn clients_are_told_when_to_come_back() {
    let mut harness = Harness::new(Limits { max_queued: 8, max_seqs: 1, ..roomy() });
    run_backlogged(&mut harness, 1..33);
    let retry_after = flood(&mut harness, 100_000, 1, 100).1;
    assert!((1_900..2_400).contains(&retry_after), "{retry_after}");
    // Nothing moves for a minute and a half.
    harness.now = Tick(harness.now.0 + 90_000_000);
    let refused = harness.submit(owned(200_000, 1, 100));
    assert_eq!(refused, Err(Rejected::QueueFull { limit: 8, retry_after_ms: 60_000 }));
    harness.drain();
}

/// How much came while the server was idle says nothing about what it can do.
#[test]
fn a_burst_after_light_load_is_told_the_true_rate() {
    for max_plans_in_flight in 1..=2 {
        let limits = Limits { max_queued: 8, max_seqs: 1, max_plans_in_flight, ..roomy() };
        let mut harness = Harness::new(limits);
        for number in 0..30 {
            // It comes between two plans, and siblings that wait for its prompt have room.
            harness.now.0 += 10_000_000;
            for sibling in 0..2 {
                let mut light = owned(2 * number + sibling, 1, 100);
                (light.group, light.salt) = (Some(GroupId(number)), oarlock_types::CacheSalt(0));
                light.sampling.seed = 0;
                harness.submit(light).unwrap();
                harness.now.0 += 2_000_000;
                harness.drain();
            }
        }
        assert_eq!(flood(&mut harness, 500, 1, 100).1, 1_000, "nothing is known yet");
        run_backlogged(&mut harness, 1..9);
        let retry_after = flood(&mut harness, 100_000, 1, 100).1;
        assert!((1_500..2_700).contains(&retry_after), "{retry_after}");
        harness.drain();
    }
}

#[test]
fn who_leaves_without_a_start_does_not_make_the_queue_fast() {
    let mut harness = Harness::new(Limits { max_queued: 8, max_seqs: 1, ..roomy() });
    for number in 1..33 {
        run_backlogged(&mut harness, number..number + 1);
        let (first, waiting) = (50_000 + 100 * number, harness.scheduler.stats().num_waiting);
        let num_new = flood(&mut harness, first, 1, 100).0;
        assert!(num_new > 0 || waiting > 8);
        for id in first..first + num_new {
            harness.cancel(RequestId(id));
        }
    }
    let retry_after = flood(&mut harness, 200_000, 1, 100).1;
    assert!((1_800..2_700).contains(&retry_after), "{retry_after}");
    harness.drain();
}

#[test]
fn a_restart_counts_as_standing_still() {
    let mut harness = Harness::new(Limits { max_queued: 8, max_seqs: 1, ..roomy() });
    run_backlogged(&mut harness, 1..33);
    harness.drain();
    harness.reset();
    flood(&mut harness, 100_000, 1, 100);
    for _ in 0..20 {
        harness.now.0 += 1_000_000;
        let refused = harness.submit(owned(200_000, 1, 100));
        assert!(refused.is_err());
    }
    let retry_after = retry_after_ms(harness.submit(owned(200_000, 1, 100)));
    assert!(retry_after > 3_000, "{retry_after}");
    harness.drain();
}
