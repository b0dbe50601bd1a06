//! The oracle: every operation of [`Backend`] in scalar float32, with float32 KV, in the plainest way.
//! Never optimized; weights stay as they are stored and are decoded row by row.

mod attention;
mod experts;
mod ops;
mod stored;

pub use experts::{OracleExperts, OracleRouting};
pub use stored::{StoredMatrix, check_parts, check_view};

use std::ops::Range;

use half::f16;

use crate::experts::ExpertChecks;
use crate::outcome::{OutcomeScratch, row_outcome};
use crate::record::StepRecord;
use crate::{
    Activation, AttentionParams, Backend, BackendError, BackendLimits, ExpertsShape, HostBackend,
    InnerSplit, KvCacheShape, RotaryStyle, RowResult, RowSet, StepInput, WeightView,
};

/// The scalar reference.
#[derive(Debug)]
pub struct OracleBackend {
    limits: BackendLimits,
    step: StepRecord,
    tile: Range<usize>,
    results: Vec<RowResult>,
    scratch: OutcomeScratch,
    memory_bytes: u64,
}

/// Activations, `[rows, width]`.
#[derive(Debug)]
pub struct OracleTensor {
    rows: RowSet,
    width: usize,
    values: Vec<f32>,
}

/// Stored rows of one or several parts.
#[derive(Debug)]
pub struct OracleWeight {
    parts: Vec<StoredMatrix>,
    columns: usize,
    segments: usize,
}

/// An embedding table, or a part of one.
#[derive(Debug)]
pub struct OracleTable {
    rows: StoredMatrix,
    first_token: usize,
}

/// `[position, pair]` cosines and sines.
#[derive(Debug)]
pub struct OracleRotary {
    style: RotaryStyle,
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

/// `[layer, block, token, key | value, head, element]`.
#[derive(Debug)]
pub struct OracleKvCache {
    shape: KvCacheShape,
    values: Vec<f32>,
}

impl OracleBackend {
    /// An oracle for these limits.
    #[must_use]
    pub fn new(limits: BackendLimits) -> Self {
        Self {
            limits,
            step: StepRecord::with_limits(&limits),
            tile: 0..0,
            results: Vec::new(),
            scratch: OutcomeScratch::default(),
            memory_bytes: 0,
        }
    }

    fn rows(&self, set: RowSet) -> usize {
        match set {
            RowSet::Tokens => self.step.num_rows(),
            RowSet::Gathered => self.tile.len(),
        }
    }

    fn store(&mut self, view: &WeightView<'_>) -> Result<StoredMatrix, BackendError> {
        let stored = StoredMatrix::new(view)?;
        self.memory_bytes += view.data.len() as u64;
        Ok(stored)
    }
}

impl HostBackend for OracleBackend {
    fn host_rows<'t>(&self, tensor: &'t OracleTensor) -> &'t [f32] {
        &tensor.values[..self.rows(tensor.rows) * tensor.width]
    }

    fn host_rows_mut<'t>(&self, tensor: &'t mut OracleTensor) -> &'t mut [f32] {
        let len = self.rows(tensor.rows) * tensor.width;
        &mut tensor.values[..len]
    }
}

impl Backend for OracleBackend {
    type Tensor = OracleTensor;
    type Weight = OracleWeight;
    type Table = OracleTable;
    type Vector = Vec<f32>;
    type Rotary = OracleRotary;
    type KvCache = OracleKvCache;
    type Experts = OracleExperts;
    type Routing = OracleRouting;

    fn instruction_set(&self) -> String {
        "oracle".to_owned()
    }

    fn limits(&self) -> BackendLimits {
        self.limits
    }

