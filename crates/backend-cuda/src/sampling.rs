//! Tokens and scores: the device samples and scores; rows with rules come back to the host.

use std::ops::Range;
use std::sync::Arc;

use oarlock_backend::{
    BackendLimits, LogitRecordKind, OutcomeScratch, RowResult, StepRecord, row_outcome,
};
use oarlock_sampler::random_bits;
use oarlock_types::{RankedToken, SamplingParams, SlotError, TokenId, TokenScore};

use crate::driver::{Context, CudaError, DeviceBuffer, PinnedBuffer, Stream};
use crate::kernels::{
    SAMPLE_DRAW, SAMPLE_GREEDY, SAMPLE_NOTHING, SAMPLE_OK, SAMPLE_SCORE, SampleRequest,
    SampleResult, share,
};

/// Most likely tokens of one row for which there is room from the start.
const USUAL_TOP: usize = 20;

/// A buffer on both sides.
#[derive(Debug)]
struct Mirrored<T: bytemuck::Pod> {
    host: PinnedBuffer<T>,
    device: DeviceBuffer,
}

impl<T: bytemuck::Pod> Mirrored<T> {
    fn new(context: &Arc<Context>, len: usize) -> Result<Self, CudaError> {
        Ok(Self {
            host: PinnedBuffer::new(context, len)?,
            device: DeviceBuffer::new(context, len * size_of::<T>())?,
        })
    }

    fn address(&self, index: usize) -> u64 {
        self.device.address() + (index * size_of::<T>()) as u64
    }
}

/// Requests and results of one step.
#[derive(Debug)]
pub(crate) struct Sampling {
    context: Arc<Context>,
    requests: Mirrored<SampleRequest>,
    results: Mirrored<SampleResult>,
    top_ids: Mirrored<u32>,
    top_logits: Mirrored<f32>,
    /// The most top tokens that a row of this step wants.
    max_top: usize,
    /// Rows with rules: which, and their logits.
    ruled: Vec<(usize, Range<usize>)>,
    ruled_logits: PinnedBuffer<f32>,
    scratch: OutcomeScratch,
}

/// Addresses of a tile's rows, and the distance of two rows' top tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TileAddresses {
    pub(crate) requests: u64,
    pub(crate) results: u64,
    pub(crate) top_ids: u64,
    pub(crate) top_logits: u64,
    pub(crate) max_top: u32,
}

impl Sampling {
    pub(crate) fn new(context: &Arc<Context>, limits: &BackendLimits) -> Result<Self, CudaError> {
        let rows = limits.max_tokens + limits.max_chunks;
        let top = limits.max_chunks * USUAL_TOP;
        Ok(Self {
            context: Arc::clone(context),
            requests: Mirrored::new(context, rows)?,
            results: Mirrored::new(context, rows)?,
            top_ids: Mirrored::new(context, top)?,
            top_logits: Mirrored::new(context, top)?,
            max_top: 0,
            ruled: Vec::new(),
            ruled_logits: PinnedBuffer::new(context, 0)?,
            scratch: OutcomeScratch::default(),
        })
    }

    /// Sends what is wanted of a step's logit rows.
    pub(crate) fn begin_step(
        &mut self,
        stream: &Stream,
        step: &StepRecord,
    ) -> Result<(), CudaError> {
        let rows = step.logit_rows();
        self.ruled.clear();
        self.max_top = 0;
        for (to, wanted) in self.requests.host.iter_mut().zip(rows) {
            *to = request(&wanted.kind);
            self.max_top = self.max_top.max(to.num_top as usize);
        }
        let wanted_top = rows.len() * self.max_top;
        if wanted_top > self.top_ids.host.len() {
            // Rare, and kept from then on. Nothing of the device uses the old ones: the step before is over.
            self.top_ids = Mirrored::new(&self.context, wanted_top)?;
            self.top_logits = Mirrored::new(&self.context, wanted_top)?;
        }
        stream.upload(&self.requests.device, 0, &self.requests.host, 0..rows.len())
    }

    pub(crate) fn tile(&self, first: usize) -> TileAddresses {
        TileAddresses {
            requests: self.requests.address(first),
            results: self.results.address(first),
            top_ids: self.top_ids.address(first * self.max_top),
            top_logits: self.top_logits.address(first * self.max_top),
            max_top: self.max_top as u32,
        }
    }

    /// Copies the logits of a tile's rows that have rules to the host.
    pub(crate) fn fetch_ruled(
        &mut self,
        stream: &Stream,
        step: &StepRecord,
        tile: Range<usize>,
        logits: &DeviceBuffer,
        vocabulary: usize,
    ) -> Result<(), CudaError> {
        for (row, index) in tile.enumerate() {
            if self.requests.host[index].kind != SAMPLE_NOTHING {
                continue;
            }
            let start = self.ruled.last().map_or(0, |(_, range)| range.end);
            let range = start..start + vocabulary;
            if range.end > self.ruled_logits.len() {
                self.grow_ruled(stream, step, range.end)?;
            }
            let offset = row * vocabulary * 4;
            stream.download(&mut self.ruled_logits, range.clone(), logits, offset)?;
            self.ruled.push((index, range));
        }
        Ok(())
    }

