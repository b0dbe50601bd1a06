//! A warm scheduler allocates nothing: neither in decode steps nor while sequences come and go.

use std::collections::VecDeque;

use oarlock_scheduler::{Limits, Scheduler};
use oarlock_types::{
    CacheSalt, Epoch, Event, GroupId, Priority, Request, RequestId, SampledToken, SamplingParams,
    SlotResult, StepPlan, StepResult, StopCriteria, TenantId, Tick, TokenId,
};

const MAX_SEQS: u32 = 64;

/// A scheduler, a worker that samples the same token everywhere, and the memory of both.
struct Bench {
    scheduler: Scheduler,
    plan: StepPlan,
    events: Vec<Event>,
    results: VecDeque<StepResult>,
    spare: Vec<StepResult>,
    now: u64,
    num_submitted: u64,
    num_allocations: u64,
}

impl Bench {
    fn new(num_blocks: u32) -> Self {
        let limits = Limits {
            num_blocks,
            max_seqs: MAX_SEQS,
            max_queued: 256,
            step_tokens: 512,
            vocab_size: 1000,
            max_plans_in_flight: 2,
            ..Limits::default()
        };
        Self {
            scheduler: Scheduler::new(limits, Epoch(1)),
            plan: StepPlan::default(),
            events: Vec::new(),
            results: VecDeque::new(),
            spare: Vec::new(),
            now: 0,
            num_submitted: 0,
            num_allocations: 0,
        }
    }

    fn submit(&mut self, num_prompt: u64, max_tokens: u32) {
        let number = self.num_submitted;
        self.num_submitted += 1;
        let tokens: Vec<TokenId> =
            (0..num_prompt).map(|at| TokenId((number / 2 * 37 + at) as u32 % 1000)).collect();
        let request = Request {
            id: RequestId(number),
            num_prompt: tokens.len() as u32,
            tokens,
            sampling: SamplingParams::default(),
            stop: StopCriteria { max_tokens, stop_token_ids: vec![TokenId(999)] },
            prompt_logprobs: None,
            priority: Priority((number % 3) as u8),
            tenant: TenantId(number % 5),
            salt: CacheSalt(0),
            deadline: None,
            // Pairs, half of them siblings.
            group: (number % 4 < 2).then_some(GroupId(number / 4)),
        };
        self.scheduler.submit(request, Tick(self.now)).expect("the queue has room");
    }

    /// Plans as far as possible and commits the oldest result, counting what that allocates.
    fn step(&mut self) {
        self.now += 10_000;
        let now = Tick(self.now);
        loop {
            let counted = allocation_counter::measure(|| {
                self.scheduler.plan(now, &mut self.plan, &mut self.events);
            });
            self.num_allocations += counted.count_total;
            if self.plan.is_empty() {
                break;
            }
            let mut result = self.spare.pop().unwrap_or_default();
            result.step = self.plan.step;
            result.slots.clear();
            result.slots.extend(self.plan.chunks.iter().map(|chunk| SlotResult {
                slot: chunk.slot,
                outcome: Ok(
                    chunk.sample.then_some(SampledToken { token: TokenId(5), score: None }),
                ),
                prompt_scores: Vec::new(),
            }));
            self.results.push_back(result);
        }
        if let Some(result) = self.results.pop_front() {
            let counted = allocation_counter::measure(|| {
                self.scheduler.commit(&result, now, &mut self.events);
            });
            self.num_allocations += counted.count_total;
            self.spare.push(result);
        }
        self.events.clear();
    }
}

#[test]
fn warm_decode_steps_allocate_nothing() {
    let mut bench = Bench::new(4096);
    for _ in 0..MAX_SEQS {
        bench.submit(100, 700);
    }
    for _ in 0..60 {
        bench.step();
    }
    assert_eq!(bench.scheduler.stats().num_running, MAX_SEQS);
    assert!(bench.num_allocations > 0, "nothing was counted");
    bench.num_allocations = 0;
    for _ in 0..500 {
        bench.step();
    }
    let stats = bench.scheduler.stats();
    assert_eq!(stats.num_running, MAX_SEQS);
    assert!(stats.generation_tokens > 500 * u64::from(MAX_SEQS), "they did not decode");
    assert_eq!(bench.num_allocations, 0);
}

#[test]
fn sequences_come_and_go_and_are_preempted_without_allocating() {
    // Room for about half of them, so that preemption does not end.
    let mut bench = Bench::new(320);
    let warm = |bench: &mut Bench, num_steps: u32| {
        for _ in 0..num_steps {
            while bench.scheduler.stats().num_waiting < 100 {
                // Short and long ones, in all combinations; pairs have the same prompt.
                let pair = bench.num_submitted / 2;
                let num_prompt = [100, 7, 350, 100, 60, 33, 1, 180, 90][(pair % 9) as usize];
                let max_tokens = [40, 3, 17, 90, 1, 60, 25][(bench.num_submitted % 7) as usize];
                bench.submit(num_prompt, max_tokens);
            }
            bench.step();
        }
    };
    // Until every list has had its longest content.
    warm(&mut bench, 4000);
    bench.num_allocations = 0;
    let before = bench.scheduler.stats();
    warm(&mut bench, 1000);
    let after = bench.scheduler.stats();
    assert!(after.preemptions > before.preemptions + 100, "hardly any was preempted");
    assert!(after.finished_length > before.finished_length + 500, "hardly any came and went");
    assert!(after.prefix_cache_hits > before.prefix_cache_hits, "the cache was of no use");
    assert_eq!(bench.num_allocations, 0);
}
