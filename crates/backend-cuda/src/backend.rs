//! The state of the CUDA backend: every operation enqueues one kernel, or two; the end of a step waits.

use std::ops::Range;

use oarlock_backend::{
    AttentionParams, BackendError, BackendLimits, Progress, RowResult, RowSet, StepInput,
    StepRecord,
};

use crate::attention::{Addresses, Plans};
use crate::device::CudaDevice;
use crate::driver::{CudaError, DeviceBuffer, Event, PinnedBuffer, Stream};
use crate::experts::ExpertWorkspace;
use crate::kernels::{Launch, LogitStatsParams, SampleParams, SegmentStats, WorkType, launch};
use crate::sampling::Sampling;
use crate::step::StepWords;
use crate::tensor::CudaTensor;
use crate::upload::Uploader;

/// Operations between two signs of progress.
const OPERATIONS_PER_SIGN: usize = 16;
/// Values of one row at most: a grid has 65,535 blocks in its second dimension, each of 32 outputs.
const MAX_WIDTH: usize = 65_535 * 32;
/// Shared memory of a norm beside its row.
const NORM_BYTES: usize = 64;
/// Logits of one segment of the log-sum-exp.
const SEGMENT: usize = 1024;

/// The CUDA backend.
pub struct CudaBackend {
    pub(crate) device: CudaDevice,
    pub(crate) stream: Stream,
    pub(crate) work: WorkType,
    pub(crate) limits: BackendLimits,
    pub(crate) record: StepRecord,
    pub(crate) words: StepWords,
    plans: Plans,
    sampling: Sampling,
    /// Statistics of a tile's logits; as wide as the widest tensor of gathered rows.
    stats: Option<DeviceBuffer>,
    /// What layers of experts share.
    pub(crate) expert_space: ExpertWorkspace,
    pub(crate) tile: Range<usize>,
    pub(crate) uploader: Uploader,
    progress: Option<Progress>,
    /// Marks every few operations of a step.
    signs: Vec<Event>,
    pub(crate) num_operations: usize,
    /// The step's first error.
    pub(crate) failure: Option<CudaError>,
    pub(crate) memory_bytes: u64,
}

impl CudaBackend {
    /// A backend for these limits that keeps activations in `work`.
    pub fn new(
        device: &CudaDevice,
        work: WorkType,
        limits: BackendLimits,
    ) -> Result<Self, CudaError> {
        let context = &device.context;
        let words = StepWords::new(context, &limits)?;
        let sampling = Sampling::new(context, &limits)?;
        Ok(Self {
            stream: Stream::new(context)?,
            work,
            record: StepRecord::with_limits(&limits),
            memory_bytes: words.bytes() + sampling.bytes(),
            words,
            plans: Plans::default(),
            sampling,
            stats: None,
            expert_space: ExpertWorkspace::default(),
            tile: 0..0,
            uploader: Uploader::new(context)?,
            progress: None,
            signs: Vec::new(),
            num_operations: 0,
            failure: None,
            limits,
            device: device.clone(),
        })
    }

    /// Tells of work done from now on.
    pub fn set_progress(&mut self, progress: Progress) {
        self.progress = Some(progress);
    }

    /// Rows that the host plans launches for: those of the step, or of the tile.
    pub(crate) fn rows(&self, set: RowSet) -> u32 {
        match set {
            RowSet::Tokens => self.record.num_rows() as u32,
            RowSet::Gathered => self.tile.len() as u32,
        }
    }

    /// Where the device finds the same number.
    pub(crate) fn num_rows(&self, set: RowSet) -> u64 {
        match set {
            RowSet::Tokens => self.words.num_rows(),
            RowSet::Gathered => self.words.num_gathered(self.tile.start),
        }
    }

    pub(crate) fn launch<P: bytemuck::Pod>(&mut self, launch: &Launch, params: &P) {
        if launch.grid.contains(&0) {
            return;
        }
        let outcome = self.device.kernels.launch(&self.stream, launch, params);
        self.note(outcome);
        self.sign();
    }

