//! What one run measures.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::error::Failure;
use crate::options::Slo;
use crate::report::{ErrorCount, Rates, Requests, RunReport};
use crate::request::Answer;
use crate::stats::Samples;

/// Kinds of errors that are told apart; there are fewer statuses than this.
const MAX_KINDS: usize = 64;
const MILLISECONDS: f64 = 1e3;
/// A longest wait at the client below this is none: it is how exact clocks and timers are.
const MIN_CLIENT_WAIT_MS: f64 = 1.0;

/// Collects the outcomes of requests.
#[derive(Debug, Default)]
pub(crate) struct Measures {
    ttft: Samples,
    itl: Samples,
    tpot: Samples,
    e2e: Samples,
    client_wait: Samples,
    num_ok: u64,
    num_failed: u64,
    num_good: u64,
    input_tokens: u64,
    cached_tokens: u64,
    output_tokens: u64,
    pieces: u64,
    num_without_usage: u64,
    num_never_sent: u64,
    errors: BTreeMap<String, ErrorCount>,
    last_end: Option<Instant>,
}

impl Measures {
    pub(crate) fn answered(&mut self, answer: &Answer, slo: &Slo) {
        self.last_end = Some(Instant::now());
        self.num_ok += 1;
        self.num_good += u64::from(is_good(answer, slo));
        match answer.usage {
            Some(usage) => {
                self.input_tokens += usage.prompt_tokens;
                self.cached_tokens += usage.cached_tokens();
            }
            None => self.num_without_usage += 1,
        }
        self.output_tokens += answer.output_tokens();
        self.pieces += answer.pieces;
        self.ttft.push(answer.ttft.as_secs_f64() * MILLISECONDS);
        self.e2e.push(answer.e2e.as_secs_f64() * MILLISECONDS);
        for gap in &answer.gaps {
            self.itl.push(gap.as_secs_f64() * MILLISECONDS);
        }
        if let Some(tpot) = answer.tpot() {
            self.tpot.push(tpot.as_secs_f64() * MILLISECONDS);
        }
    }

    pub(crate) fn failed(&mut self, failure: Failure) {
        self.last_end = Some(Instant::now());
        self.num_failed += 1;
        let mut kind = failure.kind.to_string();
        if self.errors.len() >= MAX_KINDS && !self.errors.contains_key(&kind) {
            "other".clone_into(&mut kind);
        }
        let count = self.errors.entry(kind).or_default();
        count.count += 1;
        if count.example.is_empty() {
            count.example = failure.message;
        }
    }

    /// A request that arrived by itself was sent, `wait` after it was due.
    pub(crate) fn waited(&mut self, wait: Duration) {
        self.client_wait.push(wait.as_secs_f64() * MILLISECONDS);
    }

    /// So many requests were due before the end, and found no place until then.
    pub(crate) fn never_sent(&mut self, count: u64) {
        self.num_never_sent += count;
    }

    /// Fills a report whose conditions are given. Rates count from `began` to the end of the last
    /// request.
    pub(crate) fn report(
        &self,
        began: Instant,
        slo: &Slo,
        steady_outputs_per_s: Option<f64>,
        conditions: &RunReport,
    ) -> RunReport {
        let duration_s = self.last_end.map_or(0.0, |end| (end - began).as_secs_f64());
        let per_s = |count: u64| if duration_s > 0.0 { count as f64 / duration_s } else { 0.0 };
        let tokens_per_event =
            (self.pieces > 0).then(|| self.output_tokens as f64 / self.pieces as f64);
        let steady = steady_outputs_per_s.zip(tokens_per_event).map(|(rate, tokens)| rate * tokens);
        RunReport {
            duration_s,
            requests: Requests {
                ok: self.num_ok,
                failed: self.num_failed,
                without_usage: self.num_without_usage,
                never_sent: self.num_never_sent,
            },
            errors: self.errors.clone(),
            input_tokens: self.input_tokens,
            cached_input_tokens: self.cached_tokens,
            output_tokens: self.output_tokens,
            tokens_per_event,
            rates: Rates {
                requests_per_s: per_s(self.num_ok),
                goodput_requests_per_s: slo.is_set().then(|| per_s(self.num_good)),
                output_tokens_per_s: per_s(self.output_tokens),
                total_tokens_per_s: per_s(self.input_tokens + self.output_tokens),
                steady_output_tokens_per_s: steady,
            },
            ttft_ms: self.ttft.summary(),
            itl_ms: self.itl.summary(),
            tpot_ms: self.tpot.summary(),
            e2e_ms: self.e2e.summary(),
            client_wait_ms: self
                .client_wait
                .summary()
                .filter(|wait| wait.max >= MIN_CLIENT_WAIT_MS),
            ..conditions.clone()
        }
    }
}

