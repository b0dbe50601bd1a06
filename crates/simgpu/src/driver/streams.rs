//! Operations that wait in streams, and events.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::module::LoadedModule;

/// How often an event was recorded, and how many of the records the device has come past.
#[derive(Debug, Default)]
pub(crate) struct EventState {
    recorded: AtomicU64,
    done: AtomicU64,
}

impl EventState {
    /// Another record; its number.
    pub(crate) fn record(&self) -> u64 {
        self.recorded.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The number of the last record; 0 if there was none.
    pub(crate) fn last(&self) -> u64 {
        self.recorded.load(Ordering::SeqCst)
    }

    pub(crate) fn finish(&self, record: u64) {
        self.done.fetch_max(record, Ordering::SeqCst);
    }

    /// Whether the device has come past a record.
    pub(crate) fn is_past(&self, record: u64) -> bool {
        self.done.load(Ordering::SeqCst) >= record
    }
}

/// Bytes of the host that go to a device.
#[derive(Debug)]
pub(crate) enum Source {
    /// Read when the copy's turn comes.
    Pinned { address: u64, bytes: usize },
    /// Pageable memory is read at once.
    Copied(Vec<u8>),
}

/// A kernel's launch.
pub(crate) struct LaunchOperation {
    pub(crate) module: Arc<LoadedModule>,
    pub(crate) entry: String,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic_shared_bytes: u32,
    pub(crate) params: Vec<u8>,
}

/// What a stream does, in order.
pub(crate) enum Operation {
    ToDevice { to: u64, source: Source },
    ToHost { to: u64, from: u64, bytes: usize },
    OnDevice { to: u64, from: u64, bytes: u64 },
    Fill { to: u64, byte: u8, bytes: u64 },
    Launch(LaunchOperation),
    Record { event: Arc<EventState>, record: u64 },
    Wait { event: Arc<EventState>, record: u64 },
}

impl Operation {
    /// Whether it can run now; waits for events of other streams may have to wait.
    pub(crate) fn is_ready(&self) -> bool {
        match self {
            Self::Wait { event, record } => event.is_past(*record),
            _ => true,
        }
    }
}
