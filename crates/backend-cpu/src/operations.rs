//! The operations of the CPU backend, each over all threads.

use std::ops::Range;

use oarlock_backend::oracle::{check_view, rotary_tables};
use oarlock_backend::quant::dequantize_row;
use oarlock_backend::{
    Activation, AttentionParams, Backend, BackendError, BackendLimits, ExpertsShape, InnerSplit,
    KvCacheShape, RotaryStyle, RowResult, RowSet, StepInput, WeightView,
};
use oarlock_types::{BLOCK_TOKENS, SlotError};

use crate::Dtype;
use crate::activation::{gated_activation, soft_cap};
use crate::attention::{AttentionCall, CpuKvCache};
use crate::backend::CpuBackend;
use crate::buffer::{AlignedBuffer, SharedSlice};
use crate::experts::{CpuExperts, CpuRouting, FeedForward};
use crate::linear::{LinearCall, linear};
use crate::norm::{add_rms_norm, rms_norm};
use crate::pack::CpuWeight;
use crate::rotary::{CpuRotary, rotate_head};
use crate::sample::sample_row;
use crate::tensor::{CpuTable, CpuTensor, CpuVector, row_of};

impl Backend for CpuBackend {
    type Tensor = CpuTensor;
    type Weight = CpuWeight;
    type Table = CpuTable;
    type Vector = CpuVector;
    type Rotary = CpuRotary;
    type KvCache = CpuKvCache;
    type Experts = CpuExperts;
    type Routing = CpuRouting;

    fn instruction_set(&self) -> String {
        match self.dtype {
            Dtype::Auto => format!("cpu-{}", self.isa.get()),
            dtype => format!("cpu-{}-{dtype}", self.isa.get()),
        }
    }

    fn limits(&self) -> BackendLimits {
        self.limits
    }

