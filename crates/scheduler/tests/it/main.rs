//! The scheduler with a checking worker and checking clients: each rule, and random traces.

mod classes;
mod client;
mod harness;
mod isolation;
mod queue;
mod random;
mod rules;
mod siblings;
mod tenants;
mod trace;
mod worker;
