//! `oarlock debug`: checksums of everything that a model computes, and the first difference between two
//! runs.

mod compare;
mod trace;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::arguments::{CollectiveArgument, ranks};
use crate::compute::ComputeArguments;
use crate::model_argument::Model;

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum DebugCommand {
    /// Compute one sequence and print a checksum of each layer's operations.
    #[command(after_help = "Example: where do two ranks differ from one?\n  \
        oarlock debug trace --model demo --tokens 9707,1879 --keep one\n  \
        oarlock debug trace --model demo --tokens 9707,1879 --tensor-parallel 2 --keep two\n  \
        oarlock debug compare one two")]
    Trace(Box<TraceArguments>),
    /// Compare two folders of checksums, written by `oarlock serve --trace` or `oarlock debug trace
    /// --keep`; ends with 1 if something differs.
    Compare(CompareArguments),
}

/// Options of `oarlock debug trace`.
#[derive(Debug, Args)]
pub(crate) struct TraceArguments {
    /// A GGUF file (of several the first), a folder as on the Hugging Face hub, or `demo`.
    #[arg(long, value_name = "PATH|demo")]
    pub(crate) model: Model,
    /// The prompt, as token ids.
    #[arg(long, value_name = "ID,...", value_delimiter = ',', required = true)]
    pub(crate) tokens: Vec<u32>,
    /// Tokens to generate, greedily.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) max_tokens: u32,
    /// Tokens of the prompt computed in one step at most; 0: all.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) chunk_tokens: u32,
    /// Worker processes that hold the model together: 1, 2, 4 or 8.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = ranks)]
    pub(crate) tensor_parallel: u32,
    /// How workers reach each other: auto, shared-memory, tcp.
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub(crate) collective: CollectiveArgument,
    /// Keep the checksums in this folder, for `oarlock debug compare`.
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
    /// Print JSON, one object per line.
    #[arg(long)]
    pub(crate) json: bool,
    /// Where fetched models are kept.
    #[arg(long, env = "OARLOCK_CACHE", value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) compute: ComputeArguments,
}

/// Options of `oarlock debug compare`.
#[derive(Debug, Args)]
pub(crate) struct CompareArguments {
    /// The folder of one run.
    pub(crate) first: PathBuf,
    /// The folder of the other.
    pub(crate) second: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Runs the command.
pub(crate) fn run(command: DebugCommand) -> anyhow::Result<()> {
    match command {
        DebugCommand::Trace(arguments) => trace::run(&arguments),
        DebugCommand::Compare(arguments) => compare::run(&arguments),
    }
}
