//! Logs and metrics.
//!
//! Metrics of an engine are not kept here: they are written from its last status, so that they
//! cannot disagree with it. What only a gateway sees (HTTP, latencies) is counted here.

mod engines;
mod exposition;
mod histogram;
mod logging;
mod metrics;
mod recorder;

pub use engines::EngineSample;
pub use exposition::Format;
pub use logging::{LoggingError, init_logging};
pub use metrics::{GatewayMetrics, KeyUsage};
pub use recorder::{Ending, Finished, RequestRecorder};
