//! What the host needs to know of `kernels/`: parameter structs, launch geometry, planning, and the
//! compiled modules.

mod launch;
mod modules;
mod params;
mod plan;

pub use launch::{Launch, LinearFormat, WorkType, launch};
pub use modules::{HAS_KERNELS, MODULES, Module};
pub use params::*;
pub use plan::{AttentionPlan, PlanBudget, PlanChunk, PlanShape};