    /// Keeps the first error of a step for its end.
    pub(crate) fn note(&mut self, outcome: Result<(), CudaError>) {
        if let Err(error) = outcome {
            self.failure.get_or_insert(error);
        }
    }

    fn sign(&mut self) {
        // After an error nothing of the step counts.
        if self.failure.is_some() {
            return;
        }
        self.num_operations += 1;
        if !self.num_operations.is_multiple_of(OPERATIONS_PER_SIGN) || self.progress.is_none() {
            return;
        }
        let at = self.num_operations / OPERATIONS_PER_SIGN - 1;
        let outcome = if at == self.signs.len() {
            Event::new(&self.device.context).map(|event| self.signs.push(event))
        } else {
            Ok(())
        };
        let outcome = outcome.and_then(|()| self.signs[at].record(&self.stream));
        self.note(outcome);
    }

    /// Waits for the end of all that is enqueued, telling of progress on the way.
    fn wait(&mut self) -> Result<(), CudaError> {
        if let Some(progress) = &self.progress {
            for sign in &self.signs[..self.num_operations / OPERATIONS_PER_SIGN] {
                sign.synchronize()?;
                progress.advance();
            }
        }
        self.stream.synchronize()
    }

    pub(crate) fn try_begin(&mut self, input: &StepInput<'_>) -> Result<(), CudaError> {
        self.device.context.bind()?;
        self.words.set(&self.stream, input)?;
        self.plans.begin_step();
        self.sampling.begin_step(&self.stream, &self.record)
    }

    pub(crate) fn try_attention(
        &mut self,
        out: &CudaTensor,
        qkv: &CudaTensor,
        cache: u64,
        params: &AttentionParams,
    ) -> Result<(), CudaError> {
        let (at, bytes) = self.plans.prepare(&self.device, (&self.limits, self.work), params)?;
        self.memory_bytes += bytes;
        let slot = self.plans.of(at, &self.stream, &self.words.chunks)?;
        let addresses = Addresses {
            out: out.address(),
            qkv: qkv.address(),
            cache,
            tables: self.words.tables(),
        };
        let launches = slot.launches(self.work, params, addresses);
        for (launch, params) in launches.attention.into_iter().flatten() {
            self.launch(&launch, &params);
        }
        if let Some((launch, params)) = launches.join {
            self.launch(&launch, &params);
        }
        Ok(())
    }

    pub(crate) fn buffer(
        &mut self,
        what: &str,
        bytes: usize,
    ) -> Result<DeviceBuffer, BackendError> {
        let buffer = DeviceBuffer::new(&self.device.context, bytes);
        let buffer = buffer.map_err(|error| backend_error(&error, what, bytes))?;
        self.memory_bytes += buffer.bytes() as u64;
        Ok(buffer)
    }

    pub(crate) fn upload(
        &mut self,
        what: &str,
        bytes: &[u8],
    ) -> Result<DeviceBuffer, BackendError> {
        let buffer = self.uploader.upload(&self.stream, bytes);
        let buffer = buffer.map_err(|error| backend_error(&error, what, bytes.len()))?;
        self.memory_bytes += buffer.bytes() as u64;
        if let Some(progress) = &self.progress {
            progress.advance();
        }
        Ok(buffer)
    }

    /// Sends bytes to a buffer that is there, from `offset` on.
    pub(crate) fn upload_at(
        &mut self,
        what: &str,
        buffer: &DeviceBuffer,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), BackendError> {
        let sent = self.uploader.write(&self.stream, buffer, offset, bytes);
        sent.map_err(|error| backend_error(&error, what, bytes.len()))?;
        if let Some(progress) = &self.progress {
            progress.advance();
        }
        Ok(())
    }

    /// Waits, then reads the first values of a buffer.
    pub(crate) fn download<T: bytemuck::Pod>(
        &mut self,
        buffer: &DeviceBuffer,
        count: usize,
    ) -> Result<Vec<T>, CudaError> {
        let mut host = PinnedBuffer::<T>::new(&self.device.context, count)?;
        self.stream.download(&mut host, 0..count, buffer, 0)?;
        self.stream.synchronize()?;
        Ok(host.to_vec())
    }

