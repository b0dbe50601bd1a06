//! Each rule of the scheduler by an example.

use oarlock_scheduler::{Limits, ResultError};
use oarlock_types::{
    FinishReason, Priority, Rejected, RequestId, SlotError, SlotId, StepId, StepResult, Tick,
    TokenId,
};

use crate::harness::{Harness, roomy};
use crate::worker::{next_token, request};

pub(crate) fn text(first: u32, len: u32) -> Vec<TokenId> {
    (first..first + len).map(|at| TokenId((at * at + at / 7) % 50)).collect()
}

fn finished(harness: &Harness, id: u64) -> Option<FinishReason> {
    harness.clients.watches[&RequestId(id)].finished.clone()
}

/// Slot, first position, length and whether it samples, for each chunk of the next plan.
fn next_chunks(harness: &mut Harness) -> Vec<(u32, u32, u32, bool)> {
    let plan = harness.plan().expect("work to do");
    plan.chunks.iter().map(|c| (c.slot.0, c.start, c.len, c.sample)).collect()
}

#[test]
fn long_prompts_come_in_chunks_and_the_last_one_samples() {
    let mut harness = Harness::new(Limits { step_tokens: 32, ..roomy() });
    harness.submit(request(1, 0, text(0, 70), 2)).unwrap();
    for want in [(0, 0, 32, false), (0, 32, 32, false), (0, 64, 6, true), (0, 70, 1, true)] {
        assert_eq!(next_chunks(&mut harness), [want]);
        harness.commit();
    }
    assert_eq!(finished(&harness, 1), Some(FinishReason::Length));
    harness.drain();
}

#[test]
fn the_chunk_limit_is_below_the_budget() {
    let mut harness = Harness::new(Limits { step_tokens: 40, max_chunk_tokens: 16, ..roomy() });
    for id in 1..=3 {
        harness.submit(request(id, 0, text(id as u32, 60), 1)).unwrap();
    }
    assert_eq!(next_chunks(&mut harness), [(0, 0, 16, false), (1, 0, 16, false), (2, 0, 8, false)]);
    harness.drain();
}

#[test]
fn running_sequences_come_first() {
    let mut harness = Harness::new(Limits { step_tokens: 20, ..roomy() });
    harness.submit(request(1, 0, text(0, 10), 30)).unwrap();
    harness.submit(request(2, 0, text(5, 50), 30)).unwrap();
    harness.submit(request(3, 0, text(9, 50), 30)).unwrap();
    assert_eq!(next_chunks(&mut harness), [(0, 0, 10, true), (1, 0, 10, false)]);
    harness.commit();
    assert_eq!(next_chunks(&mut harness), [(0, 10, 1, true), (1, 10, 19, false)]);
    harness.commit();
    harness.step();
    // The second one's prompt is over: the third one gets the rest.
    assert_eq!(next_chunks(&mut harness), [(0, 12, 1, true), (1, 48, 2, true), (2, 0, 17, false)]);
    harness.drain();
}

#[test]
fn a_long_prompt_early_in_the_order_leaves_a_token_for_each_behind() {
    let mut harness = Harness::new(Limits { step_tokens: 20, ..roomy() });
    harness.submit(request(1, 0, text(0, 10), 30)).unwrap();
    harness.step();
    let mut urgent = request(2, 0, text(5, 50), 30);
    urgent.priority = Priority(1);
    harness.submit(urgent).unwrap();
    assert_eq!(next_chunks(&mut harness), [(1, 0, 19, false), (0, 10, 1, true)]);
    harness.commit();
    assert_eq!(next_chunks(&mut harness), [(1, 19, 19, false), (0, 11, 1, true)]);
    harness.drain();
}

#[test]
fn without_tokens_to_generate_the_prompt_is_computed() {
    let mut harness = Harness::new(roomy());
    let mut scored = request(1, 0, text(0, 33), 0);
    scored.prompt_logprobs = Some(1);
    harness.submit(scored).unwrap();
    assert_eq!(next_chunks(&mut harness), [(0, 0, 33, false)]);
    harness.commit();
    assert_eq!(finished(&harness, 1), Some(FinishReason::Length));
    assert_eq!(harness.scheduler.stats().generation_tokens, 0);
    harness.drain();
}

