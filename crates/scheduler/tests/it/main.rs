//! The scheduler with a checking worker and checking clients: each rule, and random traces.

mod client;
mod harness;
mod random;
mod rules;
mod trace;
mod worker;
