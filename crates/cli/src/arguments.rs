//! The command line.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use oarlock_worker::InstructionSet;

use crate::keys::KeysArguments;
use crate::limits::LimitArguments;
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
                  or per module, e.g. info,oarlock_engine=debug\n  OARLOCK_CACHE  where fetched models are kept\n  \
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
    /// Fetch a model without serving it, and print its path.
    #[command(subcommand)]
    Fetch(FetchCommand),
    /// Add, list and revoke the keys of a server.
    Keys(KeysArguments),
    /// Measure a server: throughput and latencies under load, of any server with OpenAI's API.
    Bench(Box<crate::bench::BenchArguments>),
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

/// A model to serve.
#[derive(Clone, Debug)]
pub(crate) enum Model {
    /// The demo model, fetched on first use.
    Demo,
    /// A weight file.
    File(PathBuf),
}

impl FromStr for Model {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "demo" { Self::Demo } else { Self::File(PathBuf::from(text)) })
    }
}

impl Model {
    /// The name that clients use unless `--served-name` says otherwise.
    pub(crate) fn default_name(&self) -> String {
        match self {
            Self::Demo => "demo".to_owned(),
            Self::File(path) => {
                path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
            }
        }
    }
}

/// Options of `oarlock serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    /// A GGUF file, or `demo`: Qwen2.5-Coder-0.5B-Instruct, fetched once.
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
    /// Seconds that running requests may take to finish after SIGTERM.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub(crate) drain_seconds: u64,
    /// Where fetched models are kept.
    #[arg(long, env = "OARLOCK_CACHE", value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) cpu: CpuArguments,
    #[command(flatten)]
    pub(crate) request_limits: RequestLimitArguments,
    #[command(flatten)]
    pub(crate) limits: LimitArguments,
}

/// Options of the CPU backend.
#[derive(Clone, Debug, Args)]
pub(crate) struct CpuArguments {
    /// Threads that compute; 0: one per core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) threads: usize,
    /// Instruction set of the kernels: auto, portable, avx2, avx512 or amx. All give the same bits.
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub(crate) instruction_set: String,
}

impl CpuArguments {
    /// The instruction set; `None` for the best that the machine has.
    pub(crate) fn instruction_set(&self) -> anyhow::Result<Option<InstructionSet>> {
        if self.instruction_set == "auto" {
            return Ok(None);
        }
        let available = InstructionSet::available();
        let chosen = available.iter().copied().find(|set| set.to_string() == self.instruction_set);
        chosen.map(Some).with_context(|| {
            let names: Vec<_> = available.iter().map(ToString::to_string).collect();
            format!(
                "--instruction-set {}: this machine has auto, {}",
                self.instruction_set,
                names.join(", ")
            )
        })
    }

    /// The same options for a worker's command line.
    pub(crate) fn to_arguments(&self) -> Vec<OsString> {
        let threads = self.threads.to_string();
        ["--threads", &threads, "--instruction-set", &self.instruction_set]
            .map(OsString::from)
            .into()
    }
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
    #[command(flatten)]
    pub(crate) cpu: CpuArguments,
}
