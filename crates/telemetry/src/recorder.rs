//! What a gateway measures of one sequence, from its arrival to its end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use oarlock_types::{FinishReason, SlotError};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::histogram::{AtomicHistogram, OfScale, SECONDS, SMALL, Scale, TOKENS};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ModelLabels {
    model_name: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FinishLabels {
    model_name: String,
    finished_reason: &'static str,
}

/// How a sequence ended, from the client's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By a stop token or a stop string.
    Stop,
    /// With all tokens that were asked for.
    Length,
    /// The client went away, or the deadline passed.
    Abort,
    /// It failed.
    Error,
    /// It failed since its logits were not numbers.
    Corrupted,
}

impl From<&FinishReason> for Ending {
    fn from(reason: &FinishReason) -> Self {
        match reason {
            FinishReason::Stop => Self::Stop,
            FinishReason::Length => Self::Length,
            FinishReason::Cancelled | FinishReason::Deadline => Self::Abort,
            FinishReason::Failed(SlotError::InvalidLogits) => Self::Corrupted,
            FinishReason::Failed(_) | FinishReason::EngineLost => Self::Error,
        }
    }
}

/// What is known of a sequence at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Why.
    pub ending: Ending,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens generated.
    pub generation_tokens: u32,
    /// How often it was preempted; `None` where the engine was not asked to the end (a stop string).
    pub preemptions: Option<u32>,
    /// The request's `n`, on the first of its sequences; `None` on the others, so that it is counted
    /// once for each request.
    pub n: Option<u32>,
    /// The request's `max_tokens`.
    pub max_tokens: u32,
}

/// The registered families; one entry of each per model.
pub(crate) struct RequestFamilies {
    histograms: [Family<ModelLabels, AtomicHistogram, OfScale>; NUM_HISTOGRAMS],
    finished: Family<FinishLabels, Counter>,
    corrupted: Family<ModelLabels, Counter>,
}

type Histograms = [AtomicHistogram; NUM_HISTOGRAMS];

/// The metrics of one model, looked up once per sequence.
pub(crate) struct ModelMetrics {
    pub(crate) histograms: Histograms,
    /// By [`Ending`]'s label.
    finished: [Counter; 4],
    corrupted: Counter,
}

/// Places in [`HISTOGRAMS`].
pub(crate) const TIME_TO_FIRST_TOKEN: usize = 0;
pub(crate) const INTER_TOKEN_LATENCY: usize = 1;
const TIME_PER_OUTPUT_TOKEN: usize = 2;
const E2E_LATENCY: usize = 3;
const QUEUE_TIME: usize = 4;
const INFERENCE_TIME: usize = 5;
const PREFILL_TIME: usize = 6;
const DECODE_TIME: usize = 7;
const PROMPT_TOKENS: usize = 8;
const GENERATION_TOKENS: usize = 9;
const PARAMS_N: usize = 10;
const PARAMS_MAX_TOKENS: usize = 11;
const PREEMPTIONS: usize = 12;
const NUM_HISTOGRAMS: usize = 13;

const HISTOGRAMS: [(&str, &str, &Scale); NUM_HISTOGRAMS] = [
    (
        "time_to_first_token_seconds",
        "From the request's arrival at the gateway to its first token",
        &SECONDS,
    ),
    ("inter_token_latency_seconds", "Between two tokens of one request", &SECONDS),
    (
        "request_time_per_output_token_seconds",
        "Mean time per token after the first, of one request",
        &SECONDS,
    ),
    ("e2e_request_latency_seconds", "From the request's arrival to its end", &SECONDS),
    ("request_queue_time_seconds", "From the request's arrival to the start of its work", &SECONDS),
    ("request_inference_time_seconds", "From the start of the work to the last token", &SECONDS),
    ("request_prefill_time_seconds", "From the start of the work to the first token", &SECONDS),
    ("request_decode_time_seconds", "From the first token to the last", &SECONDS),
    ("request_prompt_tokens", "Tokens of a request's prompt", &TOKENS),
    ("request_generation_tokens", "Tokens generated for a request", &TOKENS),
    ("request_params_n", "Choices that a request asked for", &SMALL),
    ("request_params_max_tokens", "Tokens that a request asked for at most", &TOKENS),
    ("request_num_preemptions", "How often a request was preempted", &SMALL),
];

const REASONS: [&str; 4] = ["stop", "length", "abort", "error"];

