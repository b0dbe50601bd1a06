//! Which tokens run next: continuous batching over the paged KV cache.
//!
//! [`Scheduler`] is a synchronous state machine. Requests go in by [`Scheduler::submit`], each
//! [`Scheduler::plan`] gives the next step for the workers as changes against what they know, each
//! [`Scheduler::commit`] takes a step's result, and everything that happens to a request comes out
//! as events: `Started` once, `PromptScores` and `Token` in order, `Finished` last.
//!
//! Progress is one number for each sequence, the tokens computed; there is no prefill or decode
//! phase. A step has a budget of tokens: running sequences first, in order of class and arrival,
//! then waiting ones. A sequence that finds no free block takes those of the last in that order,
//! which waits again and is computed again from its tokens.
//!
//! Invariants ([`Scheduler::check_invariants`], and the property tests):
//! - The tokens of a plan are within the budget, and every position is computed after all before it.
//! - A sequence's tokens do not depend on chunks, cache hits, preemption or resets.
//! - The same calls give the same plans.
//! - Blocks and slots are never lost: cancelling everything gives all of them back.
//! - No block is reused while a plan in flight names it (`oarlock-kv-cache` sees to it).
//! - The first sequence in the order always gets on, so that nothing that fits starves within its
//!   class.
//!
//! Planning and committing allocate nothing once warm, but for logprobs in events, if the caller
//! passes the same plan again and again (it need not clear it).
//!
//! Absent on purpose: threads, the clock (time is an argument), I/O, text, device memory, randomness.
//! Not yet here: fairness over tenants, siblings, and preemption of a lower class for a slot.

mod commit;
mod invariants;
mod limits;
mod planner;
mod queue;
mod scheduler;
mod sequence;
mod spare;

pub use commit::ResultError;
pub use limits::Limits;
pub use scheduler::Scheduler;