    /// Room for all rows with rules of this step, with what has been copied so far.
    fn grow_ruled(
        &mut self,
        stream: &Stream,
        step: &StepRecord,
        least: usize,
    ) -> Result<(), CudaError> {
        let rows = self.requests.host[..step.logit_rows().len()].iter();
        let count = rows.filter(|request| request.kind == SAMPLE_NOTHING).count();
        let done = self.ruled.len().max(1);
        let each = least.div_ceil(done);
        let mut larger = PinnedBuffer::new(&self.context, least.max(count * each))?;
        stream.synchronize()?;
        larger[..self.ruled_logits.len()].copy_from_slice(&self.ruled_logits);
        self.ruled_logits = larger;
        Ok(())
    }

    /// Enqueues the way back of all results.
    pub(crate) fn fetch(&mut self, stream: &Stream, num_rows: usize) -> Result<(), CudaError> {
        stream.download(&mut self.results.host, 0..num_rows, &self.results.device, 0)?;
        let top = 0..num_rows * self.max_top;
        stream.download(&mut self.top_ids.host, top.clone(), &self.top_ids.device, 0)?;
        stream.download(&mut self.top_logits.host, top, &self.top_logits.device, 0)
    }

    /// Results in order, once the stream has come to its end.
    pub(crate) fn collect(&mut self, step: &StepRecord, results: &mut Vec<RowResult>) {
        let rows = step.logit_rows();
        results.extend((0..rows.len()).map(|row| RowResult { outcome: self.outcome(row) }));
        for (index, range) in &self.ruled {
            let logits = &self.ruled_logits[range.clone()];
            results[*index].outcome = row_outcome(logits, step, &rows[*index], &mut self.scratch);
        }
    }

    fn outcome(&self, row: usize) -> Result<(TokenId, Option<TokenScore>), SlotError> {
        let (request, result) = (&self.requests.host[row], &self.results.host[row]);
        if request.kind == SAMPLE_NOTHING {
            // Overwritten by `collect`.
            return Err(SlotError::InvalidLogits);
        }
        if result.status != SAMPLE_OK {
            return Err(SlotError::InvalidLogits);
        }
        let token = TokenId(result.token);
        if request.with_score == 0 {
            return Ok((token, None));
        }
        let log_sum_exp = result.log_sum_exp;
        if !log_sum_exp.is_finite() {
            return Err(SlotError::InvalidLogits);
        }
        let first = row * self.max_top;
        let top = first..first + result.num_top as usize;
        let ids = &self.top_ids.host[top.clone()];
        let ranked = ids
            .iter()
            .zip(&self.top_logits.host[top])
            .map(|(id, logit)| RankedToken { token: TokenId(*id), logprob: logit - log_sum_exp });
        let score = TokenScore {
            logprob: result.logit - log_sum_exp,
            rank: result.rank,
            top: ranked.collect(),
        };
        Ok((token, Some(score)))
    }

    pub(crate) fn bytes(&self) -> u64 {
        let buffers = [
            &self.requests.device,
            &self.results.device,
            &self.top_ids.device,
            &self.top_logits.device,
        ];
        buffers.iter().map(|buffer| buffer.bytes() as u64).sum()
    }
}

/// What the kernel is asked for a row.
fn request(wanted: &LogitRecordKind) -> SampleRequest {
    match wanted {
        LogitRecordKind::Score { token, top } => SampleRequest {
            kind: SAMPLE_SCORE,
            token: token.0,
            with_score: 1,
            num_top: (*top).into(),
            temperature: 1.0,
            ..SampleRequest::default()
        },
        LogitRecordKind::Sample { params, .. } if params.rules.is_some() => {
            SampleRequest { kind: SAMPLE_NOTHING, temperature: 1.0, ..SampleRequest::default() }
        }
        LogitRecordKind::Sample { params, position, .. } => draw(params, *position),
    }
}

fn draw(params: &SamplingParams, position: u32) -> SampleRequest {
    let is_greedy = params.temperature.is_nan() || params.temperature <= 0.0;
    SampleRequest {
        random: random_bits(params, position),
        top_p: share(params.top_p),
        min_p: share(params.min_p),
        temperature: if is_greedy { 1.0 } else { params.temperature },
        top_k: params.top_k,
        kind: if is_greedy { SAMPLE_GREEDY } else { SAMPLE_DRAW },
        token: 0,
        with_score: params.top_logprobs.is_some().into(),
        num_top: params.top_logprobs.unwrap_or(0).into(),
    }
}