#[test]
fn a_stop_token_is_reported_and_ends() {
    let mut harness = Harness::new(roomy());
    let prompt = text(0, 20);
    let mut stopping = request(1, 0, prompt.clone(), 30);
    stopping.stop.stop_token_ids = vec![next_token(0, &prompt)];
    harness.submit(stopping).unwrap();
    harness.step();
    assert_eq!(finished(&harness, 1), Some(FinishReason::Stop));
    let stats = harness.scheduler.stats();
    assert_eq!((stats.generation_tokens, stats.finished_stop), (1, 1));
    harness.drain();
}

#[test]
fn generation_ends_where_the_context_does() {
    let mut harness = Harness::new(Limits { max_sequence_tokens: 30, ..roomy() });
    harness.submit(request(1, 0, text(0, 25), 100)).unwrap();
    harness.drain();
    assert_eq!(finished(&harness, 1), Some(FinishReason::Length));
    assert_eq!(harness.scheduler.stats().generation_tokens, 5);
    // The KV cache is a limit, too, and a sequence may fill all of it.
    let mut harness = Harness::new(Limits { num_blocks: 2, ..roomy() });
    harness.submit(request(1, 0, text(0, 31), 100)).unwrap();
    harness.submit(request(2, 0, text(0, 32), 0)).unwrap();
    harness.drain();
    assert_eq!(harness.scheduler.stats().generation_tokens, 1);
}

#[test]
fn what_can_never_run_is_refused() {
    let limits = Limits { max_sequence_tokens: 30, max_queued: 1, max_seqs: 1, ..roomy() };
    let mut harness = Harness::new(limits);
    let submit =
        |harness: &mut Harness, id, tokens, max| harness.submit(request(id, 0, tokens, max));
    assert_eq!(submit(&mut harness, 1, vec![], 1), Err(Rejected::EmptyPrompt));
    let too_long = Err(Rejected::TooLong { tokens: 31, limit: 30 });
    assert_eq!(submit(&mut harness, 1, text(0, 30), 1), too_long);
    assert_eq!(submit(&mut harness, 1, text(0, 31), 0), too_long);
    let unknown = Err(Rejected::UnknownToken { token: TokenId(50) });
    assert_eq!(submit(&mut harness, 1, vec![TokenId(1), TokenId(50)], 1), unknown);
    assert_eq!(submit(&mut harness, 1, text(0, 30), 0), Ok(()));
    assert_eq!(submit(&mut harness, 1, text(0, 30), 0), Err(Rejected::DuplicateId));
    assert_eq!(submit(&mut harness, 2, text(0, 29), 1), Ok(()));
    assert!(matches!(
        submit(&mut harness, 3, text(0, 3), 1),
        Err(Rejected::QueueFull { limit: 1, .. })
    ));
    assert_eq!(harness.scheduler.stats().rejected, 6);
    harness.drain();
    assert_eq!(submit(&mut harness, 1, text(0, 3), 1), Ok(()));
    harness.drain();
}

fn cached(harness: &Harness, id: u64) -> Option<u32> {
    harness.clients.watches[&RequestId(id)].cached_tokens
}

#[test]
fn the_second_turn_finds_the_first() {
    let mut harness = Harness::new(roomy());
    harness.submit(request(1, 0, text(0, 40), 20)).unwrap();
    harness.drain();
    let mut second = harness.clients.watches[&RequestId(1)].tokens.clone();
    second.extend(text(7, 10));
    harness.submit(request(2, 0, second, 1)).unwrap();
    harness.drain();
    // 60 tokens, the last of which was never computed: three full blocks.
    assert_eq!(cached(&harness, 2), Some(48));
    let stats = harness.scheduler.stats();
    assert_eq!((stats.prefix_cache_queries, stats.prefix_cache_hits), (110, 48));
    assert_eq!(stats.prompt_tokens, 110);
}

