//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use oarlock_engine::Collective;

use crate::compute::ComputeArguments;
use crate::inspect::InspectArguments;
use crate::keys::KeysArguments;
use crate::limits::LimitArguments;
use crate::model_argument::Model;
use crate::request_limits::RequestLimitArguments;

/// Serves private language models over the OpenAI API and gRPC.
#[derive(Debug, Parser)]
#[command(
    name = "oarlock",
    version,
    after_help = "Example:\n  oarlock serve --model demo\n  curl http://127.0.0.1:8000/v1/chat/completions \
                  -H 'content-type: application/json' \\\n    -d '{\"model\": \"demo\", \"messages\": \
                  [{\"role\": \"user\", \"content\": \"What is a mutex?\"}]}'\n\n\
                  Environment:\n  OARLOCK_LOG    what is logged: error, warn, info (default), debug, \
                  or per module, e.g. info,oarlock_engine=debug\n  OARLOCK_CACHE  where fetched models \
                  and hashes of weights are kept\n  \
                  OARLOCK_KEYS   the keys file\n  OPENAI_API_KEY  the key that `oarlock bench` sends"
)]
pub(crate) struct Arguments {
    /// Log JSON objects, one per line, instead of text.
    #[arg(long, global = true)]
    pub(crate) log_json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a model: HTTP gateway, engine and worker processes on this machine.
    Serve(Box<ServeArguments>),
    /// Say what a checkpoint is without serving it: family, parameters, types, context, the degrees of tensor
    /// parallelism that it allows, and the memory that each rank needs. Checks that all tensors are there and
    /// have the right shapes.
    Inspect(InspectArguments),
    /// Fetch a model without serving it, and print its path.
    #[command(subcommand)]
    Fetch(FetchCommand),
    /// Add, list and revoke the keys of a server.
    Keys(KeysArguments),
    /// Measure a server: throughput and latencies under load, of any server with OpenAI's API.
    Bench(Box<crate::bench::BenchArguments>),
    /// Find out where two runs that should agree begin to differ.
    #[command(subcommand)]
    Debug(crate::debug::DebugCommand),
    /// A worker process. The engine starts it; not for people.
    #[command(hide = true)]
    Worker(WorkerArguments),
}

/// Models that can be fetched.
#[derive(Debug, Subcommand)]
pub(crate) enum FetchCommand {
    /// Qwen2.5-Coder-0.5B-Instruct, Q4_K_M (469 MiB, Apache-2.0).
    Demo {
        /// Where fetched models are kept.
        #[arg(long, env = "OARLOCK_CACHE", value_name = "DIR")]
        cache: Option<PathBuf>,
    },
}

/// Options of `oarlock serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    /// A GGUF file, of several the first (NAME-00001-of-00003.gguf); a folder as on the Hugging Face hub
    /// (config.json, safetensors and, for texts, tokenizer.json); or `demo`:
    /// Qwen2.5-Coder-0.5B-Instruct, fetched once.
    #[arg(long, value_name = "PATH|demo")]
    pub(crate) model: Model,
    /// Address to listen on. Others than loopback reach the network: give them --keys.
    #[arg(long, default_value = "127.0.0.1")]
    pub(crate) host: IpAddr,
    /// The keys file; see `oarlock keys --help`. Without one, or while it has never had a key,
    /// everybody who reaches the server may use it. Changes are noticed within a second or two.
    #[arg(long, env = "OARLOCK_KEYS", value_name = "FILE")]
    pub(crate) keys: Option<PathBuf>,
    /// Port to listen on; 0 picks a free one.
    #[arg(long, default_value_t = 8000)]
    pub(crate) port: u16,
    /// Port of the public gRPC API (`oarlock.v1.Inference`, with health and reflection); 0 picks a free
    /// one. Without this option there is none.
    #[arg(long, value_name = "PORT")]
    pub(crate) grpc_port: Option<u16>,
    /// The name that clients put into `model`; by default the file's name without its ending.
    #[arg(long, value_name = "NAME")]
    pub(crate) served_name: Option<String>,
    /// Where temperature, top_k, top_p, min_p, repetition_penalty and a chat's max_tokens come from where
    /// a request does not say: the model's own recommendation (generation_config.json, or the same keys of
    /// a GGUF file), or OpenAI's defaults alone.
    #[arg(long, value_name = "FROM", default_value = "model")]
    pub(crate) generation_config: GenerationConfig,
    /// Sequences that run at the same time at most.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) max_seqs: u32,
    /// Sequences that wait for their first start at most, beyond free places, in each priority class
    /// with those above it; more are answered 429. A tenant that has none waiting may exceed it by 1/8.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) max_queued: u32,
    /// Tokens of waiting sequences at most, counted in the same way; more are answered 429. A sequence
    /// that finds the queue empty is always taken.
    #[arg(long, value_name = "N", default_value_t = 1_048_576, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) max_queued_tokens: u64,
    /// Tokens that the KV cache holds, over all sequences.
    #[arg(long, value_name = "N", default_value_t = 16_384, value_parser = clap::value_parser!(u32).range(32..=4_000_000_000))]
    pub(crate) kv_cache_tokens: u32,
    /// Tokens computed in one step at most.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) step_tokens: u32,
    /// Tokens of one prompt computed in one step at most; 0: as many as the step has room for.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) chunk_tokens: u32,
    /// Tokens of one sequence, prompt and answer; 0: as many as the model was made for and the KV
    /// cache holds.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) max_sequence_tokens: u32,
    /// Worker processes that hold the model together, each a part of it: 1, 2, 4 or 8. What a model
    /// allows depends on its heads; answers have the same bits at every degree.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = ranks)]
    pub(crate) tensor_parallel: u32,
    /// How workers reach each other: auto (shared memory on one host, otherwise TCP), shared-memory, tcp.
    #[arg(long, value_name = "HOW", default_value = "auto")]
    pub(crate) collective: CollectiveArgument,
    /// Words before the command of each worker, in which `{rank}` becomes its number: a program that
    /// becomes the worker in the end, such as `numactl --cpunodebind={rank}` or `ip netns exec
    /// node{rank}`. The worker must have this one as its parent.
    #[arg(long, value_name = "WORDS", value_parser = words)]
    pub(crate) worker_launcher: Option<Words>,
    /// Seconds that a worker may give no sign of life, or make no progress inside of a step, before all
    /// workers are replaced. Slow is not stuck: a long prompt makes progress.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = stall_seconds)]
    pub(crate) stall_seconds: f32,
    /// Steps that may be on their way to the workers at the same time: 1 or 2. With 2 the next step
    /// waits at the workers' door.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=2))]
    pub(crate) max_plans_in_flight: u32,
    /// A folder in which each worker writes checksums of all that it computes. Slow; for `oarlock
    /// debug compare`.
    #[arg(long, value_name = "DIR", hide_short_help = true)]
    pub(crate) trace: Option<PathBuf>,
    /// Seconds that running requests may take to finish after SIGTERM.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub(crate) drain_seconds: u64,
    /// Where fetched models are kept, and hashes of weights that did not change since the last start.
    #[arg(long, env = "OARLOCK_CACHE", value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) compute: ComputeArguments,
    #[command(flatten)]
    pub(crate) request_limits: RequestLimitArguments,
    #[command(flatten)]
    pub(crate) limits: LimitArguments,
}

