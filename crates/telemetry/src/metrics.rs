//! Metrics in Prometheus' text format, with vLLM's names and meanings under `oarlock_`.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use oarlock_types::{EngineState, EngineStatus};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

/// The content type of [`GatewayMetrics::encode`].
pub const METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Before every name.
const PREFIX: &str = "oarlock";
/// Upper bounds of the buckets of latencies, in seconds.
const LATENCY_SECONDS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct HttpLabels {
    route: &'static str,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ModelLabels {
    model_name: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct EngineLabels {
    engine: String,
    model_name: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FinishLabels {
    engine: String,
    model_name: String,
    finished_reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WorkerLabels {
    engine: String,
    rank: u64,
    pid: u32,
}

type Latencies = Family<ModelLabels, Histogram, fn() -> Histogram>;
type FloatGauge = Gauge<f64, AtomicU64>;

/// What one gateway counts.
pub struct GatewayMetrics {
    registry: Registry,
    http_requests: Family<HttpLabels, Counter>,
    time_to_first_token: Latencies,
    inter_token_latency: Latencies,
}

/// The last status of one engine.
pub struct EngineSample {
    /// The engine's unique name.
    pub engine: String,
    /// The model it serves.
    pub model_name: String,
    /// Its status.
    pub status: EngineStatus,
}

fn latencies() -> Histogram {
    Histogram::new(LATENCY_SECONDS)
}

impl Default for GatewayMetrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let http_requests = Family::default();
        registry.register("http_requests", "HTTP requests answered", http_requests.clone());
        let time_to_first_token = Latencies::new_with_constructor(latencies);
        registry.register(
            "time_to_first_token_seconds",
            "From the request's arrival at the gateway to its first token",
            time_to_first_token.clone(),
        );
        let inter_token_latency = Latencies::new_with_constructor(latencies);
        registry.register(
            "inter_token_latency_seconds",
            "Between two tokens of one request",
            inter_token_latency.clone(),
        );
        Self { registry, http_requests, time_to_first_token, inter_token_latency }
    }
}

impl GatewayMetrics {
    /// Counts one answered request.
    pub fn count_http(&self, route: &'static str, status: u16) {
        self.http_requests.get_or_create(&HttpLabels { route, status }).inc();
    }

    /// The two histograms of one model, to be kept for the length of a request: no lookup per token.
    pub fn latencies_of(&self, model_name: &str) -> (Latency, Latency) {
        let labels = ModelLabels { model_name: model_name.to_owned() };
        (
            Latency(self.time_to_first_token.get_or_create_owned(&labels)),
            Latency(self.inter_token_latency.get_or_create_owned(&labels)),
        )
    }

    /// All metrics as text: the gateway's own, then those of the engines.
    pub fn encode(&self, engines: &[EngineSample]) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode_registry(&mut text, &self.registry);
        let _ = encode_registry(&mut text, &engine_registry(engines));
        let _ = encode_eof(&mut text);
        text
    }
}

/// One histogram of durations.
#[derive(Clone, Debug)]
pub struct Latency(Histogram);

impl Latency {
    /// Adds one duration.
    pub fn observe(&self, duration: Duration) {
        self.0.observe(duration.as_secs_f64());
    }
}

/// Metrics written from the engines' last statuses.
fn engine_registry(engines: &[EngineSample]) -> Registry {
    let mut registry = Registry::with_prefix(PREFIX);
    register_gauges(&mut registry, engines);
    register_counters(&mut registry, engines);
    let finished = Family::<FinishLabels, Counter>::default();
    let workers = Family::<WorkerLabels, Gauge>::default();
    for sample in engines {
        let stats = &sample.status.stats;
        for (finished_reason, count) in [
            ("stop", stats.finished_stop),
            ("length", stats.finished_length),
            ("abort", stats.finished_cancelled),
            ("error", stats.finished_failed),
        ] {
            let (engine, model_name) = (sample.engine.clone(), sample.model_name.clone());
            let labels = FinishLabels { engine, model_name, finished_reason };
            finished.get_or_create(&labels).inc_by(count);
        }
        for (rank, pid) in (0..).zip(&sample.status.worker_pids) {
            let labels = WorkerLabels { engine: sample.engine.clone(), rank, pid: *pid };
            workers.get_or_create(&labels).set(1);
        }
    }
    registry.register("request_success", "Requests that ended, by reason", finished);
    registry.register("worker_info", "Worker processes that are up", workers);
    registry
}

