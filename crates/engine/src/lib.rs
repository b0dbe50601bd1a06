//! The engine: one replica of a model. It owns the scheduler and drives its workers step by step.
//!
//! One task owns all state; everyone else holds an [`EngineHandle`] and sends it commands. A worker
//! that dies is started again with the next epoch, and the requests that ran go on from their tokens,
//! so that their owners see a pause and nothing else. Two plans are in flight at a time: while the
//! worker computes one it has the next already, which goes on from tokens that it samples itself.
//!
//! Absent on purpose: text, JSON, protobuf (`rpc` has it), device memory (the worker has it).

mod core;
mod deaths;
mod group;
mod handle;
mod link;
mod liveness;
mod options;
mod rank;
mod requests;
mod running;

pub use handle::{Engine, EngineHandle};
pub use options::{Collective, EngineOptions, WorkerCommand};
