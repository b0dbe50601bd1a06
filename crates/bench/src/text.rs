//! The report for people.

use std::fmt::{self, Write as _};

use crate::report::{Report, RunReport};
use crate::stats::Summary;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "server        {} · {} · {}", self.url, self.model, self.endpoint.path())?;
        write!(f, "workload      {} tokens in, {} out", self.input_len, self.output_len)?;
        if self.shared_prefix_len > 0 {
            let (prefix, groups) = (self.shared_prefix_len, self.prefix_groups);
            write!(f, ", after a shared prefix of {prefix} in {groups} group(s)")?;
        }
        if self.turns > 1 {
            write!(f, ", {} turns", self.turns)?;
        }
        writeln!(f, ", seed {}, prompts of {}", self.seed, self.prompts)?;
        for warning in &self.warnings {
            writeln!(f, "note          {warning}")?;
        }
        for run in &self.runs {
            writeln!(f)?;
            write_run(f, run)?;
        }
        if self.runs.len() > 1 {
            writeln!(f)?;
            write_overview(f, &self.runs)?;
        }
        if self.interrupted {
            writeln!(f, "\nInterrupted: these are the requests that had ended by then.")?;
        }
        Ok(())
    }
}

fn title(run: &RunReport) -> String {
    let mut title = String::new();
    if let Some(arrivals) = &run.arrivals {
        // Writing to a string cannot fail.
        let _ = match arrivals.requests_per_s {
            Some(rate) => write!(title, "{rate} requests/s, burstiness {}", arrivals.burstiness),
            None => write!(title, "all requests at once"),
        };
        if let Some(limit) = run.concurrency {
            let _ = write!(title, ", at most {limit} in flight");
        }
    } else if let Some(concurrency) = run.concurrency {
        let streams = if concurrency == 1 { "stream" } else { "streams" };
        let _ = write!(title, "{concurrency} {streams}");
    }
    title
}

fn write_run(f: &mut fmt::Formatter<'_>, run: &RunReport) -> fmt::Result {
    writeln!(f, "── {} ──", title(run))?;
    let requests = &run.requests;
    writeln!(
        f,
        "requests      {} ok, {} failed in {:.2} s: {:.3} per second",
        requests.ok, requests.failed, run.duration_s, run.rates.requests_per_s
    )?;
    if let Some(goodput) = run.rates.goodput_requests_per_s {
        writeln!(f, "goodput       {goodput:.3} requests per second within the limits")?;
    }
    write!(
        f,
        "output        {} tokens: {:.1} per second",
        run.output_tokens, run.rates.output_tokens_per_s
    )?;
    if let Some(steady) = run.rates.steady_output_tokens_per_s {
        write!(f, ", {steady:.1} while all streams were busy")?;
    }
    writeln!(f)?;
    writeln!(
        f,
        "input         {} tokens ({} cached); {:.1} tokens per second in and out",
        run.input_tokens, run.cached_input_tokens, run.rates.total_tokens_per_s
    )?;
    if let Some(tokens) = run.tokens_per_event.filter(|tokens| (tokens - 1.0).abs() > 0.01) {
        writeln!(f, "events        {tokens:.2} tokens each: ITL is the time between events")?;
    }
    if let Some(Summary { mean, p99, max, .. }) = run.client_wait_ms {
        writeln!(
            f,
            "client wait   mean {mean:.2} ms, p99 {p99:.2} ms, max {max:.2} ms for a place: part of TTFT \
             and E2E"
        )?;
    }
    if requests.never_sent > 0 {
        writeln!(
            f,
            "never sent    {} were due and found no place until the end",
            requests.never_sent
        )?;
    }
    for (kind, error) in &run.errors {
        writeln!(f, "error         {} × {kind}: {}", error.count, error.example)?;
    }
    writeln!(f, "{:<10}{:>10}{:>10}{:>10}{:>10}{:>10}", "ms", "mean", "p50", "p90", "p99", "max")?;
    let rows =
        [("TTFT", run.ttft_ms), ("ITL", run.itl_ms), ("TPOT", run.tpot_ms), ("E2E", run.e2e_ms)];
    for (name, summary) in rows {
        if let Some(Summary { mean, p50, p90, p99, max, .. }) = summary {
            writeln!(f, "{name:<10}{mean:>10.2}{p50:>10.2}{p90:>10.2}{p99:>10.2}{max:>10.2}")?;
        }
    }
    Ok(())
}

/// One line for each run.
fn write_overview(f: &mut fmt::Formatter<'_>, runs: &[RunReport]) -> fmt::Result {
    writeln!(
        f,
        "{:>11}{:>12}{:>12}{:>10}{:>10}{:>10}{:>10}{:>9}",
        "concurrency",
        "requests/s",
        "tokens/s",
        "TTFT p50",
        "TTFT p99",
        "ITL p50",
        "ITL p99",
        "failed"
    )?;
    for run in runs {
        let column = |summary: Option<Summary>, read: fn(Summary) -> f64| {
            summary.map_or_else(|| "-".to_owned(), |summary| format!("{:.2}", read(summary)))
        };
        writeln!(
            f,
            "{:>11}{:>12.3}{:>12.1}{:>10}{:>10}{:>10}{:>10}{:>9}",
            run.concurrency.map_or_else(|| "-".to_owned(), |limit| limit.to_string()),
            run.rates.requests_per_s,
            run.rates.output_tokens_per_s,
            column(run.ttft_ms, |summary| summary.p50),
            column(run.ttft_ms, |summary| summary.p99),
            column(run.itl_ms, |summary| summary.p50),
            column(run.itl_ms, |summary| summary.p99),
            run.requests.failed,
        )?;
    }
    Ok(())
}