    fn pack_linear(
        &mut self,
        parts: &[WeightView<'_>],
        split: InnerSplit,
    ) -> Result<CpuWeight, BackendError> {
        let weight = CpuWeight::pack(parts, split, self.dtype, self.isa, &mut self.pool)?;
        self.memory_bytes += weight.bytes();
        self.memory_bytes -= self.activations.bytes();
        self.activations.reserve(&weight)?;
        self.memory_bytes += self.activations.bytes();
        Ok(weight)
    }

    fn pack_table(
        &mut self,
        table: &WeightView<'_>,
        first_token: u32,
    ) -> Result<CpuTable, BackendError> {
        check_view(table)?;
        let table = CpuTable::pack(table, first_token, &mut self.pool)?;
        self.memory_bytes += table.data.bytes();
        Ok(table)
    }

    fn vector(&mut self, values: &[f32]) -> Result<CpuVector, BackendError> {
        let mut copy = AlignedBuffer::zeroed(values.len(), "a vector")?;
        copy.copy_from_slice(values);
        self.memory_bytes += copy.bytes();
        Ok(CpuVector { values: copy })
    }

    fn tensor(&mut self, rows: RowSet, width: usize) -> Result<CpuTensor, BackendError> {
        let max_rows = match rows {
            RowSet::Tokens => self.limits.max_tokens,
            RowSet::Gathered => self.limits.max_gathered,
        };
        let values = AlignedBuffer::zeroed(max_rows.saturating_mul(width), "activations")?;
        self.memory_bytes += values.bytes();
        if rows == RowSet::Gathered {
            // Logits are the widest of these: what is drawn from is at most this wide.
            self.scratch.iter_mut().for_each(|scratch| scratch.reserve(width));
        }
        Ok(CpuTensor { rows, width, values })
    }

    fn rotary(
        &mut self,
        inverse_frequencies: &[f32],
        scale: f32,
        style: RotaryStyle,
    ) -> Result<CpuRotary, BackendError> {
        let (cos, sin) = rotary_tables(inverse_frequencies, scale, self.limits.max_positions);
        self.memory_bytes += 8 * cos.len() as u64;
        Ok(CpuRotary { style, half: inverse_frequencies.len(), cos, sin })
    }

    fn experts(
        &mut self,
        shape: &ExpertsShape,
        router: &WeightView<'_>,
    ) -> Result<CpuExperts, BackendError> {
        let experts = CpuExperts::new(shape, router, self.isa, &mut self.pool)?;
        self.memory_bytes += experts.router_bytes();
        Ok(experts)
    }

    fn pack_expert(
        &mut self,
        experts: &mut CpuExperts,
        gate_up: &[WeightView<'_>; 2],
        down: &WeightView<'_>,
    ) -> Result<(), BackendError> {
        self.memory_bytes += experts.pack(gate_up, down, (self.dtype, self.isa), &mut self.pool)?;
        if experts.checks.count() == 1 {
            self.memory_bytes -= self.experts.bytes();
            self.experts.reserve(experts)?;
            self.memory_bytes += self.experts.bytes();
        }
        Ok(())
    }

    fn routing(&mut self, shape: &ExpertsShape) -> Result<CpuRouting, BackendError> {
        let routing = CpuRouting::new(&self.limits, shape);
        self.memory_bytes += routing.bytes();
        Ok(routing)
    }

    fn kv_cache(&mut self, shape: KvCacheShape) -> Result<CpuKvCache, BackendError> {
        let cache = CpuKvCache::new(shape, self.dtype)?;
        self.memory_bytes += cache.bytes();
        Ok(cache)
    }

    fn begin_step(&mut self, input: &StepInput<'_>) {
        assert!(input.tokens.len() <= self.limits.max_tokens, "rows within the limits");
        self.step.set(input);
        self.tile = 0..0;
        self.results.clear();
        self.failure = None;
    }

    fn embed(&mut self, out: &mut CpuTensor, table: &CpuTable, scale: f32) {
        assert_eq!(out.width, table.columns, "width of the table");
        let rows = self.step.num_rows();
        let width = out.width;
        let shared = SharedSlice::new(&mut out.values);
        let step = std::mem::take(&mut self.step);
        self.for_rows(rows, rows * width, &|row| {
            // SAFETY: each row is written by one thread.
            let out = unsafe { row_of(&shared, width, row) };
            let at = step.tokens()[row].index().checked_sub(table.first_token);
            let bytes = at.map(|at| at * table.row_bytes).filter(|&at| at < table.data.len());
            let Some(first) = bytes else { return out.fill(-0.0) };
            dequantize_row(table.kind, &table.data[first..][..table.row_bytes], out)
                .expect("a checked table");
            for value in out.iter_mut() {
                *value *= scale;
            }
        });
        self.step = step;
    }

    fn add_rms_norm(
        &mut self,
        out: &mut CpuTensor,
        residual: &mut CpuTensor,
        delta: Option<&CpuTensor>,
        weight: &CpuVector,
        eps: f32,
    ) {
        let rows = self.rows(residual.rows);
        let width = residual.width;
        assert_eq!(out.width, width, "width of the norm");
        let isa = self.isa;
        let out = SharedSlice::new(&mut out.values);
        let residual = SharedSlice::new(&mut residual.values);
        self.for_rows(rows, rows * width, &|row| {
            // SAFETY: each row is written by one thread.
            let (out, residual) =
                unsafe { (row_of(&out, width, row), row_of(&residual, width, row)) };
            add_rms_norm(
                isa,
                out,
                residual,
                delta.map(|delta| delta.row(row)),
                &weight.values,
                eps,
            );
        });
    }

    fn rms_norm(&mut self, values: &mut CpuTensor, weight: &CpuVector, eps: f32) {
        let isa = self.isa;
        self.in_place(values, &|row| rms_norm(isa, row, &weight.values, eps));
    }

    fn head_rms_norm(
        &mut self,
        qkv: &mut CpuTensor,
        query_weight: &CpuVector,
        key_weight: &CpuVector,
        eps: f32,
        params: &AttentionParams,
    ) {
        let AttentionParams { num_heads, num_kv_heads, head_dim, .. } = *params;
        assert_eq!(qkv.width, (num_heads + 2 * num_kv_heads) * head_dim, "width of qkv");
        let isa = self.isa;
        self.in_place(qkv, &|row| {
            let heads = row.chunks_exact_mut(head_dim).take(num_heads + num_kv_heads);
            for (index, head) in heads.enumerate() {
                let weight = if index < num_heads { query_weight } else { key_weight };
                rms_norm(isa, head, &weight.values, eps);
            }
        });
    }

    fn linear(
        &mut self,
        out: &mut CpuTensor,
        input: &CpuTensor,
        weight: &CpuWeight,
        bias: Option<&CpuVector>,
    ) {
        let rows = self.rows(input.rows);
        assert_eq!(
            (input.width, out.width),
            (weight.columns, weight.outputs),
            "shape of the layer"
        );
        let call = LinearCall {
            weight,
            bias: bias.map(|bias| &bias.values[..]),
            input: &input.values[..rows * input.width],
            out: &mut out.values[..rows * out.width],
            rows,
        };
        let result = linear(self.isa, &mut self.pool, &mut self.activations, call);
        self.check(result);
    }

    fn rotary_kv_write(
        &mut self,
        qkv: &mut CpuTensor,
        cache: &mut CpuKvCache,
        layer: usize,
        rotary: &CpuRotary,
        params: &AttentionParams,
    ) {
        let (dim, kv_heads) = (params.head_dim, params.num_kv_heads);
        assert_eq!(qkv.width, (params.num_heads + 2 * kv_heads) * dim, "width of qkv");
        assert!(2 * rotary.half <= dim, "rotary is within heads");
        let rotated = params.num_heads + kv_heads;
        for row in 0..self.step.num_rows() {
            let position = self.step.position(row);
            let values = &mut qkv.values[row * qkv.width..][..qkv.width];
            for head in values[..rotated * dim].chunks_exact_mut(dim) {
                let rotated = &mut head[..2 * rotary.half];
                rotate_head(self.isa, rotary.style, rotated, rotary.at(position));
            }
            let block = self.step.table(row)[position / BLOCK_TOKENS];
            let (keys, values) = values[params.num_heads * dim..].split_at(kv_heads * dim);
            for (head, key_value) in
                keys.chunks_exact(dim).zip(values.chunks_exact(dim)).enumerate()
            {
                cache.write(self.isa, (layer, block, head), position % BLOCK_TOKENS, key_value);
            }
        }
    }

    fn paged_attention(
        &mut self,
        out: &mut CpuTensor,
        qkv: &CpuTensor,
        cache: &CpuKvCache,
        layer: usize,
        params: &AttentionParams,
    ) {
        let call = AttentionCall { isa: self.isa, step: &self.step, cache, layer, params };
        let rows = self.step.num_rows();
        let result = call.run(
            &mut self.pool,
            &mut self.partials,
            &qkv.values[..rows * qkv.width],
            &mut out.values[..rows * out.width],
        );
        self.check(result);
    }

    fn gated_activation(
        &mut self,
        out: &mut CpuTensor,
        gate_up: &CpuTensor,
        activation: Activation,
    ) {
        let rows = self.rows(gate_up.rows);
        let width = out.width;
        let shared = SharedSlice::new(&mut out.values);
        let isa = self.isa;
        self.for_rows(rows, rows * width, &|row| {
            // SAFETY: each row is written by one thread.
            let out = unsafe { row_of(&shared, width, row) };
            gated_activation(isa, out, gate_up.row(row), activation);
        });
    }

    fn route(&mut self, routing: &mut CpuRouting, input: &CpuTensor, experts: &CpuExperts) {
        let input = (input, self.rows(input.rows));
        let result = self.experts.route(self.isa, &mut self.pool, routing, input, experts);
        self.check(result);
    }

    fn expert_feed_forward(
        &mut self,
        out: &mut CpuTensor,
        input: &CpuTensor,
        routing: &CpuRouting,
        experts: &CpuExperts,
        activation: Activation,
    ) {
        let rows = self.rows(input.rows);
        assert_eq!(out.width, input.width, "output of the layer");
        let call = FeedForward { isa: self.isa, layer: experts, routing, input, activation };
        let out = &mut out.values[..rows * input.width];
        let result = self.experts.feed_forward(&mut self.pool, &call, out);
        self.check(result);
    }

    fn add_bias(&mut self, values: &mut CpuTensor, bias: &CpuVector) {
        assert_eq!(values.width, bias.values.len(), "width of the bias");
        self.in_place(values, &|row| {
            row.iter_mut().zip(&bias.values[..]).for_each(|(value, bias)| *value += bias);
        });
    }

    fn soft_cap(&mut self, values: &mut CpuTensor, cap: f32) {
        let isa = self.isa;
        self.in_place(values, &|row| soft_cap(isa, row, cap));
    }

    fn gather(&mut self, out: &mut CpuTensor, input: &CpuTensor, tile: Range<usize>) {
        assert!(tile.len() <= self.limits.max_gathered, "a tile fits the workspace");
        assert_eq!(out.width, input.width, "width of the gathered rows");
        let width = out.width;
        for (to, wanted) in self.step.logit_rows()[tile.clone()].iter().enumerate() {
            out.values[to * width..][..width].copy_from_slice(input.row(wanted.row as usize));
        }
        self.tile = tile;
    }

    fn sample(&mut self, logits: &CpuTensor) {
        let first = self.results.len();
        let pending = RowResult { outcome: Err(SlotError::InvalidLogits) };
        self.results.resize(first + self.tile.len(), pending);
        let step = &self.step;
        let wanted = &step.logit_rows()[self.tile.clone()];
        let results = SharedSlice::new(&mut self.results[first..]);
        let scratch = SharedSlice::new(&mut self.scratch);
        let isa = self.isa;
        let result = self.pool.run(wanted.len(), 1, &|thread, rows| {
            // SAFETY: each thread has its own scratch memory.
            let scratch = unsafe { &mut scratch.range(thread..thread + 1)[0] };
            for row in rows {
                // SAFETY: each row is sampled by one thread.
                let result = unsafe { &mut results.range(row..row + 1)[0] };
                sample_row(isa, logits.row(row), step, &wanted[row], scratch, result);
            }
        });
        self.check(result);
    }

    fn copy_blocks(&mut self, cache: &mut CpuKvCache, pairs: &[(u32, u32)]) {
        cache.copy_blocks(pairs);
    }

    fn finish_step(&mut self, results: &mut Vec<RowResult>) -> Result<(), BackendError> {
        results.clear();
        if let Some(message) = self.failure.take() {
            self.results.clear();
            return Err(BackendError::Device(message));
        }
        results.append(&mut self.results);
        Ok(())
    }

    fn read(&mut self, tensor: &CpuTensor) -> Vec<f32> {
        tensor.values[..self.rows(tensor.rows) * tensor.width].to_vec()
    }

    fn read_routing(&mut self, routing: &CpuRouting) -> Vec<(u32, f32)> {
        routing.choices().collect()
    }

    fn write(&mut self, tensor: &mut CpuTensor, values: &[f32]) {
        let len = self.rows(tensor.rows) * tensor.width;
        tensor.values[..len].copy_from_slice(values);
    }

    fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }
}
