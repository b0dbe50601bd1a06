//! The `oarlock` binary: the only place that chooses implementations and wires processes together.

mod arguments;
mod bench;
mod compute;
#[cfg(feature = "cuda")]
mod cuda;
mod debug;
mod device;
mod fetch;
mod inspect;
mod keys;
mod limits;
mod loading;
mod model_argument;
mod request_limits;
mod serve;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use arguments::{Arguments, Command, FetchCommand, ServeArguments, WorkerArguments};
use clap::Parser as _;
use device::Device;
use model_argument::Model;
use oarlock_worker::{CpuOptions, HashCache, LoadSettings, WorkerOptions};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let logging = oarlock_telemetry::init_logging(arguments.log_json).map_err(anyhow::Error::from);
    match logging.and_then(|()| run(arguments.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One message for the person at the terminal: the chain of causes, no backtrace.
            drop(writeln!(std::io::stderr(), "error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve(arguments) => run_serve(*arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Fetch(command) => run_fetch(&command),
        Command::Keys(arguments) => keys::run(arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Debug(command) => debug::run(command),
        Command::Worker(arguments) => run_worker(arguments),
    }
}

fn run_serve(arguments: ServeArguments) -> anyhow::Result<()> {
    // Before the runtime starts: fetching blocks, for minutes the first time.
    let model = model_path(&arguments.model, arguments.cache.clone())?;
    tokio::runtime::Runtime::new()?.block_on(serve::serve(arguments, model))
}

/// Where a model is; the demo model is fetched first.
fn model_path(model: &Model, cache: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    match model {
        Model::Demo => demo_model(cache),
        Model::Path(path) => Ok(path.clone()),
    }
}

fn run_fetch(command: &FetchCommand) -> anyhow::Result<()> {
    let FetchCommand::Demo { cache } = command;
    let path = demo_model(cache.clone())?;
    writeln!(std::io::stdout(), "{}", path.display())?;
    Ok(())
}

fn demo_model(cache: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let progress = fetch::terminal_progress();
    fetch::demo_model(&fetch::cache_dir(cache)?, progress.as_ref())
}

fn run_worker(arguments: WorkerArguments) -> anyhow::Result<()> {
    let options = WorkerOptions {
        socket: arguments.socket,
        engine_pid: arguments.engine_pid,
        collective_host: arguments.collective_host,
        load: LoadSettings {
            numbers: arguments.compute.numbers(),
            trace: arguments.trace,
            hashes: arguments.hashes.map(HashCache::new),
        },
    };
    // The runtime only carries messages; the backend has threads of its own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match arguments.compute.device(1)? {
        Device::Cpu => {
            let kind = CpuOptions {
                threads: arguments.compute.threads,
                instruction_set: arguments.compute.instruction_set()?,
                dtype: arguments.compute.dtype,
            };
            runtime.block_on(oarlock_worker::run(options, kind))
        }
        #[cfg(feature = "cuda")]
        Device::Cuda => runtime
            .block_on(oarlock_worker::run(options, cuda::CudaKind::new(arguments.compute.dtype))),
    }
}