#[test]
fn the_last_prompt_token_is_always_computed() {
    let mut harness = Harness::new(roomy());
    for (id, len, hit) in [(1, 48, 0), (2, 48, 32), (3, 49, 48), (4, 16, 0)] {
        harness.submit(request(id, 0, text(0, len), 1)).unwrap();
        harness.drain();
        assert_eq!(cached(&harness, id), Some(hit));
    }
}

#[test]
fn salts_do_not_share_and_prompt_logprobs_do_not_read() {
    let mut harness = Harness::new(roomy());
    let mut scored = request(1, 0, text(0, 48), 1);
    scored.prompt_logprobs = Some(0);
    harness.submit(scored.clone()).unwrap();
    harness.drain();
    harness.submit(request(2, 9, text(0, 48), 1)).unwrap();
    harness.drain();
    scored.id = RequestId(3);
    harness.submit(scored).unwrap();
    harness.drain();
    harness.submit(request(4, 0, text(0, 48), 1)).unwrap();
    harness.drain();
    assert_eq!([1, 2, 3, 4].map(|id| cached(&harness, id)), [Some(0), Some(0), Some(0), Some(32)]);
}

#[test]
fn a_failed_slot_fails_alone() {
    let mut harness = Harness::new(roomy());
    harness.submit(request(1, 0, text(0, 20), 5)).unwrap();
    harness.submit(request(2, 0, text(3, 20), 5)).unwrap();
    harness.plan_failing(|chunk| chunk.slot == SlotId(0));
    harness.commit();
    harness.drain();
    assert_eq!(finished(&harness, 1), Some(FinishReason::Failed(SlotError::InvalidLogits)));
    assert_eq!(finished(&harness, 2), Some(FinishReason::Length));
    assert_eq!(harness.scheduler.stats().finished_failed, 1);
}

#[test]
fn a_cancelled_request_frees_its_blocks_with_the_step_in_flight() {
    let mut harness = Harness::new(roomy());
    harness.submit(request(1, 0, text(0, 100), 50)).unwrap();
    harness.submit(request(2, 0, text(9, 20), 50)).unwrap();
    harness.plan();
    harness.cancel(RequestId(1));
    harness.cancel(RequestId(77));
    assert_eq!(finished(&harness, 1), Some(FinishReason::Cancelled));
    assert_eq!(harness.scheduler.stats().blocks_in_use, 9);
    harness.commit();
    assert_eq!(harness.scheduler.stats().blocks_in_use, 2);
    // The workers are told, even if there is nothing else to do.
    harness.cancel(RequestId(2));
    let plan = harness.plan().expect("slots to release");
    assert_eq!((plan.release.len(), plan.chunks.len()), (2, 0));
    harness.commit();
    assert!(!harness.scheduler.has_work());
}

#[test]
fn an_empty_plan_is_no_step() {
    let mut harness = Harness::new(roomy());
    assert!(harness.plan().is_none());
    harness.submit(request(1, 0, text(0, 5), 3)).unwrap();
    assert_eq!(harness.plan().map(|plan| plan.step), Some(StepId(1)));
    // With one plan in flight at most, there is none while it is.
    assert!(harness.plan().is_none());
    harness.commit();
    assert_eq!(harness.plan().map(|plan| plan.step), Some(StepId(2)));
    harness.drain();
}

#[test]
fn the_latest_arrival_gives_up_its_blocks() {
    let mut harness = Harness::new(Limits { num_blocks: 4, ..roomy() });
    harness.submit(request(1, 0, text(0, 16), 40)).unwrap();
    harness.submit(request(2, 0, text(5, 16), 40)).unwrap();
    harness.submit(request(3, 0, text(9, 1), 1)).unwrap();
    while harness.scheduler.stats().preemptions == 0 {
        harness.step();
    }
    // The first goes on; the second waits before the third, and for its turn.
    assert_eq!(harness.scheduler.stats().num_running, 1);
    assert_eq!(finished(&harness, 1), None);
    harness.drain();
    for id in 1..=3 {
        assert_eq!(finished(&harness, id), Some(FinishReason::Length));
    }
}

