//! Metrics written from the engines' last statuses.

use std::fmt;
use std::sync::atomic::AtomicU64;

use oarlock_types::{
    BLOCK_TOKENS, EngineState, EngineStatus, STEP_TIME_BOUNDS_US, STEP_TOKENS_BOUNDS,
};
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Metric, Registry};

use crate::histogram::EngineHistogram;
use crate::metrics::PREFIX;

/// The last status of one engine.
pub struct EngineSample {
    /// The engine's unique name.
    pub engine: String,
    /// The model it serves.
    pub model_name: String,
    /// Its status.
    pub status: EngineStatus,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct EngineLabels {
    engine: String,
    model_name: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ReasonLabels {
    engine: String,
    model_name: String,
    reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct SourceLabels {
    engine: String,
    model_name: String,
    source: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CacheLabels {
    engine: String,
    model_name: String,
    block_size: u64,
    num_blocks: u32,
    enable_prefix_caching: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WorkerLabels {
    engine: String,
    rank: u64,
    pid: u32,
}

type FloatGauge = Gauge<f64, AtomicU64>;
/// A metric's name and what it says.
type About = (&'static str, &'static str);

impl EngineSample {
    fn labels(&self) -> EngineLabels {
        EngineLabels { engine: self.engine.clone(), model_name: self.model_name.clone() }
    }
}

/// All metrics of all engines.
pub(crate) fn registry(engines: &[EngineSample]) -> Registry {
    let mut registry = Registry::with_prefix(PREFIX);
    register_gauges(&mut registry, engines);
    register_counters(&mut registry, engines);
    register_parts(&mut registry, engines);
    register_infos(&mut registry, engines);
    register_histograms(&mut registry, engines);
    registry
}

/// Registers one family with a value for each engine.
fn register_each<M: Metric + Default + Clone>(
    registry: &mut Registry,
    engines: &[EngineSample],
    (name, help): About,
    set: impl Fn(&M, &EngineStatus),
) where
    Family<EngineLabels, M>: Metric,
{
    let family = Family::<EngineLabels, M>::default();
    for sample in engines {
        set(&family.get_or_create_owned(&sample.labels()), &sample.status);
    }
    registry.register(name, help, family);
}

fn register_gauges(registry: &mut Registry, engines: &[EngineSample]) {
    type Read = fn(&EngineStatus) -> f64;
    let gauges: [(&str, &str, Read); 8] = [
        ("num_requests_running", "Requests that run", |status| status.stats.num_running.into()),
        ("num_requests_waiting", "Requests that wait", |status| status.stats.num_waiting.into()),
        ("num_tokens_waiting", "Tokens that waiting requests have to compute first", |status| {
            status.stats.waiting_tokens as f64
        }),
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
    let waiting = Family::<ReasonLabels, Gauge>::default();
    for sample in engines {
        let EngineLabels { engine, model_name } = sample.labels();
        // Requests wait for slots and blocks, and for nothing else.
        let labels = ReasonLabels { engine, model_name, reason: "capacity" };
        waiting.get_or_create(&labels).set(sample.status.stats.num_waiting.into());
    }
    registry.register("num_requests_waiting_by_reason", "Requests that wait, by reason", waiting);
}

fn register_counters(registry: &mut Registry, engines: &[EngineSample]) {
    type Read = fn(&EngineStatus) -> u64;
    let counters: [(&str, &str, Read); 9] = [
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
        ("prompt_tokens_cached", "Prompt tokens taken from the prefix cache", |status| {
            status.stats.prefix_cache_hits
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

/// Counters that are split by a further label.
fn register_parts(registry: &mut Registry, engines: &[EngineSample]) {
    let sources = Family::<SourceLabels, Counter>::default();
    let rejections = Family::<ReasonLabels, Counter>::default();
    for sample in engines {
        let stats = &sample.status.stats;
        let cached = stats.prefix_cache_hits;
        for (source, count) in [
            ("local_compute", stats.prompt_tokens.saturating_sub(cached)),
            ("local_cache_hit", cached),
        ] {
            let EngineLabels { engine, model_name } = sample.labels();
            sources.get_or_create(&SourceLabels { engine, model_name, source }).inc_by(count);
        }
        let full = stats.rejected_queue_full;
        for (reason, count) in
            [("queue_full", full), ("other", stats.rejected.saturating_sub(full))]
        {
            let EngineLabels { engine, model_name } = sample.labels();
            rejections.get_or_create(&ReasonLabels { engine, model_name, reason }).inc_by(count);
        }
    }
    registry.register(
        "prompt_tokens_by_source",
        "Prompt tokens, by where their keys and values came from",
        sources,
    );
    registry.register(
        "admission_rejections",
        "Requests that the engine refused, by reason",
        rejections,
    );
}

/// Facts, as labels of a gauge that is 1.
fn register_infos(registry: &mut Registry, engines: &[EngineSample]) {
    let caches = Family::<CacheLabels, Gauge>::default();
    let workers = Family::<WorkerLabels, Gauge>::default();
    for sample in engines {
        let num_blocks = sample.status.stats.blocks_total;
        // Not known before the weights are loaded.
        if num_blocks > 0 {
            let EngineLabels { engine, model_name } = sample.labels();
            let labels = CacheLabels {
                engine,
                model_name,
                block_size: BLOCK_TOKENS as u64,
                num_blocks,
                enable_prefix_caching: "true",
            };
            caches.get_or_create(&labels).set(1);
        }
        for (rank, pid) in (0..).zip(&sample.status.worker_pids) {
            let labels = WorkerLabels { engine: sample.engine.clone(), rank, pid: *pid };
            workers.get_or_create(&labels).set(1);
        }
    }
    registry.register("cache_config_info", "How the KV cache is laid out", caches);
    registry.register("worker_info", "Worker processes that are up", workers);
}

/// One histogram of every engine. It never changes: a scrape writes it and forgets it.
#[derive(Debug)]
struct EngineHistograms(Vec<(EngineLabels, EngineHistogram)>);

impl EncodeMetric for EngineHistograms {
    fn encode(&self, mut encoder: MetricEncoder) -> fmt::Result {
        let mut entries = self.0.iter();
        entries.try_for_each(|(labels, histogram)| histogram.encode(encoder.encode_family(labels)?))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

fn register_histograms(registry: &mut Registry, engines: &[EngineSample]) {
    type Read = fn(&EngineStatus) -> EngineHistogram;
    let histograms: [(&str, &str, Read); 2] = [
        ("step_time_seconds", "Time of a step on the workers", |status| EngineHistogram {
            counted: status.step_time_us,
            bounds: &STEP_TIME_BOUNDS_US,
            units: 1e6,
        }),
        ("iteration_tokens_total", "Tokens computed in a step", |status| EngineHistogram {
            counted: status.step_tokens,
            bounds: &STEP_TOKENS_BOUNDS,
            units: 1.0,
        }),
    ];
    for (name, help, read) in histograms {
        let entries = engines.iter().map(|sample| (sample.labels(), read(&sample.status)));
        registry.register(name, help, EngineHistograms(entries.collect()));
    }
}

#[cfg(test)]
mod tests {
    use oarlock_types::{EngineStats, Histogram};

    use super::*;
    use crate::exposition::Format;

    fn sample(engine: &str) -> EngineSample {
        let stats = EngineStats {
            num_running: 3,
            num_waiting: 2,
            waiting_tokens: 70,
            blocks_total: 8,
            blocks_in_use: 2,
            prompt_tokens: 100,
            prefix_cache_hits: 30,
            generation_tokens: 7,
            rejected: 5,
            rejected_queue_full: 4,
            ..EngineStats::default()
        };
        let mut step_time_us = Histogram::default();
        step_time_us.observe(&STEP_TIME_BOUNDS_US, 2_000);
        let mut step_tokens = Histogram::default();
        step_tokens.observe(&STEP_TOKENS_BOUNDS, 16);
        let status = EngineStatus {
            state: EngineState::Ready,
            worker_pids: vec![42],
            stats,
            step_time_us,
            step_tokens,
            ..EngineStatus::default()
        };
        EngineSample { engine: engine.into(), model_name: "m".into(), status }
    }

    #[test]
    fn a_status_becomes_metrics() {
        let text = Format::Classic.encode(&[&registry(&[sample("e0"), sample("e1")])]);
        for line in [
            r#"oarlock_num_requests_running{engine="e0",model_name="m"} 3.0"#,
            r#"oarlock_num_requests_waiting_by_reason{engine="e0",model_name="m",reason="capacity"} 2"#,
            r#"oarlock_num_tokens_waiting{engine="e0",model_name="m"} 70.0"#,
            r#"oarlock_kv_cache_usage_perc{engine="e0",model_name="m"} 0.25"#,
            r#"oarlock_cache_config_info{engine="e1",model_name="m",block_size="16",num_blocks="8",enable_prefix_caching="true"} 1"#,
            r#"oarlock_generation_tokens_total{engine="e0",model_name="m"} 7"#,
            r#"oarlock_prompt_tokens_cached_total{engine="e0",model_name="m"} 30"#,
            r#"oarlock_prompt_tokens_by_source_total{engine="e0",model_name="m",source="local_compute"} 70"#,
            r#"oarlock_prompt_tokens_by_source_total{engine="e0",model_name="m",source="local_cache_hit"} 30"#,
            r#"oarlock_admission_rejections_total{engine="e0",model_name="m",reason="queue_full"} 4"#,
            r#"oarlock_admission_rejections_total{engine="e0",model_name="m",reason="other"} 1"#,
            r#"oarlock_worker_info{engine="e0",rank="0",pid="42"} 1"#,
            r#"oarlock_step_time_seconds_sum{engine="e0",model_name="m"} 0.002"#,
            r#"oarlock_step_time_seconds_bucket{le="0.001",engine="e1",model_name="m"} 0"#,
            r#"oarlock_step_time_seconds_bucket{le="0.0025",engine="e1",model_name="m"} 1"#,
            r#"oarlock_iteration_tokens_total_count{engine="e1",model_name="m"} 1"#,
            r#"oarlock_iteration_tokens_total_sum{engine="e1",model_name="m"} 16.0"#,
        ] {
            assert!(text.lines().any(|written| written == line), "{line} not in\n{text}");
        }
    }

    #[test]
    fn an_engine_that_loads_has_no_cache_yet() {
        let status = EngineStatus::default();
        let sample = EngineSample { engine: "e0".into(), model_name: "m".into(), status };
        let text = Format::Classic.encode(&[&registry(&[sample])]);
        assert!(text.contains(r#"oarlock_engine_ready{engine="e0",model_name="m"} 0.0"#), "{text}");
        assert!(!text.contains("cache_config_info{"), "{text}");
    }
}