/// Options of a worker process.
#[derive(Debug, Args)]
pub(crate) struct WorkerArguments {
    /// The socket to serve.
    #[arg(long)]
    pub(crate) socket: PathBuf,
    /// The engine's process id.
    #[arg(long)]
    pub(crate) engine_pid: u32,
    /// The address at which other workers of the group reach this one, where they are on other hosts.
    #[arg(long, env = "OARLOCK_COLLECTIVE_HOST", value_name = "IP")]
    pub(crate) collective_host: Option<IpAddr>,
    /// Where to write checksums of all that is computed.
    #[arg(long)]
    pub(crate) trace: Option<PathBuf>,
    /// Where to keep hashes of files.
    #[arg(long)]
    pub(crate) hashes: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) compute: ComputeArguments,
}

/// Where defaults of sampling come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum GenerationConfig {
    /// The model's makers, then OpenAI.
    Model,
    /// OpenAI.
    None,
}

/// How workers reach each other.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum CollectiveArgument {
    /// Shared memory where all are on one host, otherwise TCP.
    Auto,
    /// Shared memory.
    SharedMemory,
    /// TCP.
    Tcp,
}

impl From<CollectiveArgument> for Collective {
    fn from(argument: CollectiveArgument) -> Self {
        match argument {
            CollectiveArgument::Auto => Self::Auto,
            CollectiveArgument::SharedMemory => Self::SharedMemory,
            CollectiveArgument::Tcp => Self::Tcp,
        }
    }
}

/// A command line's words.
#[derive(Clone, Debug)]
pub(crate) struct Words(pub(crate) Vec<String>);

fn words(text: &str) -> Result<Words, String> {
    shell_words::split(text).map(Words).map_err(|error| error.to_string())
}

pub(crate) fn ranks(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(ranks @ (1 | 2 | 4 | 8)) => Ok(ranks),
        _ => Err("1, 2, 4 or 8 workers are possible".to_owned()),
    }
}

fn stall_seconds(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(seconds) if (0.2..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("not a number of seconds from 0.2 to 3600".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(words: &[&str]) -> Result<ServeArguments, String> {
        let all = [&["oarlock", "serve", "--model", "m"], words].concat();
        match Arguments::try_parse_from(all).map_err(|error| error.to_string())?.command {
            Command::Serve(arguments) => Ok(*arguments),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_can() {
        let refused = |words: &[&str]| serve(words).expect_err("it cannot be");
        assert!(refused(&["--tensor-parallel", "3"]).contains("1, 2, 4 or 8"));
        assert!(refused(&["--stall-seconds", "0"]).contains("0.2 to 3600"));
        assert!(refused(&["--max-plans-in-flight", "3"]).contains("1..=2"));
        assert!(refused(&["--collective", "smoke"]).contains("shared-memory"));
        assert!(refused(&["--dtype", "int4"]).contains("bfloat16"));
        assert!(refused(&["--worker-launcher", "echo 'half"]).contains("quot"));
    }

    #[test]
    fn a_launcher_is_split_as_a_shell_does() {
        let arguments = serve(&["--worker-launcher", "env 'A=b c' numactl -N {rank}"]).unwrap();
        let words = arguments.worker_launcher.unwrap().0;
        assert_eq!(words, ["env", "A=b c", "numactl", "-N", "{rank}"]);
    }
}