/// Registers one family with a value for each engine.
fn register_each<M: Metric + Default + Clone>(
    registry: &mut Registry,
    engines: &[EngineSample],
    (name, help): (&str, &str),
    set: impl Fn(&M, &EngineStatus),
) where
    Family<EngineLabels, M>: Metric,
{
    let family = Family::<EngineLabels, M>::default();
    for sample in engines {
        let (engine, model_name) = (sample.engine.clone(), sample.model_name.clone());
        set(&family.get_or_create_owned(&EngineLabels { engine, model_name }), &sample.status);
    }
    registry.register(name, help, family);
}

fn register_gauges(registry: &mut Registry, engines: &[EngineSample]) {
    type Read = fn(&EngineStatus) -> f64;
    let gauges: [(&str, &str, Read); 7] = [
        ("num_requests_running", "Requests that run", |status| status.stats.num_running.into()),
        ("num_requests_waiting", "Requests that wait", |status| status.stats.num_waiting.into()),
        ("kv_cache_usage_perc", "Share of the KV cache in use; 1 is all of it", |status| {
            f64::from(status.stats.blocks_in_use) / f64::from(status.stats.blocks_total.max(1))
        }),
        ("kv_blocks_total", "Blocks of the KV cache", |status| status.stats.blocks_total.into()),
        ("kv_blocks_in_use", "Blocks that running requests hold", |status| {
            status.stats.blocks_in_use.into()
        }),
        ("kv_blocks_cached", "Blocks that hold cached prefixes only", |status| {
            status.stats.blocks_cached.into()
        }),
        ("engine_ready", "Whether the engine computes requests", |status| {
            if status.state == EngineState::Ready { 1.0 } else { 0.0 }
        }),
    ];
    for (name, help, read) in gauges {
        register_each(registry, engines, (name, help), |gauge: &FloatGauge, status| {
            gauge.set(read(status));
        });
    }
}

fn register_counters(registry: &mut Registry, engines: &[EngineSample]) {
    type Read = fn(&EngineStatus) -> u64;
    let counters: [(&str, &str, Read); 8] = [
        ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache", |status| {
            status.stats.prefix_cache_queries
        }),
        ("prefix_cache_hits", "Prompt tokens found in the prefix cache", |status| {
            status.stats.prefix_cache_hits
        }),
        ("num_preemptions", "Requests that lost their blocks and were computed again", |status| {
            status.stats.preemptions
        }),
        ("prompt_tokens", "Prompt tokens computed or taken from the cache", |status| {
            status.stats.prompt_tokens
        }),
        ("generation_tokens", "Tokens generated", |status| status.stats.generation_tokens),
        ("worker_restarts", "Times that the group of workers was started again", |status| {
            status.stats.worker_restarts
        }),
        ("steps", "Steps of the engine", |status| status.stats.steps),
        ("requests_rejected", "Requests that the engine refused", |status| status.stats.rejected),
    ];
    for (name, help, read) in counters {
        register_each(registry, engines, (name, help), |counter: &Counter, status| {
            counter.inc_by(read(status));
        });
    }
}

#[cfg(test)]
mod tests {
    use oarlock_types::EngineStats;

    use super::*;

    #[test]
    fn engines_and_gateway_are_written_together() {
        let metrics = GatewayMetrics::default();
        metrics.count_http("/health", 200);
        let (first, _) = metrics.latencies_of("m");
        first.observe(Duration::from_millis(20));
        let stats = EngineStats {
            num_running: 3,
            blocks_total: 8,
            blocks_in_use: 2,
            generation_tokens: 7,
            finished_stop: 5,
            ..EngineStats::default()
        };
        let status = EngineStatus {
            state: EngineState::Ready,
            worker_pids: vec![42],
            stats,
            ..EngineStatus::default()
        };
        let sample = EngineSample { engine: "e0".into(), model_name: "m".into(), status };
        let text = metrics.encode(&[sample]);
        for line in [
            r#"oarlock_http_requests_total{route="/health",status="200"} 1"#,
            r#"oarlock_num_requests_running{engine="e0",model_name="m"} 3.0"#,
            r#"oarlock_kv_cache_usage_perc{engine="e0",model_name="m"} 0.25"#,
            r#"oarlock_generation_tokens_total{engine="e0",model_name="m"} 7"#,
            r#"oarlock_request_success_total{engine="e0",model_name="m",finished_reason="stop"} 5"#,
            r#"oarlock_worker_info{engine="e0",rank="0",pid="42"} 1"#,
            r#"oarlock_time_to_first_token_seconds_bucket{le="0.025",model_name="m"} 1"#,
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
        assert_eq!(text.matches("# EOF").count(), 1);
        assert!(text.ends_with("# EOF\n"));
    }
}