#[test]
fn a_preempted_sequence_finds_its_own_blocks_again() {
    let mut harness = Harness::new(Limits { num_blocks: 6, ..roomy() });
    harness.submit(request(1, 0, text(0, 30), 4)).unwrap();
    harness.submit(request(2, 0, text(5, 60), 20)).unwrap();
    harness.drain();
    let stats = harness.scheduler.stats();
    assert!(stats.preemptions > 0);
    // Prompt tokens count once, however often they are computed.
    assert_eq!(stats.prompt_tokens, 90);
}

#[test]
fn deadlines_end_waiting_and_running_requests() {
    let mut harness = Harness::new(Limits { max_seqs: 1, ..roomy() });
    for (id, deadline) in [(1, 10), (2, 20), (3, 30)] {
        let mut timed = request(id, 0, text(id as u32, 10), 50);
        timed.deadline = Some(Tick(deadline));
        harness.submit(timed).unwrap();
    }
    harness.step();
    harness.now = Tick(20);
    harness.step();
    assert_eq!(finished(&harness, 1), Some(FinishReason::Deadline));
    assert_eq!(finished(&harness, 2), Some(FinishReason::Deadline));
    assert_eq!((finished(&harness, 3), cached(&harness, 3)), (None, Some(0)));
    harness.drain();
    assert_eq!(finished(&harness, 3), Some(FinishReason::Length));
}

#[test]
fn a_higher_class_starts_first() {
    let mut harness = Harness::new(Limits { max_seqs: 1, ..roomy() });
    for (id, class) in [(1, 100), (2, 100), (3, 50)] {
        let mut classed = request(id, 0, text(id as u32, 10), 2);
        classed.priority = Priority(class);
        harness.submit(classed).unwrap();
    }
    harness.step();
    assert_eq!([1, 2, 3].map(|id| cached(&harness, id)), [None, None, Some(0)]);
    harness.drain();
}

#[test]
fn after_a_reset_everything_goes_on_from_its_tokens() {
    let mut harness = Harness::new(Limits { max_seqs: 2, max_plans_in_flight: 2, ..roomy() });
    for id in 1..=4 {
        harness.submit(request(id, 0, text(id as u32, 20), 10)).unwrap();
    }
    harness.step();
    harness.plan();
    harness.plan();
    harness.reset();
    let stats = harness.scheduler.stats();
    assert_eq!((stats.num_running, stats.num_waiting, stats.blocks_in_use), (0, 4, 0));
    let plan = harness.plan().expect("work to do").clone();
    assert_eq!((plan.step, plan.epoch.0), (StepId(1), 2));
    // One token of each was committed before the group died.
    assert_eq!(plan.start[0].tokens.len(), 21);
    harness.drain();
}

#[test]
fn a_complete_request_that_moved_here_ends_at_once() {
    let mut harness = Harness::new(roomy());
    let mut moved = request(1, 0, text(0, 20), 3);
    moved.num_prompt = 17;
    harness.submit(moved.clone()).unwrap();
    assert!(harness.plan().is_none());
    assert_eq!(finished(&harness, 1), Some(FinishReason::Length));
    moved.id = RequestId(2);
    moved.stop.max_tokens = 30;
    moved.stop.stop_token_ids = vec![moved.tokens[19]];
    harness.submit(moved).unwrap();
    assert!(harness.plan().is_none());
    assert_eq!(finished(&harness, 2), Some(FinishReason::Stop));
    harness.drain();
}