impl RequestFamilies {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let histograms = HISTOGRAMS.map(|(name, help, scale)| {
            let family = Family::new_with_constructor(OfScale(scale));
            registry.register(name, help, family.clone());
            family
        });
        let finished = Family::default();
        registry.register("request_success", "Requests that ended, by reason", finished.clone());
        let corrupted = Family::default();
        registry.register(
            "corrupted_requests",
            "Requests that failed since their logits were not numbers",
            corrupted.clone(),
        );
        Self { histograms, finished, corrupted }
    }

    pub(crate) fn of_model(&self, model_name: &str) -> ModelMetrics {
        let labels = ModelLabels { model_name: model_name.to_owned() };
        let finished = REASONS.map(|finished_reason| {
            let model_name = model_name.to_owned();
            self.finished.get_or_create_owned(&FinishLabels { model_name, finished_reason })
        });
        ModelMetrics {
            histograms: std::array::from_fn(|index| {
                self.histograms[index].get_or_create_owned(&labels)
            }),
            finished,
            corrupted: self.corrupted.get_or_create_owned(&labels),
        }
    }
}

impl ModelMetrics {
    fn count(&self, ending: Ending) {
        let place = match ending {
            Ending::Stop => 0,
            Ending::Length => 1,
            Ending::Abort => 2,
            Ending::Error | Ending::Corrupted => 3,
        };
        self.finished[place].inc();
        if ending == Ending::Corrupted {
            self.corrupted.inc();
        }
    }

    fn seconds(&self, histogram: usize, duration: Duration) {
        self.histograms[histogram].observe_duration(duration);
    }
}

/// Measures one sequence. A token costs a look at the clock and two atomic additions. Dropped before
/// [`RequestRecorder::finished`], it counts as aborted: its client is gone.
pub struct RequestRecorder {
    metrics: Arc<ModelMetrics>,
    arrived: Instant,
    started: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    is_over: bool,
}

impl RequestRecorder {
    pub(crate) fn new(metrics: Arc<ModelMetrics>, arrived: Instant) -> Self {
        Self {
            metrics,
            arrived,
            started: None,
            first_token: None,
            last_token: None,
            is_over: false,
        }
    }

    /// The sequence left the queue. Only the first call counts.
    pub fn started(&mut self) {
        self.started_at(Instant::now());
    }

    /// A token was generated.
    pub fn token(&mut self) {
        self.token_at(Instant::now());
    }

    /// It is over. Latencies and lengths are counted of sequences that were answered; of the others
    /// only how they ended. Only the first call counts.
    pub fn finished(&mut self, finished: Finished) {
        self.finished_at(Instant::now(), finished);
    }

    /// The engine did not take it (it is among the rejections then): it counts nowhere.
    pub fn refused(&mut self) {
        self.is_over = true;
    }

    fn started_at(&mut self, now: Instant) {
        if self.started.is_none() {
            self.started = Some(now);
            self.metrics.seconds(QUEUE_TIME, now.saturating_duration_since(self.arrived));
        }
    }

    fn token_at(&mut self, now: Instant) {
        let (histogram, since) = match self.last_token {
            None => (TIME_TO_FIRST_TOKEN, self.arrived),
            Some(last) => (INTER_TOKEN_LATENCY, last),
        };
        self.metrics.seconds(histogram, now.saturating_duration_since(since));
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
    }

    fn finished_at(&mut self, now: Instant, finished: Finished) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        let Finished { ending, prompt_tokens, generation_tokens, preemptions, n, max_tokens } =
            finished;
        let metrics = &self.metrics;
        metrics.count(ending);
        if !matches!(ending, Ending::Stop | Ending::Length) {
            return;
        }
        metrics.seconds(E2E_LATENCY, now.saturating_duration_since(self.arrived));
        let started = self.started.unwrap_or(self.arrived);
        if let (Some(first), Some(last)) = (self.first_token, self.last_token) {
            metrics.seconds(PREFILL_TIME, first.saturating_duration_since(started));
            let decode = last.saturating_duration_since(first);
            metrics.seconds(DECODE_TIME, decode);
            metrics.seconds(INFERENCE_TIME, last.saturating_duration_since(started));
            if let Some(more) = generation_tokens.checked_sub(1).filter(|more| *more > 0) {
                metrics.seconds(TIME_PER_OUTPUT_TOKEN, decode / more);
            }
        }
        let counts = [
            (PROMPT_TOKENS, Some(prompt_tokens)),
            (GENERATION_TOKENS, Some(generation_tokens)),
            (PARAMS_N, n),
            (PARAMS_MAX_TOKENS, Some(max_tokens)),
            (PREEMPTIONS, preemptions),
        ];
        for (histogram, count) in counts {
            if let Some(count) = count {
                metrics.histograms[histogram].observe(count.into());
            }
        }
    }
}

