//! Time of one step in the scheduler: `cargo bench -p oarlock-scheduler`. Figures are in
//! `benches/SCHEDULER.md`.
#![expect(clippy::print_stdout, reason = "a program for a terminal")]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::collections::VecDeque;
use std::time::Instant;

use oarlock_scheduler::{Limits, Scheduler};
use oarlock_types::{
    CacheSalt, Epoch, Event, Priority, Request, RequestId, SampledToken, SamplingParams,
    SlotResult, StepPlan, StepResult, StopCriteria, TenantId, Tick, TokenId,
};

const VOCAB_SIZE: u32 = 150_000;
const WARM_UP: usize = 200;

struct Bench {
    scheduler: Scheduler,
    plan: StepPlan,
    /// Results of plans in flight, the oldest first, and memory for more.
    results: VecDeque<StepResult>,
    spare: Vec<StepResult>,
    events: Vec<Event>,
}

impl Bench {
    fn new(max_seqs: u32, num_blocks: u32, step_tokens: u32) -> Self {
        let limits = Limits {
            num_blocks,
            max_seqs,
            max_queued: 2 * max_seqs,
            step_tokens,
            vocab_size: VOCAB_SIZE,
            // As the engine has them.
            max_plans_in_flight: 2,
            ..Limits::default()
        };
        Self {
            scheduler: Scheduler::new(limits, Epoch(1)),
            plan: StepPlan::default(),
            results: VecDeque::new(),
            spare: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Plans, and has everything sampled; returns the microseconds of the call.
    fn plan(&mut self) -> f64 {
        self.events.clear();
        let begin = Instant::now();
        self.scheduler.plan(Tick(0), &mut self.plan, &mut self.events);
        let elapsed = begin.elapsed();
        let sampled = SampledToken { token: TokenId(5), score: None };
        let mut result = self.spare.pop().unwrap_or_default();
        result.step = self.plan.step;
        result.slots.clear();
        result.slots.extend(self.plan.chunks.iter().map(|chunk| SlotResult {
            slot: chunk.slot,
            outcome: Ok(chunk.sample.then(|| sampled.clone())),
            prompt_scores: Vec::new(),
        }));
        self.results.push_back(result);
        elapsed.as_secs_f64() * 1e6
    }

    /// Commits the oldest plan; returns the microseconds of the call.
    fn commit(&mut self) -> f64 {
        let result = self.results.pop_front().expect("a plan is in flight");
        let begin = Instant::now();
        self.scheduler.commit(&result, Tick(0), &mut self.events);
        let elapsed = begin.elapsed();
        self.spare.push(result);
        elapsed.as_secs_f64() * 1e6
    }

    /// Plans the next step while one is in flight, and commits that one; returns the microseconds of
    /// the two calls.
    fn step(&mut self) -> f64 {
        if self.results.is_empty() {
            self.plan();
        }
        self.plan() + self.commit()
    }
}

fn request(id: u64, tokens: Vec<TokenId>, max_tokens: u32) -> Request {
    Request {
        id: RequestId(id),
        num_prompt: tokens.len() as u32,
        tokens,
        sampling: SamplingParams::default(),
        stop: StopCriteria { max_tokens, stop_token_ids: vec![TokenId(2)] },
        prompt_logprobs: None,
        priority: Priority::default(),
        tenant: TenantId(id % 16),
        salt: CacheSalt(id % 16),
        deadline: None,
        group: None,
    }
}

/// Prompts of different beginnings; those with the same `shared` agree in the first `num_shared`.
fn tokens(shared: u64, own: u64, num_shared: usize, len: usize) -> Vec<TokenId> {
    let token = |key: u64, at: usize| {
        TokenId(
            (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33) as u32 % 140_000
                + at as u32 * 7 % 997
                + 10,
        )
    };
    (0..len).map(|at| token(if at < num_shared { shared } else { own }, at)).collect()
}

fn report(name: &str, target_us: Option<f64>, mut samples: Vec<f64>) {
    samples.sort_by(f64::total_cmp);
    let at = |share: f64| samples[((samples.len() - 1) as f64 * share) as usize];
    let verdict = match target_us {
        Some(target) if at(0.5) < target => format!("target {target} µs: ok"),
        Some(target) => format!("target {target} µs: MISSED"),
        None => "no target".to_owned(),
    };
    println!(
        "{name:50} median {:9.2} µs  p99 {:9.2} µs  least {:9.2} µs  ({verdict})",
        at(0.5),
        at(0.99),
        samples[0],
    );
}

/// One token for each of so many sequences, with contexts of 500 tokens and more, while `num_waiting`
/// others of 16 tenants wait for a slot.
fn decode(num_seqs: u32, num_waiting: u32, num_samples: usize, target_us: f64) {
    let len = WARM_UP + num_samples + 8;
    let blocks_each = (500 + len).div_ceil(16) as u32;
    let mut bench = Bench::new(num_seqs, num_seqs * blocks_each, 65_536);
    for id in 0..u64::from(num_seqs) {
        let tokens = tokens(id, id, 0, 500);
        bench.scheduler.submit(request(id, tokens, len as u32), Tick(0)).expect("room");
    }
    bench.step();
    for id in 0..u64::from(num_waiting) {
        let id = id + u64::from(num_seqs);
        bench.scheduler.submit(request(id, tokens(id, id, 0, 500), 5), Tick(0)).expect("room");
    }
    for _ in 0..WARM_UP {
        bench.step();
    }
    assert_eq!(bench.scheduler.stats().num_running, num_seqs);
    assert_eq!(bench.plan.chunks.len(), num_seqs as usize);
    let samples = (0..num_samples).map(|_| bench.step()).collect();
    assert_eq!(bench.scheduler.stats().num_running, num_seqs);
    assert_eq!(bench.scheduler.stats().num_waiting, num_waiting);
    let name = format!("plan + commit, {num_seqs} running, {num_waiting} waiting");
    report(&name, Some(target_us), samples);
}

/// Submit, plan and commit of a 4,096-token prompt whose first 2,048 tokens are in the cache, and of
/// the rest of which the step has all.
fn admit(num_samples: usize, target_us: f64) {
    let mut bench = Bench::new(64, 65_536, 8192);
    bench.scheduler.submit(request(0, tokens(0, 0, 2048, 2048), 1), Tick(0)).expect("room");
    bench.plan();
    bench.commit();
    let (mut samples, mut whole) = (Vec::new(), Vec::new());
    for number in 0..num_samples as u64 + 50 {
        let mut next = request(16 * (number + 1), tokens(0, number + 1, 2048, 4096), 1);
        next.salt = CacheSalt(0);
        let begin = Instant::now();
        bench.scheduler.submit(next, Tick(0)).expect("room");
        let submit = begin.elapsed().as_secs_f64() * 1e6;
        let plan = bench.plan();
        assert_eq!((bench.plan.start.len(), bench.plan.num_tokens()), (1, 2048));
        let commit = bench.commit();
        if number >= 50 {
            samples.push(submit + plan);
            whole.push(submit + plan + commit);
        }
    }
    report("submit + plan, prompt 4,096, of it 2,048 cached", Some(target_us), samples);
    report("the same, with its commit and its end", None, whole);
}

/// One token for each of so many sequences, while as many slots are free and the first that waits, half
/// of whose 8,192 tokens are in the cache, lacks blocks.
fn decode_without_blocks(num_seqs: u32, num_samples: usize) {
    let len = WARM_UP + num_samples + 8;
    let blocks_each = (500 + len).div_ceil(16) as u32;
    let num_blocks = num_seqs * blocks_each + 256;
    let mut bench = Bench::new(2 * num_seqs, num_blocks, 65_536);
    bench.scheduler.submit(request(16, tokens(7, 7, 4096, 4096), 1), Tick(0)).expect("room");
    bench.plan();
    bench.commit();
    for id in 0..u64::from(num_seqs) {
        let mut low = request(100 + id, tokens(100 + id, id, 0, 500), len as u32);
        low.salt = CacheSalt(100);
        bench.scheduler.submit(low, Tick(0)).expect("room");
    }
    bench.step();
    assert_eq!(bench.scheduler.stats().num_running, num_seqs);
    // Nothing else will be free: it needs more than the whole rest.
    let long = num_blocks * 16 - num_seqs * 512;
    let waiting = request(32, tokens(7, 8, 4096, long as usize + 64), 5);
    bench.scheduler.submit(waiting, Tick(0)).expect("room");
    for _ in 0..WARM_UP {
        bench.step();
    }
    let samples = (0..num_samples).map(|_| bench.step()).collect();
    let stats = bench.scheduler.stats();
    assert_eq!((stats.num_running, stats.num_waiting), (num_seqs, 1));
    report(&format!("{num_seqs} running, free slots, one lacks blocks"), None, samples);
}

fn main() {
    decode(64, 0, 4000, 12.0);
    decode(1024, 0, 1500, 200.0);
    decode(4096, 0, 500, 900.0);
    decode(64, 64, 4000, 12.0);
    decode(1024, 1024, 1500, 200.0);
    decode_without_blocks(64, 4000);
    admit(1000, 40.0);
}