#[test]
fn with_two_plans_in_flight_a_plan_continues_from_a_token_not_yet_seen() {
    let mut harness = Harness::new(Limits { max_plans_in_flight: 2, ..roomy() });
    let prompt = text(0, 20);
    let mut first = request(1, 0, prompt.clone(), 3);
    harness.submit(first.clone()).unwrap();
    assert_eq!(next_chunks(&mut harness), [(0, 0, 20, true)]);
    assert_eq!(next_chunks(&mut harness), [(0, 20, 1, true)]);
    assert!(harness.plan().is_none(), "two are in flight");
    harness.commit();
    assert_eq!(next_chunks(&mut harness), [(0, 21, 1, true)]);
    harness.commit();
    assert!(harness.plan().is_none(), "nothing is planned past the last token");
    harness.drain();
    assert_eq!(finished(&harness, 1), Some(FinishReason::Length));

    // A stop token shows when the next one is already planned: that one is dropped.
    first.id = RequestId(2);
    first.stop.stop_token_ids = vec![next_token(0, &prompt)];
    harness.submit(first).unwrap();
    harness.plan();
    harness.plan();
    harness.commit();
    assert_eq!(finished(&harness, 2), Some(FinishReason::Stop));
    assert!(harness.scheduler.stats().blocks_in_use > 0, "a plan in flight names its blocks");
    harness.commit();
    assert_eq!(harness.scheduler.stats().blocks_in_use, 0);
    assert_eq!(harness.clients.watches[&RequestId(2)].tokens.len(), 21);
    harness.drain();
}

#[test]
fn results_that_answer_no_plan_are_recognized() {
    let mut harness = Harness::new(roomy());
    let mut result = StepResult { step: StepId(1), ..StepResult::default() };
    assert_eq!(harness.scheduler.check_result(&result), Err(ResultError::NothingInFlight));
    harness.submit(request(1, 0, text(0, 20), 3)).unwrap();
    harness.plan();
    assert_eq!(
        harness.scheduler.check_result(&result),
        Err(ResultError::WrongSlots { step: StepId(1) })
    );
    result.step = StepId(2);
    let wrong_step = ResultError::WrongStep { want: StepId(1), got: StepId(2) };
    assert_eq!(harness.scheduler.check_result(&result), Err(wrong_step));
    harness.drain();
}

/// A long prompt in chunks has not taken its blocks yet, and others must not start on them.
#[test]
fn promised_blocks_are_not_given_to_others() {
    for max_plans_in_flight in 1..=2 {
        let limits =
            Limits { step_tokens: 64, max_chunk_tokens: 16, max_plans_in_flight, ..roomy() };
        let mut harness = Harness::new(limits);
        // 57 blocks of 64, and 19 of each of the others; the last one fits beside it.
        let long: Vec<TokenId> = (0..900).map(|at| TokenId(at * at % 47)).collect();
        harness.submit(request(1, 0, long, 3)).unwrap();
        let mut small = request(5, 5, text(3, 40), 2);
        small.priority = Priority(1);
        for id in 2..=4 {
            harness.submit(request(id, id, text(id as u32, 300), 3)).unwrap();
        }
        harness.step();
        harness.submit(small).unwrap();
        harness.step();
        assert_eq!([1, 2, 5].map(|id| cached(&harness, id)), [Some(0), None, Some(0)]);
        harness.drain();
        assert_eq!(harness.scheduler.stats().preemptions, 0);
    }
}

/// One that was refused is not asked about again in each step; but that another one has computed its
/// prefix meanwhile counts.
#[test]
fn a_prefix_that_grows_lets_the_refused_in() {
    let limits = Limits {
        num_blocks: 20,
        step_tokens: 48,
        max_chunk_tokens: 32,
        max_plans_in_flight: 2,
        ..roomy()
    };
    let mut harness = Harness::new(limits);
    harness.submit(request(1, 0, text(0, 200), 60)).unwrap();
    harness.step();
    harness.submit(request(2, 0, text(0, 200), 5)).unwrap();
    harness.step();
    assert_eq!(cached(&harness, 2), None, "it needs 13 blocks, and 7 are not promised");
    let mut steps = 0;
    while cached(&harness, 2).is_none() {
        harness.step();
        steps += 1;
        assert!(steps < 12, "nobody looked at the cache again");
    }
    assert_eq!((finished(&harness, 1), harness.scheduler.stats().preemptions), (None, 0));
    harness.drain();
}
