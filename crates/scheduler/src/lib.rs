//! Which tokens run next: continuous batching over the paged KV cache.
//!
//! [`Scheduler`] is a synchronous state machine. Requests go in by [`Scheduler::submit`], each
//! [`Scheduler::plan`] gives the next step for the workers as changes against what they know, each
//! [`Scheduler::commit`] takes a step's result, and everything that happens to a request comes out
//! as events: `Started` once, `PromptScores` and `Token` in order, `Finished` last.
//!
//! Progress is one number for each sequence, the tokens computed; there is no prefill or decode
//! phase. A step has a budget of tokens, handed out class by class: in each, running sequences first,
//! in order of arrival, then waiting ones.
//!
//! - Classes are strict: a waiting sequence that lacks a slot or blocks takes them from running ones
//!   of lower classes, the lowest class and in it the latest arrival first, and only if that suffices.
//!   A running sequence that finds no free block takes those of the last in the order of class and
//!   arrival. Who is preempted waits again and is computed again from its tokens.
//! - Inside a class, of those that wait the tenant that was served least is next (`tenants.rs`), and
//!   of its sequences the earliest.
//! - Siblings wait until the first of them has its prompt's full blocks in the cache (`groups.rs`).
//!
//! Invariants ([`Scheduler::check_invariants`], [`Scheduler::check_plan`], and the property tests):
//! - The tokens of a plan are within the budget, and every position is computed after all before it.
//! - A sequence's tokens do not depend on chunks, cache hits, preemption or resets.
//! - The same calls give the same plans.
//! - Blocks and slots are never lost: cancelling everything gives all of them back.
//! - No block is reused while a plan in flight names it, and two salts never share one
//!   (`oarlock-kv-cache` sees to it).
//! - While anything lives, a plan is in flight or the next one is not empty.
//! - The first running sequence in the order of class and arrival always gets on, so that nothing
//!   that fits starves within its class.
//! - No sequence runs while one of a higher class waits that could run in its place.
//! - Two tenants of a class that both always have something waiting are never further apart than the
//!   tokens that fit the slots: [`Limits::max_seqs`] sequences of the greatest length.
//!
//! Planning and committing allocate nothing once warm, but for logprobs in events, if the caller
//! passes the same plan again and again (it need not clear it).
//!
//! Absent on purpose: threads, the clock (time is an argument), I/O, text, device memory, randomness.

mod admission;
mod commit;
mod drain;
mod groups;
mod invariants;
mod isolation;
mod limits;
mod planner;
mod promises;
mod queue;
mod scheduler;
mod sequence;
mod shelf;
mod spare;
mod submit;
mod tenants;
mod waiting;

pub use commit::ResultError;
pub use limits::Limits;
pub use scheduler::Scheduler;
