//! Fairness over tenants.

use std::collections::BTreeMap;

use oarlock_scheduler::Limits;
use oarlock_types::{Priority, RequestId, SlotId, StepPlan, TenantId};
use proptest::prelude::*;

use crate::harness::{Harness, roomy};
use crate::rules::text;
use crate::worker::{VOCAB_SIZE, request};

/// Submits a request of a tenant; its id says whose it is: `tenant * 1,000,000 + number`.
pub(crate) fn submit(
    harness: &mut Harness,
    tenant: u64,
    number: u64,
    num_prompt: u32,
    max_tokens: u32,
) {
    let id = tenant * 1_000_000 + number;
    // A salt for each, so that nothing comes from the cache.
    let mut owned = request(id, id, text(id as u32 % 50, num_prompt), max_tokens);
    owned.tenant = TenantId(tenant);
    harness.submit(owned).expect("the queue has room");
}

/// Tokens computed for each tenant, each position of a sequence once: read off the plans, as an
/// outsider would.
#[derive(Default)]
struct Meter {
    owners: BTreeMap<SlotId, u64>,
    ends: BTreeMap<u64, u32>,
    served: BTreeMap<u64, u64>,
    /// In order of their start.
    started: Vec<u64>,
}

impl Meter {
    fn read(&mut self, plan: &StepPlan) {
        for start in &plan.start {
            let id = u64::from(start.sampling.choice);
            self.owners.insert(start.slot, id);
            self.started.push(id / 1_000_000);
        }
        for chunk in &plan.chunks {
            let id = self.owners[&chunk.slot];
            let end = self.ends.entry(id).or_default();
            let new = (chunk.start + chunk.len).saturating_sub((*end).max(chunk.start));
            *self.served.entry(id / 1_000_000).or_default() += u64::from(new);
            *end = (*end).max(chunk.start + chunk.len);
        }
    }

    fn served(&self, tenant: u64) -> u64 {
        self.served.get(&tenant).copied().unwrap_or(0)
    }
}

#[test]
fn a_tenant_with_few_requests_does_not_wait_behind_one_with_many() {
    let mut harness = Harness::new(Limits { max_seqs: 2, max_plans_in_flight: 2, ..roomy() });
    for number in 0..20 {
        submit(&mut harness, 1, number, 30, 4);
    }
    for _ in 0..3 {
        harness.step();
    }
    submit(&mut harness, 2, 0, 30, 4);
    submit(&mut harness, 2, 1, 30, 4);
    harness.drain();
    let mut meter = Meter::default();
    harness.plans.iter().for_each(|plan| meter.read(plan));
    let last_of_second = meter.started.iter().rposition(|tenant| *tenant == 2);
    assert!(last_of_second < Some(7), "{:?}", meter.started);
}

#[test]
fn a_newcomer_gets_no_credit_for_the_past() {
    let mut harness = Harness::new(Limits { max_seqs: 2, max_plans_in_flight: 2, ..roomy() });
    for number in 0..30 {
        submit(&mut harness, 1, number, 30, 4);
        submit(&mut harness, 2, number, 30, 4);
    }
    while harness.scheduler.stats().num_waiting > 30 {
        harness.step();
    }
    let before = harness.plans.iter().map(|plan| plan.start.len()).sum::<usize>();
    for number in 0..20 {
        submit(&mut harness, 3, number, 30, 4);
    }
    harness.drain();
    let mut meter = Meter::default();
    harness.plans.iter().for_each(|plan| meter.read(plan));
    // From then on they take turns.
    let turns = &meter.started[before + 2..before + 32];
    for tenant in 1..=3 {
        let count = turns.iter().filter(|other| **other == tenant).count();
        assert!((9..=11).contains(&count), "{turns:?}");
    }
}

#[test]
fn a_debt_outlasts_a_moment_of_silence() {
    let mut harness = Harness::new(Limits { max_seqs: 1, max_plans_in_flight: 1, ..roomy() });
    submit(&mut harness, 1, 0, 20, 400);
    submit(&mut harness, 2, 0, 20, 2);
    submit(&mut harness, 2, 1, 20, 2);
    while harness.clients.watches[&RequestId(1_000_000)].finished.is_none() {
        harness.step();
    }
    submit(&mut harness, 1, 1, 20, 2);
    harness.drain();
    let mut meter = Meter::default();
    harness.plans.iter().for_each(|plan| meter.read(plan));
    assert_eq!(meter.started, [1, 2, 2, 1]);
}