    /// Memory for attention of this shape.
    pub(crate) fn plan_attention(&mut self, params: &AttentionParams) -> Result<(), CudaError> {
        let (_, bytes) = self.plans.prepare(&self.device, (&self.limits, self.work), params)?;
        self.memory_bytes += bytes;
        Ok(())
    }

    /// Refuses rows that do not fit into a block's shared memory, where norms keep them.
    pub(crate) fn check_norm(&self, width: usize) -> Result<(), BackendError> {
        let (needed, has) = (width * 4 + NORM_BYTES, self.device.shape().max_shared_bytes);
        if needed > has as usize {
            let name = &self.device.context.info().name;
            let reason = format!(
                "a norm of {width} values needs {needed} bytes of shared memory; {name} has {has}"
            );
            return Err(BackendError::Device(reason));
        }
        Ok(())
    }

    pub(crate) fn new_tensor(
        &mut self,
        rows: RowSet,
        width: usize,
        element: WorkType,
    ) -> Result<CudaTensor, BackendError> {
        let max_rows = match rows {
            RowSet::Tokens => self.limits.max_tokens,
            RowSet::Gathered => self.limits.max_gathered,
        };
        let values = self.buffer("activations", max_rows * width * element.bytes())?;
        Ok(CudaTensor { rows, width, element, values })
    }

    /// Statistics for tiles of logits as wide as this.
    pub(crate) fn stats(&mut self, vocabulary: usize) -> Result<u64, CudaError> {
        let bytes =
            self.limits.max_gathered * vocabulary.div_ceil(SEGMENT) * size_of::<SegmentStats>();
        if self.stats.as_ref().is_none_or(|stats| stats.bytes() < bytes) {
            // The one before may be in use.
            self.stream.synchronize()?;
            self.stats = Some(DeviceBuffer::new(&self.device.context, bytes)?);
            self.memory_bytes += bytes as u64;
        }
        Ok(self.stats.as_ref().map_or(0, DeviceBuffer::address))
    }

    pub(crate) fn try_sample(&mut self, logits: &CudaTensor) -> Result<(), CudaError> {
        let vocabulary = logits.width;
        let (rows, num_rows) = (self.tile.len() as u32, self.num_rows(RowSet::Gathered));
        let stats = self.stats(vocabulary)?;
        let (values, vocabulary_words) = (logits.address(), vocabulary as u32);
        self.launch(
            &launch::logit_stats(rows, vocabulary_words),
            &LogitStatsParams {
                stats,
                logits: values,
                num_rows,
                vocabulary: vocabulary_words,
                padding: 0,
            },
        );
        let tile = self.sampling.tile(self.tile.start);
        self.launch(
            &launch::sample(rows),
            &SampleParams {
                results: tile.results,
                top_ids: tile.top_ids,
                top_logits: tile.top_logits,
                logits: values,
                stats,
                requests: tile.requests,
                num_rows,
                vocabulary: vocabulary_words,
                max_top: tile.max_top,
            },
        );
        let (record, tile) = (&self.record, self.tile.clone());
        self.sampling.fetch_ruled(&self.stream, record, tile, &logits.values, vocabulary)
    }

    pub(crate) fn try_finish(&mut self, results: &mut Vec<RowResult>) -> Result<(), CudaError> {
        let num_rows = self.record.logit_rows().len();
        self.sampling.fetch(&self.stream, num_rows)?;
        self.wait()?;
        self.sampling.collect(&self.record, results);
        Ok(())
    }
}

/// Refuses rows that no grid of a linear layer covers.
pub(crate) fn check_width(width: usize) -> Result<(), BackendError> {
    if width > MAX_WIDTH {
        let reason = format!("rows of {width} values are more than {MAX_WIDTH}");
        return Err(BackendError::Device(reason));
    }
    Ok(())
}

/// What a caller hears of an error while it allocates.
pub(crate) fn backend_error(error: &CudaError, what: &str, bytes: usize) -> BackendError {
    if error.is_out_of_memory() {
        return BackendError::OutOfMemory { what: what.to_owned(), bytes };
    }
    BackendError::Device(error.to_string())
}
