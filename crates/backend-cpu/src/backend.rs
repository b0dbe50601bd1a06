//! The state of the CPU backend, and how work is given to its threads.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use oarlock_backend::{
    BackendError, BackendLimits, HostBackend, Progress, RowResult, RowSet, StepRecord,
};

use crate::attention::PartialSums;
use crate::buffer::SharedSlice;
use crate::experts::ExpertWorkspace;
use crate::isa::Isa;
use crate::linear::ActivationBuffers;
use crate::sample::SampleScratch;
use crate::tensor::{CpuTensor, row_of};
use crate::threads::{ThreadPool, panic_message, quarter_share};
use crate::{Dtype, InstructionSet};

/// Values below which a row-wise operation runs on the caller's thread alone.
const ALONE: usize = 8 * 1024;

/// How the backend uses the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuConfig {
    /// Threads, the caller's included; at least 1.
    pub threads: usize,
    /// `None` takes the fastest there is.
    pub instruction_set: Option<InstructionSet>,
    /// What linear layers and the cache compute with.
    pub dtype: Dtype,
}

impl Default for CpuConfig {
    /// One thread, the fastest instructions, weights as they are.
    fn default() -> Self {
        Self { threads: 1, instruction_set: None, dtype: Dtype::Auto }
    }
}

/// The CPU as a device.
#[derive(Debug)]
pub struct CpuBackend {
    pub(crate) isa: Isa,
    pub(crate) dtype: Dtype,
    pub(crate) limits: BackendLimits,
    pub(crate) pool: ThreadPool,
    pub(crate) activations: ActivationBuffers,
    pub(crate) partials: PartialSums,
    pub(crate) experts: ExpertWorkspace,
    pub(crate) step: StepRecord,
    pub(crate) tile: Range<usize>,
    pub(crate) results: Vec<RowResult>,
    pub(crate) scratch: Vec<SampleScratch>,
    /// First failure of the step.
    pub(crate) failure: Option<String>,
    pub(crate) memory_bytes: u64,
}

impl CpuBackend {
    /// A backend with its own threads and workspace.
    pub fn new(config: CpuConfig, limits: BackendLimits) -> Result<Self, BackendError> {
        let set = config.instruction_set.unwrap_or_else(InstructionSet::detect);
        let isa = Isa::new(set).ok_or_else(|| {
            BackendError::Device(format!("this machine has no {set} instructions"))
        })?;
        if config.threads == 0 {
            return Err(BackendError::Device("at least one thread is needed".to_owned()));
        }
        let pool = ThreadPool::new(config.threads)
            .map_err(|error| BackendError::Device(format!("cannot start threads: {error}")))?;
        let scratch = std::iter::repeat_with(SampleScratch::default).take(config.threads).collect();
        Ok(Self {
            isa,
            dtype: config.dtype,
            limits,
            pool,
            activations: ActivationBuffers::new(limits.max_tokens.max(limits.max_gathered))?,
            partials: PartialSums::new(limits.max_positions),
            experts: ExpertWorkspace::new(&limits, config.threads)?,
            step: StepRecord::with_limits(&limits),
            tile: 0..0,
            results: Vec::with_capacity(limits.max_tokens + limits.max_chunks),
            scratch,
            failure: None,
            memory_bytes: 0,
        })
    }

    /// Threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// From now on work advances this count, also inside of long operations. The first call counts.
    pub fn set_progress(&mut self, progress: Progress) {
        self.pool.set_progress(progress);
    }

    pub(crate) fn rows(&self, set: RowSet) -> usize {
        match set {
            RowSet::Tokens => self.step.num_rows(),
            RowSet::Gathered => self.tile.len(),
        }
    }

    /// Remembers the first failure of a step.
    pub(crate) fn check(&mut self, result: Result<(), String>) {
        if let Err(message) = result {
            self.failure.get_or_insert(message);
        }
    }

    /// Runs `job(row)` for every row, on all threads where `values` are many.
    pub(crate) fn for_rows(&mut self, rows: usize, values: usize, job: &(dyn Fn(usize) + Sync)) {
        if values <= ALONE {
            let result = catch_unwind(AssertUnwindSafe(|| (0..rows).for_each(job)));
            self.check(result.map_err(|panic| panic_message(&*panic)));
            return;
        }
        let threads = self.pool.threads();
        let result =
            self.pool.run(rows, quarter_share(rows, threads), &|_, rows| rows.for_each(job));
        self.check(result);
    }

    /// Changes each of the step's rows of a tensor.
    pub(crate) fn in_place(
        &mut self,
        tensor: &mut CpuTensor,
        change: &(dyn Fn(&mut [f32]) + Sync),
    ) {
        let (rows, width) = (self.rows(tensor.rows), tensor.width);
        let shared = SharedSlice::new(&mut tensor.values);
        self.for_rows(rows, rows * width, &|row| {
            // SAFETY: each row is changed by one thread.
            change(unsafe { row_of(&shared, width, row) });
        });
    }
}

impl HostBackend for CpuBackend {
    fn host_rows<'t>(&self, tensor: &'t CpuTensor) -> &'t [f32] {
        &tensor.values[..self.rows(tensor.rows) * tensor.width]
    }

    fn host_rows_mut<'t>(&self, tensor: &'t mut CpuTensor) -> &'t mut [f32] {
        let len = self.rows(tensor.rows) * tensor.width;
        &mut tensor.values[..len]
    }
}
