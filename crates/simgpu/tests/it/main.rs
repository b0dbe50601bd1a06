//! The simulator against plain Rust, and against programs that hardware has proved.

mod checks;
mod cub;
mod cutlass;
mod harness;
mod instructions;
mod nvcc;
mod schedule;
