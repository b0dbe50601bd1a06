//! The `Backend` trait: what a device does for a model, as about twenty serving-level operations on
//! opaque buffers; the scalar float32 oracle of each; and a conformance suite that any backend runs.
//!
//! A backend is enqueue-only: operations are put on its queue in order and cannot fail there; a
//! failed device shows when [`Backend::finish_step`] waits for the queue. Sizes that change from
//! step to step come from the [`StepInput`] given to [`Backend::begin_step`], never as arguments of
//! operations, so that a step can be captured as a graph.
//!
//! Absent on purpose: model families, files, sockets, requests.

pub mod conformance;
mod experts;
pub mod oracle;
mod outcome;
mod progress;
pub mod quant;
mod record;
mod step;
mod traits;
mod weights;

pub use experts::ExpertChecks;
pub use oarlock_sampler::History;
pub use oracle::OracleBackend;
pub use outcome::{OutcomeScratch, row_outcome, slot_error};
pub use progress::Progress;
pub use record::{HistoryRecord, LogitRecord, LogitRecordKind, StepRecord};
pub use step::{BlockTables, ChunkRows, LogitKind, LogitRow, RowResult, StepInput};
pub use traits::{
    Activation, AttentionParams, Backend, BackendError, BackendLimits, ExpertsShape, HostBackend,
    KvCacheShape, MAX_EXPERTS, MAX_TOP_K, RotaryStyle, RowSet,
};
pub use weights::{InnerSplit, WeightKind, WeightView};
