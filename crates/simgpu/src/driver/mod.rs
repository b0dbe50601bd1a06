//! The CUDA driver's C interface over simulated devices: what a program finds in a `libcuda.so`.
//!
//! As many functions as Oarlock's backend calls; a program that wants another one finds no symbol of that
//! name. Handles are numbers that are looked up, never pointers that are followed. Operations of one stream
//! run in order, those of several in a seeded random one; a copy reads and writes host memory when its turn
//! comes, so that a buffer that is reused too early shows. Errors of a kernel stick to the device, as on
//! hardware, and their report goes to standard error.
//!
//! Environment: `OARLOCK_SIMGPU=2x80GiB` (devices and their memory), `OARLOCK_SIMGPU_SEED` (of every
//! schedule), `OARLOCK_SIMGPU_THREADS` (host threads of one device), `OARLOCK_SIMGPU_CAPABILITY=9.0`
//! (what devices say they are; without it, that of an architecture to come), `OARLOCK_SIMGPU_BREAKS_AT=500`
//! (the launch at which a process' device breaks for good).

mod api_device;
mod api_memory;
mod api_module;
mod api_stream;
mod device;
mod error;
mod handles;
mod settings;
mod streams;

pub(crate) use error::CuResult;