#[test]
fn what_a_preemption_lost_is_not_charged_again() {
    let mut harness = Harness::new(Limits { max_seqs: 1, ..roomy() });
    submit(&mut harness, 2, 0, 150, 1);
    harness.drain();
    // It does not read the cache, so that all of it is computed again.
    let mut scored = request(1_000_000, 1, text(3, 100), 30);
    scored.tenant = TenantId(1);
    scored.prompt_logprobs = Some(0);
    harness.submit(scored).unwrap();
    harness.step();
    let mut urgent = request(3_000_000, 3, text(7, 20), 2);
    urgent.priority = Priority(1);
    harness.submit(urgent).unwrap();
    harness.step();
    assert_eq!(harness.scheduler.stats().preemptions, 1);
    submit(&mut harness, 1, 1, 20, 2);
    submit(&mut harness, 2, 1, 20, 2);
    harness.drain();
    let mut meter = Meter::default();
    harness.plans.iter().for_each(|plan| meter.read(plan));
    // About 130 tokens so far for the first tenant, and 150 for the second.
    assert_eq!(meter.started, [2, 1, 3, 1, 1, 2]);
}

/// The others are small and never end; the large one needs the whole cache.
#[test]
fn what_fits_does_not_starve() {
    for tenant in 1..=2 {
        let limits = Limits { num_blocks: 8, max_plans_in_flight: 2, ..roomy() };
        let mut harness = Harness::new(limits);
        let mut number = 0;
        for _ in 0..6 {
            number += 1;
            submit(&mut harness, 1, number, 10, 9);
        }
        harness.step();
        submit(&mut harness, tenant, 500_000, 120, 5);
        let large = RequestId(tenant * 1_000_000 + 500_000);
        let mut steps = 0;
        while harness.clients.watches[&large].finished.is_none() {
            harness.step();
            while harness.scheduler.stats().num_waiting < 6 {
                number += 1;
                submit(&mut harness, 1, number, 10, 9);
            }
            steps += 1;
            assert!(steps < 400, "the large one of tenant {tenant} starves");
        }
    }
}

/// A tenant's requests: prompt and generated tokens.
fn shape() -> impl Strategy<Value = (u32, u32)> {
    (1_u32..60, 1_u32..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Tenants that always have something waiting are never further apart than what fits the slots.
    #[test]
    fn backlogged_tenants_are_served_alike(
        shapes in [shape(), shape(), shape()],
        num_blocks in 8_u32..24,
        max_seqs in 1_u32..6,
        step_tokens in 8_u32..80,
    ) {
        let limits = Limits {
            num_blocks,
            max_seqs,
            max_queued: 100,
            step_tokens,
            vocab_size: VOCAB_SIZE,
            max_plans_in_flight: 2,
            max_sequence_tokens: 100,
            ..Limits::default()
        };
        let mut harness = Harness::new(limits);
        let mut meter = Meter::default();
        let mut numbers = [0; 3];
        let bound = u64::from(max_seqs) * 100;
        for _ in 0..300 {
            // As many waiting of each as could start at once, and one more.
            for (index, (num_prompt, max_tokens)) in shapes.iter().enumerate() {
                let tenant = index as u64 + 1;
                let started = meter.started.iter().filter(|other| **other == tenant).count() as u64;
                while numbers[index] <= started + u64::from(max_seqs) {
                    submit(&mut harness, tenant, numbers[index], *num_prompt, *max_tokens);
                    numbers[index] += 1;
                }
            }
            while let Some(plan) = harness.plan() {
                meter.read(plan);
            }
            harness.commit();
            let served = [1, 2, 3].map(|tenant| meter.served(tenant));
            let (most, least) = (served.iter().max(), served.iter().min());
            let apart = most.unwrap_or(&0) - least.unwrap_or(&0);
            prop_assert!(apart <= bound, "{served:?} differ by more than {bound}");
        }
        prop_assert!(meter.served(1) > 100, "little was computed");
    }
}
