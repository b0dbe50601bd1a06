//! Simulated CUDA devices: memory that checks every access, and a PTX interpreter.
//!
//! ```text
//! let memory = Memory::new(1 << 30);               // one device
//! let module = Module::parse(ptx)?;                // fails on an unknown instruction, by name and line
//! let loaded = module.load(&memory)?;              // places .global and .const variables
//! let counters = launch(&loaded, "kernel", &config, &memory, &Options::default())?;
//! ```
//!
//! A launch runs to its end before it returns; streams, events and errors that stick are the
//! driver's business. A kernel that breaks a rule is stopped with a [`Fault`]. `README.md` says what is
//! simulated, what is not, and how to read a report. Absent on purpose: the environment, the clock,
//! timing models.
#![allow(
    unsafe_code,
    reason = "memory that device threads race on, and register rows viewed at several widths; each \
              block says why"
)]
#![allow(
    clippy::inline_always,
    reason = "operations on lanes must be inlined into the functions that are compiled for AVX2 and FMA"
)]
#![allow(
    clippy::cast_ptr_alignment,
    reason = "alignment is checked before a place in memory is accessed, and named there"
)]

mod counters;
mod decode;
mod exec;
mod fault;
mod launch;
mod memory;
mod module;
mod numbers;
mod ptx;

pub use counters::{Banks, Counters, LineCounters, Traffic};
pub use fault::{Fault, FaultKind, PtxError, Space};
pub use launch::{LaunchConfig, Options, launch};
pub use memory::{Memory, MemoryError};
pub use module::{Entry, LoadedModule, Module, Param};
