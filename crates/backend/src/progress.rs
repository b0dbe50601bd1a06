//! A count of work done, by which others tell a slow device from a stuck one.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Grows while a device computes, also inside of long operations: at least once for every few
/// milliseconds of work. Whoever watches it may be another process; see [`Progress::of`].
#[derive(Clone)]
pub struct Progress(Arc<dyn AsRef<AtomicU64> + Send + Sync>);

struct Own(AtomicU64);

impl AsRef<AtomicU64> for Own {
    fn as_ref(&self) -> &AtomicU64 {
        &self.0
    }
}

impl Progress {
    /// A counter that lies elsewhere, in memory that other processes see, for example.
    pub fn of(counter: Arc<dyn AsRef<AtomicU64> + Send + Sync>) -> Self {
        Self(counter)
    }

    /// Some work is done.
    pub fn advance(&self) {
        (*self.0).as_ref().fetch_add(1, Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        (*self.0).as_ref().load(Ordering::Relaxed)
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self(Arc::new(Own(AtomicU64::new(0))))
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Progress({})", self.get())
    }
}
