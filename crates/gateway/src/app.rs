//! What all requests of one gateway share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use oarlock_discovery::View;
use oarlock_telemetry::GatewayMetrics;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::budget::ByteBudget;
use crate::config::GatewayConfig;
use crate::error::ApiError;
use crate::models::Models;

/// Shared state; handlers hold it by [`App`].
pub(crate) struct Shared {
    pub(crate) config: GatewayConfig,
    pub(crate) view: View,
    pub(crate) models: Models,
    pub(crate) metrics: GatewayMetrics,
    /// What the bodies of all requests together may take.
    pub(crate) bodies: ByteBudget,
    draining: AtomicBool,
    in_flight: TaskTracker,
    long_jobs: Arc<Semaphore>,
}

/// A handle to the shared state.
pub(crate) type App = Arc<Shared>;

impl Shared {
    pub(crate) fn new(view: View, config: GatewayConfig) -> App {
        let in_flight = TaskTracker::new();
        in_flight.close();
        Arc::new(Self {
            models: Models::new(view.clone(), config.describe_timeout, config.model_defaults),
            view,
            metrics: GatewayMetrics::default(),
            bodies: ByteBudget::new(config.max_bodies_bytes),
            draining: AtomicBool::new(false),
            in_flight,
            long_jobs: Arc::new(Semaphore::new(config.max_long_jobs.max(1))),
            config,
        })
    }

    /// Counts a request in; the token is held until its answer is complete.
    pub(crate) fn admit(&self) -> Result<TaskTrackerToken, ApiError> {
        // First the token, then the question: a drain that begins in between waits for it.
        let token = self.in_flight.token();
        if self.is_draining() { Err(ApiError::draining()) } else { Ok(token) }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// From now on new requests are refused.
    pub(crate) fn begin_drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Waits until no request is in flight.
    pub(crate) async fn drained(&self) {
        self.in_flight.wait().await;
    }

    /// Runs `job` here if its input of `bytes` is short, else on a thread for long work. A job whose
    /// client is gone still ends before its permit is free again.
    pub(crate) async fn compute<T: Send + 'static>(
        &self,
        bytes: usize,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        if bytes <= self.config.inline_bytes {
            return Ok(job());
        }
        let failed = || ApiError::internal("The server failed on this request");
        let permit = Arc::clone(&self.long_jobs).acquire_owned().await.map_err(|_| failed())?;
        let result = tokio::task::spawn_blocking(move || {
            let result = job();
            drop(permit);
            result
        });
        result.await.map_err(|error| {
            tracing::error!(%error, "long job failed");
            failed()
        })
    }
}