impl Drop for RequestRecorder {
    fn drop(&mut self) {
        if !self.is_over {
            self.metrics.count(Ending::Abort);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposition::Format;

    fn finished(ending: Ending) -> Finished {
        Finished {
            ending,
            prompt_tokens: 12,
            generation_tokens: 3,
            preemptions: Some(0),
            n: Some(1),
            max_tokens: 64,
        }
    }

    fn metrics() -> (Registry, Arc<ModelMetrics>) {
        let mut registry = Registry::default();
        let families = RequestFamilies::register(&mut registry);
        let model = Arc::new(families.of_model("m"));
        (registry, model)
    }

    fn expect(registry: &Registry, lines: &[&str]) {
        let text = Format::OpenMetrics.encode(&[registry]);
        for line in lines {
            assert!(text.lines().any(|written| written == *line), "{line} not in\n{text}");
        }
    }

    #[test]
    fn times_are_between_the_right_moments() {
        let (registry, model) = metrics();
        let arrived = Instant::now();
        let at = |ms| arrived + Duration::from_millis(ms);
        let mut recorder = RequestRecorder::new(model, arrived);
        recorder.started_at(at(100));
        recorder.started_at(at(900));
        recorder.token_at(at(300));
        recorder.token_at(at(350));
        recorder.token_at(at(500));
        recorder.finished_at(at(600), finished(Ending::Stop));
        drop(recorder);
        expect(
            &registry,
            &[
                r#"time_to_first_token_seconds_sum{model_name="m"} 0.3"#,
                r#"inter_token_latency_seconds_sum{model_name="m"} 0.2"#,
                r#"inter_token_latency_seconds_count{model_name="m"} 2"#,
                r#"request_queue_time_seconds_sum{model_name="m"} 0.1"#,
                r#"request_prefill_time_seconds_sum{model_name="m"} 0.2"#,
                r#"request_decode_time_seconds_sum{model_name="m"} 0.2"#,
                r#"request_inference_time_seconds_sum{model_name="m"} 0.4"#,
                r#"request_time_per_output_token_seconds_sum{model_name="m"} 0.1"#,
                r#"e2e_request_latency_seconds_sum{model_name="m"} 0.6"#,
                r#"request_prompt_tokens_sum{model_name="m"} 12.0"#,
                r#"request_generation_tokens_bucket{le="2.0",model_name="m"} 0"#,
                r#"request_generation_tokens_bucket{le="5.0",model_name="m"} 1"#,
                r#"request_params_max_tokens_sum{model_name="m"} 64.0"#,
                r#"request_params_n_count{model_name="m"} 1"#,
                r#"request_num_preemptions_bucket{le="0.0",model_name="m"} 1"#,
                r#"request_success_total{model_name="m",finished_reason="stop"} 1"#,
                r#"request_success_total{model_name="m",finished_reason="abort"} 0"#,
            ],
        );
    }

    #[test]
    fn every_ending_is_counted_once() {
        let (registry, model) = metrics();
        let recorder = || RequestRecorder::new(Arc::clone(&model), Instant::now());
        drop(recorder());
        recorder().refused();
        for reason in [
            FinishReason::Length,
            FinishReason::Cancelled,
            FinishReason::Deadline,
            FinishReason::Failed(SlotError::NothingAllowed),
            FinishReason::Failed(SlotError::InvalidLogits),
            FinishReason::EngineLost,
        ] {
            let mut recorder = recorder();
            recorder.finished(finished(Ending::from(&reason)));
            recorder.finished(finished(Ending::Stop));
        }
        expect(
            &registry,
            &[
                r#"request_success_total{model_name="m",finished_reason="stop"} 0"#,
                r#"request_success_total{model_name="m",finished_reason="length"} 1"#,
                r#"request_success_total{model_name="m",finished_reason="abort"} 3"#,
                r#"request_success_total{model_name="m",finished_reason="error"} 3"#,
                r#"corrupted_requests_total{model_name="m"} 1"#,
                r#"e2e_request_latency_seconds_count{model_name="m"} 1"#,
            ],
        );
    }
}
