//! The simulator against plain Rust, and against programs that hardware has proved.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

mod checks;
mod cub;
mod cutlass;
mod damage;
mod harness;
mod instructions;
mod library;
mod nvcc;
mod random_programs;
mod schedule;
