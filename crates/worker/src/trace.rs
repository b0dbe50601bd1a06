//! Writes checksums of what a rank computes, a line for each: `KEY POSITION LAYER OPERATION PART CHECKSUM`.
//!
//! The key is a hash of the sequence's tokens up to the position: the same computation has the same key
//! in every run, whatever its slot, its batch and its chunks. Slow, and meant to be.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oarlock_model::{TraceRecord, Tracer};
use oarlock_types::TokenId;

/// One rank's file. Clones write to the same.
#[derive(Clone)]
pub struct TraceFile(Arc<Mutex<Inner>>);

struct Inner {
    out: BufWriter<File>,
    /// Of each row of the step.
    rows: Vec<Row>,
}

struct Row {
    key: u64,
    position: usize,
}

impl TraceFile {
    /// Appends to the file, which an earlier life of the group may have begun.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        Ok(Self(Arc::new(Mutex::new(Inner { out: BufWriter::new(file), rows: Vec::new() }))))
    }

    /// A step begins.
    pub(crate) fn begin(&self) {
        self.lock().rows.clear();
    }

    /// The next rows of the step are these positions of a sequence.
    pub(crate) fn rows(&self, tokens: &[TokenId], positions: std::ops::Range<usize>) {
        let mut inner = self.lock();
        let mut key = 0xcbf2_9ce4_8422_2325_u64;
        for (position, token) in tokens[..positions.end].iter().enumerate() {
            key = (key ^ u64::from(token.0)).wrapping_mul(0x0000_0100_0000_01b3);
            if position >= positions.start {
                inner.rows.push(Row { key, position });
            }
        }
    }

    /// A step is over. What cannot be written is lost: a trace must not end the worker.
    pub(crate) fn end(&self) {
        drop(self.lock().out.flush());
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tracer for TraceFile {
    fn record(&mut self, record: TraceRecord) {
        let mut inner = self.lock();
        let Inner { out, rows } = &mut *inner;
        let Some(row) = rows.get(record.row as usize) else { return };
        let layer = record.layer.map_or_else(|| "-".to_owned(), |layer| layer.to_string());
        let TraceRecord { operation, part, checksum, .. } = record;
        let Row { key, position } = row;
        drop(writeln!(out, "{key:016x} {position} {layer} {operation} {part} {checksum:016x}"));
    }
}
