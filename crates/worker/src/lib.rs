//! The worker process: one device's weights and KV pages, executing step plans.
//!
//! A worker knows slots, never requests: it keeps each running sequence's tokens, block table and
//! sampling parameters, and a plan tells it only what changed. It lives and dies with its engine: it
//! serves one Unix socket that its engine made, and exits when its standard input closes or its
//! parent is gone.

mod executor;
mod fault;
mod kind;
mod load;
mod process;
mod service;
mod slots;
mod trace;
mod vitals;

pub use executor::{Execute, Executor, PlanError};
pub use kind::{BackendKind, CpuOptions, Memory};
pub use load::{LoadSettings, Numbers};
pub use oarlock_backend_cpu::{Dtype, InstructionSet};
pub use oarlock_model::{BufferType, HashCache, Quantization, TRACED_OPERATIONS};
pub use process::{WorkerOptions, run};