/// Whether an answer kept to every limit.
fn is_good(answer: &Answer, slo: &Slo) -> bool {
    let keeps = |value, limit: Option<_>| limit.is_none_or(|limit| value <= limit);
    keeps(answer.ttft, slo.ttft)
        && keeps(answer.e2e, slo.e2e)
        && keeps(answer.tpot().unwrap_or_default(), slo.tpot)
        && keeps(answer.gaps.iter().max().copied().unwrap_or_default(), slo.itl)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::FailureKind;

    fn answer() -> Answer {
        let ms = Duration::from_millis;
        Answer {
            ttft: ms(100),
            gaps: vec![ms(10), ms(40)],
            last: ms(150),
            e2e: ms(160),
            pieces: 3,
            ..Answer::default()
        }
    }

    #[test]
    fn good_answers_keep_every_limit() {
        for (slo, good) in [
            ("ttft=100ms", true),
            ("ttft=99ms", false),
            ("itl=40ms", true),
            ("itl=39ms", false),
            ("tpot=25ms", true),
            ("tpot=24ms", false),
            ("e2e=160ms,ttft=1s,itl=1s,tpot=1s", true),
            ("e2e=159ms,ttft=1s,itl=1s,tpot=1s", false),
        ] {
            assert_eq!(is_good(&answer(), &slo.parse().expect("limits")), good, "{slo}");
        }
    }

    #[test]
    fn counts_become_a_report() {
        let slo = "itl=39ms".parse().expect("limits");
        let mut measures = Measures::default();
        let began = Instant::now();
        measures.answered(&answer(), &slo);
        measures.failed(Failure::new(FailureKind::Status(429), "queue full"));
        measures.failed(Failure::new(FailureKind::Status(429), "still full"));
        let report = measures.report(began, &slo, Some(30.0), &RunReport::default());
        assert_eq!((report.requests.ok, report.requests.failed), (1, 2));
        let errors = &report.errors["http 429"];
        assert_eq!((errors.count, errors.example.as_str()), (2, "queue full"));
        assert_eq!((report.output_tokens, report.tokens_per_event), (3, Some(1.0)));
        assert_eq!(report.rates.goodput_requests_per_s, Some(0.0));
        assert_eq!(report.rates.steady_output_tokens_per_s, Some(30.0));
        assert_eq!(report.itl_ms.map(|itl| (itl.mean, itl.max)), Some((25.0, 40.0)));
        assert_eq!(report.ttft_ms.map(|ttft| ttft.p50), Some(100.0));
        assert_eq!((report.client_wait_ms, report.requests.never_sent), (None, 0));
    }

    #[test]
    fn waits_at_the_client_are_reported_where_there_are_any() {
        let mut measures = Measures::default();
        let report = |measures: &Measures| {
            measures.report(Instant::now(), &Slo::default(), None, &RunReport::default())
        };
        measures.waited(Duration::from_micros(200));
        assert_eq!(report(&measures).client_wait_ms, None);
        measures.waited(Duration::from_millis(40));
        measures.never_sent(3);
        let report = report(&measures);
        let wait = report.client_wait_ms.expect("one waited");
        assert_eq!((wait.max, wait.count), (40.0, 2));
        assert_eq!(report.requests.never_sent, 3);
    }
}
