//! What the host needs to know of `kernels/`: parameter structs, launch geometry, planning, and the
//! compiled modules.

pub mod launch;
mod modules;
mod params;
mod plan;

pub use launch::{Launch, LinearFormat, WorkType};
pub use modules::{HAS_KERNELS, MODULES, Module};
pub use params::*;
pub use plan::{AttentionPlan, PlanBudget, PlanChunk, PlanShape};
