//! The figures, as values and as JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::options::{Arrivals, Endpoint};
use crate::stats::Summary;

/// Everything that was measured, and under which conditions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The server.
    pub url: String,
    /// The model that was asked.
    pub model: String,
    /// The API that was called.
    pub endpoint: Endpoint,
    /// As asked for.
    pub input_len: String,
    /// As asked for.
    pub output_len: String,
    /// Tokens that prompts of a group begin with, on top of `input_len`.
    pub shared_prefix_len: u32,
    /// Different shared prefixes.
    pub prefix_groups: u32,
    /// Requests of one conversation.
    pub turns: u32,
    /// The seed of the workload.
    pub seed: u64,
    /// Sampling temperature.
    pub temperature: f64,
    /// What prompts are made of: `token ids` (lengths are exact) or `words` (they are not quite).
    pub prompts: &'static str,
    /// Whether answers were made to have their full length.
    pub ignore_eos: bool,
    /// What a good request keeps to.
    pub slo: Option<String>,
    /// Whether it was stopped before its end.
    pub interrupted: bool,
    /// What the reader should know before believing the figures.
    pub warnings: Vec<String>,
    /// One entry for each run.
    pub runs: Vec<RunReport>,
}

/// The figures of one run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RunReport {
    /// Requests in flight (an upper limit where they arrive by themselves).
    pub concurrency: Option<u32>,
    /// How requests arrived by themselves.
    pub arrivals: Option<ArrivalsReport>,
    /// From the start to the end of the last request.
    pub duration_s: f64,
    /// How many requests there were.
    pub requests: Requests,
    /// Failures by kind.
    pub errors: BTreeMap<String, ErrorCount>,
    /// Tokens of the prompts of answered requests, as the server counts them.
    pub input_tokens: u64,
    /// Of these, tokens that the server had cached, where it says so.
    pub cached_input_tokens: u64,
    /// Tokens of answers.
    pub output_tokens: u64,
    /// Tokens that one event of a stream brings; inter-token latencies are between events.
    pub tokens_per_event: Option<f64>,
    /// Per second.
    #[serde(flatten)]
    pub rates: Rates,
    /// Time to the first token, in milliseconds, from when the request was due: from its arrival where
    /// requests arrive by themselves, else from sending.
    pub ttft_ms: Option<Summary>,
    /// Between two events with output of one request, in milliseconds.
    pub itl_ms: Option<Summary>,
    /// Per output token after the first, mean over a request, in milliseconds.
    pub tpot_ms: Option<Summary>,
    /// To the end of the answer, in milliseconds, from when the request was due.
    pub e2e_ms: Option<Summary>,
    /// From a request's arrival until it was sent, in milliseconds, a part of the two above: it waited
    /// for a place under `concurrency`. `None` where none waited for a millisecond, and where requests
    /// do not arrive by themselves.
    pub client_wait_ms: Option<Summary>,
}

/// An open loop.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ArrivalsReport {
    /// `None`: all at once.
    pub requests_per_s: Option<f64>,
    /// Shape of the intervals.
    pub burstiness: f64,
}

impl From<Arrivals> for ArrivalsReport {
    fn from(arrivals: Arrivals) -> Self {
        let rate = arrivals.requests_per_s;
        Self { requests_per_s: rate.is_finite().then_some(rate), burstiness: arrivals.burstiness }
    }
}

/// How many requests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Requests {
    /// Answered.
    pub ok: u64,
    /// Failed.
    pub failed: u64,
    /// Of the answered ones, those whose tokens the server did not count: events are counted instead.
    pub without_usage: u64,
    /// Conversations that were due before the end and found no place under `concurrency` until then;
    /// they are in no latency. Counted up to a million.
    pub never_sent: u64,
}

/// Failures of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ErrorCount {
    /// How many.
    pub count: u64,
    /// What the first one said.
    pub example: String,
}

/// Figures per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// Answered requests.
    pub requests_per_s: f64,
    /// Answered requests that kept to every limit; `None` where there is no limit.
    pub goodput_requests_per_s: Option<f64>,
    /// Output tokens over the whole run, ramp and tail included.
    pub output_tokens_per_s: f64,
    /// Input and output tokens.
    pub total_tokens_per_s: f64,
    /// Output tokens while all streams were busy: from when each had its first token until no further
    /// request was started. `None` where that never was.
    pub steady_output_tokens_per_s: Option<f64>,
}

impl Report {
    /// All requests failed, and there was at least one: what to say of it.
    pub fn total_failure(&self) -> Option<String> {
        let num_ok: u64 = self.runs.iter().map(|run| run.requests.ok).sum();
        let num_failed: u64 = self.runs.iter().map(|run| run.requests.failed).sum();
        if num_ok > 0 || num_failed == 0 {
            return None;
        }
        let errors = self.runs.iter().flat_map(|run| &run.errors);
        let (kind, error) = errors.max_by_key(|(_, error)| error.count)?;
        Some(format!("all {num_failed} requests failed, most often: {kind}: {}", error.example))
    }

    /// One JSON object, without a line break at its end.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain fields can be written as JSON")
    }
}
