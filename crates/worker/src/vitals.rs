//! What a worker's heartbeats say: how far it has come, and whom it waits for.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use oarlock_backend::Progress;
use oarlock_types::{Heartbeat, StepId};

/// Who this rank waits for.
type Waiting = Arc<dyn Fn() -> Option<u32> + Send + Sync>;

/// Shared by the thread that works and the one that sends heartbeats.
pub(crate) struct Vitals {
    sources: Mutex<(Progress, Waiting)>,
    step: Arc<AtomicU64>,
}

impl Default for Vitals {
    fn default() -> Self {
        let nobody: Waiting = Arc::new(|| None);
        Self { sources: Mutex::new((Progress::default(), nobody)), step: Arc::default() }
    }
}

impl Vitals {
    /// What work advances.
    pub(crate) fn progress(&self) -> Progress {
        self.lock().0.clone()
    }

    /// From now on work advances another count: the one that its peers see.
    pub(crate) fn follow(&self, progress: Progress, waiting: Waiting) {
        *self.lock() = (progress, waiting);
    }

    /// Where the number of the step is kept.
    pub(crate) fn step(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.step)
    }

    /// What a heartbeat says now.
    pub(crate) fn heartbeat(&self) -> Heartbeat {
        let (progress, waiting) = self.lock().clone();
        Heartbeat {
            progress: progress.get(),
            waiting_for: waiting(),
            step: StepId(self.step.load(Ordering::Relaxed)),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (Progress, Waiting)> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
