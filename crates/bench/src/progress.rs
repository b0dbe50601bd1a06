//! What can be seen of a benchmark while it runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Shows the phase a benchmark is in. Readers may look at any time and never hold it up.
#[derive(Debug, Default)]
pub struct Live {
    current: Mutex<Arc<Progress>>,
}

impl Live {
    /// The current phase; it counts on while it is held.
    pub fn current(&self) -> Arc<Progress> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn begin(&self, progress: &Arc<Progress>) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(progress);
    }
}

/// Counters of one phase.
#[derive(Debug)]
pub struct Progress {
    label: String,
    total: Option<u64>,
    duration: Option<Duration>,
    began: Instant,
    started: AtomicU64,
    ok: AtomicU64,
    failed: AtomicU64,
    outputs: AtomicU64,
    /// Streams that have had output.
    busy_streams: AtomicU64,
    /// How many of them are all.
    num_streams: u64,
    /// When and after how many outputs all streams were busy, and when they no longer were.
    busy_from: OnceLock<(Instant, u64)>,
    busy_to: OnceLock<(Instant, u64)>,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new("looking at the server".to_owned(), None, None, 1)
    }
}

impl Progress {
    pub(crate) fn new(
        label: String,
        total: Option<u64>,
        duration: Option<Duration>,
        num_streams: u64,
    ) -> Self {
        Self {
            label,
            total,
            duration,
            began: Instant::now(),
            started: AtomicU64::new(0),
            ok: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            outputs: AtomicU64::new(0),
            busy_streams: AtomicU64::new(0),
            num_streams,
            busy_from: OnceLock::new(),
            busy_to: OnceLock::new(),
        }
    }

    /// What happens in this phase.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Requests of this phase, where their number is known.
    pub fn total(&self) -> Option<u64> {
        self.total
    }

    /// How long requests are started, where that is limited.
    pub fn duration(&self) -> Option<Duration> {
        self.duration
    }

    /// Since the phase began.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Requests answered.
    pub fn num_ok(&self) -> u64 {
        self.ok.load(Ordering::Relaxed)
    }

    /// Requests failed.
    pub fn num_failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Requests under way.
    pub fn num_running(&self) -> u64 {
        // Read first, so that one that starts in between does not make the difference negative.
        let ended = self.num_ok() + self.num_failed();
        self.started.load(Ordering::Relaxed).saturating_sub(ended)
    }

    /// Events with output so far, over all requests.
    pub fn num_outputs(&self) -> u64 {
        self.outputs.load(Ordering::Relaxed)
    }

    pub(crate) fn start(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn end(&self, is_ok: bool) {
        let counter = if is_ok { &self.ok } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// No further request will start. Only the first call counts.
    pub(crate) fn last_started(&self) {
        let _ = self.busy_to.set((Instant::now(), self.num_outputs()));
    }

    /// Outputs per second while all streams were busy; `None` where that was never so.
    pub(crate) fn steady_outputs_per_s(&self) -> Option<f64> {
        let (from, first) = *self.busy_from.get()?;
        let (to, last) = *self.busy_to.get()?;
        let seconds = to.checked_duration_since(from)?.as_secs_f64();
        (seconds > 0.0 && last > first).then(|| (last - first) as f64 / seconds)
    }
}

/// One stream of requests, which follow one another; it counts into the progress of its phase.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    progress: Arc<Progress>,
    has_had_output: bool,
}

impl Stream {
    pub(crate) fn new(progress: &Arc<Progress>) -> Self {
        Self { progress: Arc::clone(progress), has_had_output: false }
    }

    /// An event with output came.
    pub(crate) fn output(&mut self) {
        let progress = &self.progress;
        let outputs = progress.outputs.fetch_add(1, Ordering::Relaxed) + 1;
        if std::mem::replace(&mut self.has_had_output, true) {
            return;
        }
        if progress.busy_streams.fetch_add(1, Ordering::Relaxed) + 1 == progress.num_streams {
            // Set once: the count reaches a number once.
            let _ = progress.busy_from.set((Instant::now(), outputs));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_streams_are_busy_once_each_has_had_output() {
        let progress = Arc::new(Progress::new(String::new(), None, None, 2));
        let (mut fast, mut slow) = (Stream::new(&progress), Stream::new(&progress));
        // However many short answers the fast one has had.
        for _ in 0..5 {
            fast.output();
        }
        assert_eq!(progress.busy_from.get(), None);
        slow.output();
        let (from, outputs) = *progress.busy_from.get().expect("both are busy");
        assert_eq!((outputs, progress.num_outputs()), (6, 6));
        slow.output();
        assert_eq!(progress.busy_from.get(), Some(&(from, 6)));
        assert_eq!(progress.steady_outputs_per_s(), None, "requests are still started");
    }
}
