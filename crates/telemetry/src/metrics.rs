//! What one gateway counts, and a scrape of it together with its engines.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::engines::{self, EngineSample};
use crate::exposition::Format;
use crate::recorder::{ModelMetrics, RequestFamilies, RequestRecorder};

/// Before every name.
pub(crate) const PREFIX: &str = "oarlock";
/// Keys that are counted by name; those beyond are counted together as `other`, so that a scrape
/// stays bounded whatever the key file holds.
const MAX_KEYS: usize = 2_000;
const OTHER_KEYS: &str = "other";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct HttpLabels {
    route: &'static str,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KeyLabels {
    key: String,
    kind: &'static str,
}

/// What one gateway counts.
pub struct GatewayMetrics {
    registry: Registry,
    http_requests: Family<HttpLabels, Counter>,
    requests: RequestFamilies,
    key_usage: Family<KeyLabels, Counter>,
    /// Looked up once for each request.
    models: Mutex<BTreeMap<String, Arc<ModelMetrics>>>,
    keys: Mutex<BTreeMap<String, KeyUsage>>,
}

impl Default for GatewayMetrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let http_requests = Family::default();
        registry.register("http_requests", "HTTP requests answered", http_requests.clone());
        let requests = RequestFamilies::register(&mut registry);
        let key_usage = Family::default();
        registry.register("key_usage_tokens", "Tokens by key", key_usage.clone());
        Self {
            registry,
            http_requests,
            requests,
            key_usage,
            models: Mutex::default(),
            keys: Mutex::default(),
        }
    }
}

impl GatewayMetrics {
    /// Counts one answered request.
    pub fn count_http(&self, route: &'static str, status: u16) {
        self.http_requests.get_or_create(&HttpLabels { route, status }).inc();
    }

    /// Begins to measure one sequence of a request that arrived at `arrived`. `model_name` must be
    /// the name of a served model: names become labels.
    pub fn request(&self, model_name: &str, arrived: Instant) -> RequestRecorder {
        RequestRecorder::new(self.model(model_name), arrived)
    }

    fn model(&self, model_name: &str) -> Arc<ModelMetrics> {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(metrics) = models.get(model_name) {
            return Arc::clone(metrics);
        }
        let metrics = Arc::new(self.requests.of_model(model_name));
        models.insert(model_name.to_owned(), Arc::clone(&metrics));
        metrics
    }

    /// The counters of one key, by its name in the key file, never by its secret.
    pub fn key_usage(&self, key: &str) -> KeyUsage {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(usage) = keys.get(key) {
            return usage.clone();
        }
        let name = if keys.len() < MAX_KEYS { key } else { OTHER_KEYS };
        let counter =
            |kind| self.key_usage.get_or_create_owned(&KeyLabels { key: name.to_owned(), kind });
        let usage = KeyUsage { prompt: counter("prompt"), generation: counter("generation") };
        if keys.len() < MAX_KEYS {
            keys.insert(key.to_owned(), usage.clone());
        }
        usage
    }

    /// All metrics as text: the gateway's own, then those of the engines.
    pub fn encode(&self, engines: &[EngineSample], format: Format) -> String {
        format.encode(&[&self.registry, &engines::registry(engines)])
    }
}

/// Tokens that one key has used.
#[derive(Clone, Debug)]
pub struct KeyUsage {
    prompt: Counter,
    generation: Counter,
}

impl KeyUsage {
    /// Adds the tokens of one sequence.
    pub fn add(&self, prompt_tokens: u32, generation_tokens: u32) {
        self.prompt.inc_by(prompt_tokens.into());
        self.generation.inc_by(generation_tokens.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_and_gateway_are_written_together() {
        let metrics = GatewayMetrics::default();
        metrics.count_http("/health", 200);
        for _ in 0..2 {
            metrics.request("m", Instant::now()).token();
        }
        let status = oarlock_types::EngineStatus::default();
        let sample = EngineSample { engine: "e0".into(), model_name: "m".into(), status };
        let text = metrics.encode(&[sample], Format::OpenMetrics);
        for line in [
            r#"oarlock_http_requests_total{route="/health",status="200"} 1"#,
            r#"oarlock_num_requests_running{engine="e0",model_name="m"} 0.0"#,
            r#"oarlock_request_success_total{model_name="m",finished_reason="abort"} 2"#,
            r#"oarlock_time_to_first_token_seconds_bucket{le="1.0",model_name="m"} 2"#,
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
        assert_eq!(text.matches("# EOF").count(), 1);
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn keys_are_counted_by_name_up_to_a_limit() {
        let metrics = GatewayMetrics::default();
        for index in 0..MAX_KEYS + 3 {
            metrics.key_usage(&format!("key-{index}")).add(10, 2);
        }
        metrics.key_usage("key-0").add(1, 1);
        let text = metrics.encode(&[], Format::Classic);
        for line in [
            r#"oarlock_key_usage_tokens_total{key="key-0",kind="prompt"} 11"#,
            r#"oarlock_key_usage_tokens_total{key="key-0",kind="generation"} 3"#,
            r#"oarlock_key_usage_tokens_total{key="other",kind="prompt"} 30"#,
        ] {
            assert!(text.contains(line), "{line} not in the scrape");
        }
        assert_eq!(text.matches("oarlock_key_usage_tokens_total{").count(), 2 * (MAX_KEYS + 1));
    }
}
