//! `oarlock bench`: the command line of the load generator, its progress line and its exit.

use std::fs;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use oarlock_bench::{
    Arrivals, CancellationToken, Endpoint, Length, Live, Options, Progress, Slo, parse_duration,
};

/// How often the progress line is drawn.
const REDRAW: Duration = Duration::from_millis(200);

/// Options of `oarlock bench`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  One stream, then sixteen, against a server on this machine:
    oarlock bench --concurrency 1,16
  Requests that arrive by themselves, four a second, and how many are answered well:
    oarlock bench --request-rate 4 --duration 2m --slo ttft=500ms,itl=100ms
  Conversations under one of three system prompts, for the prefix cache:
    oarlock bench --endpoint chat --turns 4 --shared-prefix-len 1024 --prefix-groups 3
  Another server, figures for a program:
    oarlock bench --url https://llm.example.com/v1 --model m --json > figures.json

What is measured, at the client: TTFT from when a request was due to the first event with output; ITL \
between two such events; TPOT the time per output token after the first, by the server's own count; \
E2E to the end of the stream. A request is due when it is sent, and with --request-rate when it \
arrives, also where it then waits for a place under --concurrency (the report says for how long).")]
pub(crate) struct BenchArguments {
    /// The server.
    #[arg(long, default_value = "http://127.0.0.1:8000")]
    url: String,
    /// The model; by default the only one that the server lists.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Sent as a bearer token.
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<String>,
    /// Which API is called.
    #[arg(long, value_enum, default_value = "completions")]
    endpoint: EndpointArgument,
    /// Requests in flight; several numbers are several runs. With --request-rate an upper limit
    /// (the wait for a place counts into the latencies), and none by default; else 1 by default.
    #[arg(long, value_name = "N[,N...]", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=16_384))]
    concurrency: Vec<u32>,
    /// Requests that arrive per second, answered or not: a Poisson process. `inf`: all at once.
    #[arg(long, value_name = "R", value_parser = parse_rate)]
    request_rate: Option<f64>,
    /// Shape of the times between arrivals: 1 is Poisson, less comes in bursts, more is even.
    #[arg(long, value_name = "B", default_value_t = 1.0, value_parser = parse_burstiness, requires = "request_rate")]
    burstiness: f64,
    /// Requests of one run; by default 8 conversations per stream, at least 32 requests. The last
    /// conversation is shorter where --turns does not divide them; a failed request ends its own.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    requests: Option<u64>,
    /// No request starts later than this; those under way are finished.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Requests at the start that are not measured.
    #[arg(long, value_name = "N", default_value_t = 1)]
    warmup: u32,
    /// Tokens of a prompt, a shared prefix not counted: 512, 128..1024 (uniform) or 512+-128 (normal).
    #[arg(long, value_name = "TOKENS", default_value = "256")]
    input_len: Length,
    /// Tokens of an answer, in the same forms.
    #[arg(long, value_name = "TOKENS", default_value = "128")]
    output_len: Length,
    /// Whether the server shall ignore the end of sequence, so that answers have their full length;
    /// where it does not know the field, it is left out.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    ignore_eos: bool,
    /// Tokens that all prompts of a group begin with.
    #[arg(long, value_name = "TOKENS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=10_000_000))]
    shared_prefix_len: u32,
    /// Different shared prefixes.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    prefix_groups: u32,
    /// Requests of one conversation: each repeats the earlier ones and their answers.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    turns: u32,
    /// Decides prompts, lengths and times. The same seed sends the same requests, which a server may
    /// have in its prefix cache from the time before: take another one to measure without.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Sampling temperature.
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f64,
    /// What a good request keeps to: ttft=200ms,itl=50ms,tpot=30ms,e2e=5s, or some of these. The
    /// report then says how many such requests there were per second (goodput).
    #[arg(long, value_name = "LIMITS")]
    slo: Option<Slo>,
    /// A request that takes longer has failed.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    timeout: Duration,
    /// Print one JSON object and nothing else.
    #[arg(long)]
    json: bool,
    /// Write the JSON object to this file, too.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum EndpointArgument {
    /// /v1/chat/completions
    Chat,
    /// /v1/completions
    Completions,
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 => Ok(rate),
        _ => Err("expected a number above 0, or inf".to_owned()),
    }
}

fn parse_burstiness(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(shape) if (0.01..=1e6).contains(&shape) => Ok(shape),
        _ => Err("expected a number from 0.01 to 1000000".to_owned()),
    }
}

impl BenchArguments {
    fn options(&self) -> Options {
        Options {
            url: self.url.clone(),
            model: self.model.clone(),
            // An empty variable is none.
            api_key: self.api_key.clone().filter(|key| !key.is_empty()),
            endpoint: match self.endpoint {
                EndpointArgument::Chat => Endpoint::Chat,
                EndpointArgument::Completions => Endpoint::Completions,
            },
            concurrency: self.concurrency.clone(),
            arrivals: self
                .request_rate
                .map(|requests_per_s| Arrivals { requests_per_s, burstiness: self.burstiness }),
            requests: self.requests,
            duration: self.duration,
            warmup: self.warmup,
            input: self.input_len,
            output: self.output_len,
            ignore_eos: self.ignore_eos,
            shared_prefix_tokens: self.shared_prefix_len,
            prefix_groups: self.prefix_groups,
            turns: self.turns,
            seed: self.seed,
            temperature: self.temperature,
            slo: self.slo.unwrap_or_default(),
            timeout: self.timeout,
        }
    }
}

