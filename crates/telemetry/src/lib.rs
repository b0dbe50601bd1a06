//! Logs and metrics.
//!
//! Metrics of an engine are not kept here: they are written from its last status, so that they
//! cannot disagree with it. What only a gateway sees (HTTP, latencies) is counted here.

mod logging;
mod metrics;

pub use logging::{LoggingError, init_logging};
pub use metrics::{EngineSample, GatewayMetrics, Latency, METRICS_CONTENT_TYPE};