    fn pack_linear(
        &mut self,
        parts: &[WeightView<'_>],
        split: InnerSplit,
    ) -> Result<OracleWeight, BackendError> {
        let columns = check_parts(parts, split)?;
        let parts = parts.iter().map(|part| self.store(part)).collect::<Result<_, _>>()?;
        Ok(OracleWeight { parts, columns, segments: split.segments })
    }

    fn pack_table(
        &mut self,
        table: &WeightView<'_>,
        first_token: u32,
    ) -> Result<OracleTable, BackendError> {
        Ok(OracleTable { rows: self.store(table)?, first_token: first_token as usize })
    }

    fn vector(&mut self, values: &[f32]) -> Result<Vec<f32>, BackendError> {
        self.memory_bytes += size_of_val(values) as u64;
        Ok(values.to_vec())
    }

    fn tensor(&mut self, rows: RowSet, width: usize) -> Result<OracleTensor, BackendError> {
        let max_rows = match rows {
            RowSet::Tokens => self.limits.max_tokens,
            RowSet::Gathered => self.limits.max_gathered,
        };
        self.memory_bytes += (max_rows * width * 4) as u64;
        Ok(OracleTensor { rows, width, values: vec![0.0; max_rows * width] })
    }

    fn rotary(
        &mut self,
        inverse_frequencies: &[f32],
        scale: f32,
        style: RotaryStyle,
    ) -> Result<OracleRotary, BackendError> {
        let (cos, sin) = rotary_tables(inverse_frequencies, scale, self.limits.max_positions);
        Ok(OracleRotary { style, cos, sin, half: inverse_frequencies.len() })
    }

    fn experts(
        &mut self,
        shape: &ExpertsShape,
        router: &WeightView<'_>,
    ) -> Result<OracleExperts, BackendError> {
        let checks = ExpertChecks::new(shape, router)?;
        Ok(OracleExperts::new(checks, self.store(router)?))
    }

    fn pack_expert(
        &mut self,
        experts: &mut OracleExperts,
        gate_up: &[WeightView<'_>; 2],
        down: &WeightView<'_>,
    ) -> Result<(), BackendError> {
        experts.checks.next(gate_up, down)?;
        let gate_up = self.pack_linear(gate_up, InnerSplit::WHOLE)?;
        let down = self.pack_linear(&[*down], experts.checks.shape().split)?;
        experts.push(gate_up, down);
        Ok(())
    }

    fn routing(&mut self, shape: &ExpertsShape) -> Result<OracleRouting, BackendError> {
        self.memory_bytes += (self.limits.max_tokens * shape.top_k * 8) as u64;
        Ok(OracleRouting::default())
    }

    fn kv_cache(&mut self, shape: KvCacheShape) -> Result<OracleKvCache, BackendError> {
        let tokens = shape.num_layers * shape.num_blocks * oarlock_types::BLOCK_TOKENS;
        let values = tokens * 2 * shape.num_kv_heads * shape.head_dim;
        self.memory_bytes += values as u64 * 4;
        Ok(OracleKvCache { shape, values: vec![0.0; values] })
    }

    fn begin_step(&mut self, input: &StepInput<'_>) {
        self.step.set(input);
        self.tile = 0..0;
        self.results.clear();
    }

    fn embed(&mut self, out: &mut OracleTensor, table: &OracleTable, scale: f32) {
        ops::embed(out, table, scale, self.step.tokens());
    }

    fn add_rms_norm(
        &mut self,
        out: &mut OracleTensor,
        residual: &mut OracleTensor,
        delta: Option<&OracleTensor>,
        weight: &Vec<f32>,
        eps: f32,
    ) {
        for row in 0..self.rows(residual.rows) {
            let delta = delta.map(|delta| delta.row(row));
            ops::add_rms_norm(out.row_mut(row), residual.row_mut(row), delta, weight, eps);
        }
    }

    fn rms_norm(&mut self, values: &mut OracleTensor, weight: &Vec<f32>, eps: f32) {
        for row in 0..self.rows(values.rows) {
            ops::rms_norm(values.row_mut(row), weight, eps);
        }
    }

    fn head_rms_norm(
        &mut self,
        qkv: &mut OracleTensor,
        query_weight: &Vec<f32>,
        key_weight: &Vec<f32>,
        eps: f32,
        params: &AttentionParams,
    ) {
        for row in 0..self.rows(qkv.rows) {
            let row = qkv.row_mut(row);
            let (queries, others) = row.split_at_mut(params.num_heads * params.head_dim);
            let keys = &mut others[..params.num_kv_heads * params.head_dim];
            for (heads, weight) in [(queries, query_weight), (keys, key_weight)] {
                for head in heads.chunks_exact_mut(params.head_dim) {
                    ops::rms_norm(head, weight, eps);
                }
            }
        }
    }

    fn linear(
        &mut self,
        out: &mut OracleTensor,
        input: &OracleTensor,
        weight: &OracleWeight,
        bias: Option<&Vec<f32>>,
    ) {
        ops::linear(out, input, weight, bias.map(Vec::as_slice), self.rows(input.rows));
    }

    fn rotary_kv_write(
        &mut self,
        qkv: &mut OracleTensor,
        cache: &mut OracleKvCache,
        layer: usize,
        rotary: &OracleRotary,
        params: &AttentionParams,
    ) {
        for row in 0..self.step.num_rows() {
            let position = self.step.position(row);
            attention::rotate(qkv.row_mut(row), rotary, params, position);
            attention::write(qkv.row(row), cache, layer, self.step.table(row), params, position);
        }
    }

    fn paged_attention(
        &mut self,
        out: &mut OracleTensor,
        qkv: &OracleTensor,
        cache: &OracleKvCache,
        layer: usize,
        params: &AttentionParams,
    ) {
        for row in 0..self.step.num_rows() {
            let place = (self.step.table(row), self.step.position(row));
            attention::attend(out.row_mut(row), qkv.row(row), cache, layer, place, params);
        }
    }

    fn gated_activation(
        &mut self,
        out: &mut OracleTensor,
        gate_up: &OracleTensor,
        activation: Activation,
    ) {
        for row in 0..self.rows(gate_up.rows) {
            ops::gated_activation(out.row_mut(row), gate_up.row(row), activation);
        }
    }

    fn route(
        &mut self,
        routing: &mut OracleRouting,
        input: &OracleTensor,
        experts: &OracleExperts,
    ) {
        let rows = self.rows(input.rows);
        routing.choose((0..rows).map(|row| input.row(row)), experts);
    }

    fn expert_feed_forward(
        &mut self,
        out: &mut OracleTensor,
        input: &OracleTensor,
        routing: &OracleRouting,
        experts: &OracleExperts,
        activation: Activation,
    ) {
        for row in 0..self.rows(input.rows) {
            experts.feed_forward(out.row_mut(row), input.row(row), routing.row(row), activation);
        }
    }

    fn add_bias(&mut self, values: &mut OracleTensor, bias: &Vec<f32>) {
        assert_eq!(values.width, bias.len(), "width of the bias");
        for row in 0..self.rows(values.rows) {
            values.row_mut(row).iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
        }
    }

    fn soft_cap(&mut self, values: &mut OracleTensor, cap: f32) {
        for row in 0..self.rows(values.rows) {
            for value in values.row_mut(row) {
                *value = cap * (*value / cap).tanh();
            }
        }
    }

    fn gather(&mut self, out: &mut OracleTensor, input: &OracleTensor, tile: Range<usize>) {
        assert!(tile.len() <= self.limits.max_gathered, "a tile fits the workspace");
        for (to, wanted) in self.step.logit_rows()[tile.clone()].iter().enumerate() {
            out.row_mut(to).copy_from_slice(input.row(wanted.row as usize));
        }
        self.tile = tile;
    }

    fn sample(&mut self, logits: &OracleTensor) {
        for (row, wanted) in self.step.logit_rows()[self.tile.clone()].iter().enumerate() {
            let outcome = row_outcome(logits.row(row), &self.step, wanted, &mut self.scratch);
            self.results.push(RowResult { outcome });
        }
    }

    fn copy_blocks(&mut self, cache: &mut OracleKvCache, pairs: &[(u32, u32)]) {
        attention::copy_blocks(cache, pairs);
    }

    fn finish_step(&mut self, results: &mut Vec<RowResult>) -> Result<(), BackendError> {
        results.clear();
        results.append(&mut self.results);
        Ok(())
    }

    fn read(&mut self, tensor: &OracleTensor) -> Vec<f32> {
        tensor.values[..self.rows(tensor.rows) * tensor.width].to_vec()
    }

    fn read_routing(&mut self, routing: &OracleRouting) -> Vec<(u32, f32)> {
        (0..self.step.num_rows()).flat_map(|row| routing.row(row)).copied().collect()
    }

    fn write(&mut self, tensor: &mut OracleTensor, values: &[f32]) {
        let len = self.rows(tensor.rows) * tensor.width;
        tensor.values[..len].copy_from_slice(values);
    }

    fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }
}

impl OracleTensor {
    fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..][..self.width]
    }

    fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.values[row * self.width..][..self.width]
    }
}

/// `[position, pair]` cosines and sines times `scale`: the angle is the float32 product of position
/// and inverse frequency, its cosine and sine are taken in float64 and rounded.
pub fn rotary_tables(
    inverse_frequencies: &[f32],
    scale: f32,
    positions: usize,
) -> (Vec<f32>, Vec<f32>) {
    let angles = (0..positions).flat_map(|position| {
        inverse_frequencies.iter().map(move |f| f64::from(position as f32 * f))
    });
    let scale = f64::from(scale);
    // Not the system's functions: those differ from machine to machine in the last bit.
    angles
        .map(|angle| ((libm::cos(angle) * scale) as f32, (libm::sin(angle) * scale) as f32))
        .unzip()
}

/// What an f16 cache would hold of a value: rounded to nearest even, saturated to ±65504.
#[must_use]
pub fn to_f16_saturated(value: f32) -> f16 {
    let limit = 65_504.0;
    f16::from_f32(if value > limit {
        limit
    } else if value < -limit {
        -limit
    } else {
        value
    })
}