/// Measures and prints the report; an error where no request succeeded.
pub(crate) fn run(arguments: &BenchArguments) -> anyhow::Result<()> {
    // Before minutes of measuring are lost for it.
    if let Some(path) = &arguments.output {
        fs::write(path, "").with_context(|| format!("--output {}", path.display()))?;
    }
    let options = arguments.options();
    let runtime = tokio::runtime::Runtime::new()?;
    let report = runtime.block_on(async {
        let (live, cancel) = (Arc::new(Live::default()), CancellationToken::new());
        let progress = tokio::spawn(show_progress(Arc::clone(&live)));
        tokio::spawn(cancel_on_interrupt(cancel.clone()));
        let report = oarlock_bench::run(&options, &live, &cancel).await;
        progress.abort();
        // Waits for the line to be cleared; that it was aborted is no news.
        drop(progress.await);
        report
    })?;
    // Connections that are still open need not be closed in good order.
    runtime.shutdown_background();
    if let Some(path) = &arguments.output {
        let text = report.to_json() + "\n";
        fs::write(path, text).with_context(|| format!("--output {}", path.display()))?;
    }
    let text = if arguments.json { report.to_json() + "\n" } else { report.to_string() };
    std::io::stdout().write_all(text.as_bytes())?;
    match report.total_failure() {
        Some(message) => bail!(message),
        None => Ok(()),
    }
}

/// The first Ctrl-C ends the benchmark with a report, a second one ends the program.
async fn cancel_on_interrupt(cancel: CancellationToken) {
    while tokio::signal::ctrl_c().await.is_ok() {
        if cancel.is_cancelled() {
            std::process::exit(130);
        }
        cancel.cancel();
    }
}

/// A line on the terminal until it is aborted; nothing where there is no terminal.
async fn show_progress(live: Arc<Live>) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    let line = ClearOnDrop(ProgressBar::new_spinner());
    if let Ok(style) = ProgressStyle::with_template("{msg}") {
        line.0.set_style(style);
    }
    let mut redraw = tokio::time::interval(REDRAW);
    loop {
        redraw.tick().await;
        line.0.set_message(describe(&live.current()));
    }
}

/// Clears the progress line when it goes.
struct ClearOnDrop(ProgressBar);

impl Drop for ClearOnDrop {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

fn describe(progress: &Progress) -> String {
    let elapsed = progress.elapsed().as_secs_f64();
    let of = |limit: Option<String>| limit.map(|limit| format!("/{limit}")).unwrap_or_default();
    let total = of(progress.total().map(|total| total.to_string()));
    let duration = of(progress.duration().map(|limit| format!("{:.0}", limit.as_secs_f64())));
    let mut parts = vec![
        progress.label().to_owned(),
        format!("{}{total} answered", progress.num_ok()),
        format!("{} running", progress.num_running()),
    ];
    if progress.num_failed() > 0 {
        parts.push(format!("{} failed", progress.num_failed()));
    }
    if progress.num_outputs() > 0 && elapsed > 0.0 {
        parts.push(format!("{:.1} tokens/s", progress.num_outputs() as f64 / elapsed));
    }
    parts.push(format!("{elapsed:.0}{duration} s"));
    parts.join(" · ")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        bench: BenchArguments,
    }

    fn parse(arguments: &[&str]) -> Result<Options, clap::Error> {
        let line = [&["bench"], arguments].concat();
        Line::try_parse_from(line).map(|line| line.bench.options())
    }

    #[test]
    fn arguments_become_options() {
        let options = parse(&[
            "--concurrency",
            "1,16",
            "--request-rate",
            "inf",
            "--burstiness",
            "0.5",
            "--input-len",
            "10..20",
            "--slo",
            "ttft=1s",
            "--ignore-eos",
            "false",
            "--duration",
            "2m",
        ])
        .expect("they are right");
        assert_eq!(options.concurrency, [1, 16]);
        let arrivals = options.arrivals.expect("a rate");
        assert!(arrivals.requests_per_s.is_infinite() && arrivals.burstiness == 0.5);
        assert_eq!(options.input, Length::Uniform(10, 20));
        assert_eq!(options.slo.ttft, Some(Duration::from_secs(1)));
        assert_eq!(options.duration, Some(Duration::from_mins(2)));
        assert!(!options.ignore_eos && options.requests.is_none());
    }

    #[test]
    fn wrong_arguments_are_refused() {
        for wrong in [
            &["--concurrency", "0"][..],
            &["--request-rate", "0"],
            &["--request-rate", "-3"],
            &["--request-rate", "nan"],
            &["--burstiness", "2"],
            &["--input-len", "9..1"],
            &["--slo", "latency=1s"],
            &["--requests", "0"],
            &["--turns", "0"],
            &["--duration", "5"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
