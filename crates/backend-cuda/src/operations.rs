//! Each operation of [`Backend`] as the launch that does it.

use std::ops::Range;

use oarlock_backend::oracle::rotary_tables;
use oarlock_backend::{
    Activation, AttentionParams, Backend, BackendError, BackendLimits, ExpertsShape, InnerSplit,
    KvCacheShape, RotaryStyle, RowResult, RowSet, StepInput, WeightView,
};

use crate::backend::{CudaBackend, backend_error, check_width};
use crate::experts::{CudaExperts, CudaRouting};
use crate::kernels::{
    AddBiasParams, AddRmsNormParams, CopyBlocksParams, EmbedParams, GatedActivationParams,
    GatherParams, HeadRmsNormParams, RmsNormParams, RotaryKvWriteParams, SoftCapParams, WorkType,
    activation_number, launch,
};
use crate::pack::pack_table;
use crate::tensor::{
    CudaKvCache, CudaRotary, CudaTable, CudaTensor, CudaVector, from_bytes, to_bytes,
};
use crate::weight::{CudaWeight, LinearAddresses};

/// Memory that is left to the driver and to what grows on demand.
const RESERVED_BYTES: u64 = 64 << 20;

impl Backend for CudaBackend {
    type Tensor = CudaTensor;
    type Weight = CudaWeight;
    type Table = CudaTable;
    type Vector = CudaVector;
    type Rotary = CudaRotary;
    type KvCache = CudaKvCache;
    type Experts = CudaExperts;
    type Routing = CudaRouting;

    fn instruction_set(&self) -> String {
        let work = match self.work {
            WorkType::Bf16 => "bfloat16",
            WorkType::F32 => "float32",
        };
        format!("{}-{work}", self.device.kind())
    }

    fn limits(&self) -> BackendLimits {
        self.limits
    }

    fn pack_linear(
        &mut self,
        parts: &[WeightView<'_>],
        split: InnerSplit,
    ) -> Result<CudaWeight, BackendError> {
        CudaWeight::pack(self, parts, split)
    }

    fn pack_table(
        &mut self,
        table: &WeightView<'_>,
        first_token: u32,
    ) -> Result<CudaTable, BackendError> {
        let values = self.upload(table.name, &pack_table(table, self.work)?)?;
        Ok(CudaTable { width: table.columns, rows: table.rows as u32, first_token, values })
    }

    fn vector(&mut self, values: &[f32]) -> Result<CudaVector, BackendError> {
        let buffer = self.upload("a vector", bytemuck::cast_slice(values))?;
        Ok(CudaVector { len: values.len(), values: buffer })
    }

    fn tensor(&mut self, rows: RowSet, width: usize) -> Result<CudaTensor, BackendError> {
        check_width(width)?;
        self.new_tensor(rows, width, self.work)
    }

    fn float_tensor(&mut self, rows: RowSet, width: usize) -> Result<CudaTensor, BackendError> {
        check_width(width)?;
        if rows == RowSet::Tokens {
            self.check_norm(width)?;
        }
        if rows == RowSet::Gathered {
            // Of all of these, logits are the widest.
            let stats = self.stats(width).map(drop);
            stats.map_err(|error| backend_error(&error, "statistics of logits", width))?;
        }
        self.new_tensor(rows, width, WorkType::F32)
    }

    fn rotary(
        &mut self,
        inverse_frequencies: &[f32],
        scale: f32,
        style: RotaryStyle,
    ) -> Result<CudaRotary, BackendError> {
        if !inverse_frequencies.len().is_multiple_of(4) {
            let reason =
                format!("{} rotated pairs of a head; 4 go together", inverse_frequencies.len());
            return Err(BackendError::Device(reason));
        }
        let (cos, sin) = rotary_tables(inverse_frequencies, scale, self.limits.max_positions);
        Ok(CudaRotary {
            style,
            half: inverse_frequencies.len(),
            cosines: self.upload("cosines", bytemuck::cast_slice(&cos))?,
            sines: self.upload("sines", bytemuck::cast_slice(&sin))?,
        })
    }

    fn prepare_attention(&mut self, params: &AttentionParams) -> Result<(), BackendError> {
        let outcome = self.plan_attention(params);
        outcome.map_err(|error| backend_error(&error, "attention's workspace", 0))
    }

    fn experts(
        &mut self,
        shape: &ExpertsShape,
        router: &WeightView<'_>,
    ) -> Result<CudaExperts, BackendError> {
        CudaExperts::new(self, shape, router)
    }

    fn pack_expert(
        &mut self,
        experts: &mut CudaExperts,
        gate_up: &[WeightView<'_>; 2],
        down: &WeightView<'_>,
    ) -> Result<(), BackendError> {
        experts.push(self, gate_up, down)
    }

    fn routing(&mut self, shape: &ExpertsShape) -> Result<CudaRouting, BackendError> {
        CudaRouting::new(self, shape)
    }

    fn kv_cache(&mut self, shape: KvCacheShape) -> Result<CudaKvCache, BackendError> {
        let block_bytes = CudaKvCache::bytes_of_block(&shape, self.work);
        let bytes = block_bytes as usize * shape.num_blocks * shape.num_layers;
        let what = format!("the KV cache of {} blocks (--kv-cache-tokens)", shape.num_blocks);
        let free = self.device.memory().map_err(|error| backend_error(&error, &what, bytes))?.0;
        if (bytes as u64).saturating_add(RESERVED_BYTES) > free {
            return Err(BackendError::OutOfMemory { what, bytes });
        }
        let values = self.buffer(&what, bytes)?;
        Ok(CudaKvCache { shape, block_bytes, values })
    }

    fn begin_step(&mut self, input: &StepInput<'_>) {
        assert!(input.tokens.len() <= self.limits.max_tokens, "rows within the limits");
        assert!(input.chunks.len() <= self.limits.max_chunks, "chunks within the limits");
        self.record.set(input);
        self.tile = 0..0;
        self.num_operations = 0;
        self.failure = None;
        let outcome = self.try_begin(input);
        self.note(outcome);
    }

    fn embed(&mut self, out: &mut CudaTensor, table: &CudaTable, scale: f32) {
        assert!(out.element == WorkType::F32 && out.width == table.width, "embeddings are float32");
        let rows = self.rows(out.rows);
        self.launch(
            &launch::embed(self.work, rows),
            &EmbedParams {
                out: out.address(),
                table: table.values.address(),
                tokens: self.words.tokens(),
                num_rows: self.num_rows(out.rows),
                width: table.width as u32,
                first_token: table.first_token,
                table_rows: table.rows,
                scale,
            },
        );
    }

    fn add_rms_norm(
        &mut self,
        out: &mut CudaTensor,
        residual: &mut CudaTensor,
        delta: Option<&CudaTensor>,
        weight: &CudaVector,
        eps: f32,
    ) {
        assert!(residual.element == WorkType::F32, "the residual stream is float32");
        assert!(
            delta.is_none_or(|delta| delta.element == WorkType::F32),
            "and what is added to it"
        );
        assert!(out.element == self.work && weight.len == out.width, "a norm's width and type");
        let (rows, width) = (self.rows(residual.rows), out.width as u32);
        self.launch(
            &launch::add_rms_norm(self.work, rows, width),
            &AddRmsNormParams {
                out: out.address(),
                residual: residual.address(),
                delta: delta.map_or(0, CudaTensor::address),
                weight: weight.values.address(),
                num_rows: self.num_rows(residual.rows),
                width,
                eps,
            },
        );
    }

    fn rms_norm(&mut self, values: &mut CudaTensor, weight: &CudaVector, eps: f32) {
        assert!(values.element == WorkType::F32 && weight.len == values.width, "a float32 norm");
        let (rows, width) = (self.rows(values.rows), values.width as u32);
        self.launch(
            &launch::rms_norm(rows, width),
            &RmsNormParams {
                values: values.address(),
                weight: weight.values.address(),
                num_rows: self.num_rows(values.rows),
                width,
                eps,
            },
        );
    }

    fn head_rms_norm(
        &mut self,
        qkv: &mut CudaTensor,
        query_weight: &CudaVector,
        key_weight: &CudaVector,
        eps: f32,
        params: &AttentionParams,
    ) {
        assert_eq!(qkv.element, self.work, "qkv in the working type");
        let (heads, kv_heads) = (params.num_heads as u32, params.num_kv_heads as u32);
        let rows = self.rows(qkv.rows);
        self.launch(
            &launch::head_rms_norm(self.work, rows, heads, kv_heads),
            &HeadRmsNormParams {
                qkv: qkv.address(),
                query_weight: query_weight.values.address(),
                key_weight: key_weight.values.address(),
                num_rows: self.num_rows(qkv.rows),
                num_heads: heads,
                num_kv_heads: kv_heads,
                head_dim: params.head_dim as u32,
                eps,
            },
        );
    }

    fn linear(
        &mut self,
        out: &mut CudaTensor,
        input: &CudaTensor,
        weight: &CudaWeight,
        bias: Option<&CudaVector>,
    ) {
        assert_eq!(input.element, self.work, "inputs in the working type");
        assert_eq!((input.width, out.width), (weight.columns, weight.outputs), "a layer's widths");
        assert!(bias.is_none_or(|bias| bias.len == weight.outputs), "bias of the layer");
        let rows = self.rows(input.rows);
        let at = LinearAddresses {
            out: out.address(),
            out_element: out.element,
            input: input.address(),
            bias: bias.map(|bias| bias.values.address()),
            num_rows: self.num_rows(input.rows),
        };
        for part in &weight.parts {
            let (launch, params) = weight.launch(part, self.device.shape(), rows, at);
            self.launch(&launch, &params);
        }
    }

    fn rotary_kv_write(
        &mut self,
        qkv: &mut CudaTensor,
        cache: &mut CudaKvCache,
        layer: usize,
        rotary: &CudaRotary,
        params: &AttentionParams,
    ) {
        assert_eq!(qkv.element, self.work, "qkv in the working type");
        assert!(2 * rotary.half <= params.head_dim, "no more than a head is rotated");
        let rows = self.rows(RowSet::Tokens);
        self.launch(
            &launch::rotary_kv_write(self.work, rows),
            &RotaryKvWriteParams {
                qkv: qkv.address(),
                cache: cache.layer(layer),
                cosines: rotary.cosines.address(),
                sines: rotary.sines.address(),
                positions: self.words.positions(),
                first_table_entry: self.words.table_entries(),
                tables: self.words.tables(),
                num_rows: self.words.num_rows(),
                num_heads: params.num_heads as u32,
                num_kv_heads: params.num_kv_heads as u32,
                head_dim: params.head_dim as u32,
                half: rotary.half as u32,
                interleaved: (rotary.style == RotaryStyle::Interleaved).into(),
                padding: 0,
            },
        );
    }

    fn paged_attention(
        &mut self,
        out: &mut CudaTensor,
        qkv: &CudaTensor,
        cache: &CudaKvCache,
        layer: usize,
        params: &AttentionParams,
    ) {
        assert!(out.element == self.work && qkv.element == self.work, "in the working type");
        let outcome = self.try_attention(out, qkv, cache.layer(layer), params);
        self.note(outcome);
    }

    fn gated_activation(
        &mut self,
        out: &mut CudaTensor,
        gate_up: &CudaTensor,
        activation: Activation,
    ) {
        assert!(out.element == self.work && gate_up.element == self.work, "in the working type");
        assert_eq!(gate_up.width, 2 * out.width, "gate and up");
        let (rows, width) = (self.rows(gate_up.rows), out.width as u32);
        self.launch(
            &launch::gated_activation(self.work, rows, width),
            &GatedActivationParams {
                out: out.address(),
                gate_up: gate_up.address(),
                num_rows: self.num_rows(gate_up.rows),
                width,
                activation: activation_number(activation),
            },
        );
    }

    fn route(&mut self, routing: &mut CudaRouting, input: &CudaTensor, experts: &CudaExperts) {
        self.enqueue_route(routing, input, experts);
    }

    fn expert_feed_forward(
        &mut self,
        out: &mut CudaTensor,
        input: &CudaTensor,
        routing: &CudaRouting,
        experts: &CudaExperts,
        activation: Activation,
    ) {
        self.enqueue_experts(out, input, routing, experts, activation);
    }

    fn add_bias(&mut self, values: &mut CudaTensor, bias: &CudaVector) {
        assert!(values.element == WorkType::F32 && bias.len == values.width, "a float32 bias");
        let (rows, width) = (self.rows(values.rows), values.width as u32);
        self.launch(
            &launch::add_bias(rows, width),
            &AddBiasParams {
                values: values.address(),
                bias: bias.values.address(),
                num_rows: self.num_rows(values.rows),
                width,
                padding: 0,
            },
        );
    }

    fn soft_cap(&mut self, values: &mut CudaTensor, cap: f32) {
        assert_eq!(values.element, WorkType::F32, "logits are float32");
        let (rows, width) = (self.rows(values.rows), values.width as u32);
        let num_rows = self.num_rows(values.rows);
        let params = SoftCapParams { values: values.address(), num_rows, width, cap };
        self.launch(&launch::soft_cap(rows, width), &params);
    }

    fn gather(&mut self, out: &mut CudaTensor, input: &CudaTensor, tile: Range<usize>) {
        assert_eq!(out.element, input.element, "rows are copied as they are");
        self.tile = tile;
        let (first, rows) = (self.tile.start, self.tile.len());
        let outcome = self.words.set_tile(&self.stream, first, rows);
        self.note(outcome);
        self.launch(
            &launch::gather(input.element, rows as u32),
            &GatherParams {
                out: out.address(),
                input: input.address(),
                rows: self.words.gathered(first),
                num_rows: self.words.num_gathered(first),
                width: input.width as u32,
                padding: 0,
            },
        );
    }

    fn sample(&mut self, logits: &CudaTensor) {
        assert_eq!(logits.element, WorkType::F32, "logits are float32");
        let outcome = self.try_sample(logits);
        self.note(outcome);
    }

    fn copy_blocks(&mut self, cache: &mut CudaKvCache, pairs: &[(u32, u32)]) {
        let words: Vec<u32> = [pairs.len() as u32, 0]
            .into_iter()
            .chain(pairs.iter().flat_map(|(from, to)| [*from, *to]))
            .collect();
        let uploaded = self.uploader.upload(&self.stream, bytemuck::cast_slice(&words));
        let list = match uploaded {
            Ok(list) => list,
            Err(error) => return self.note(Err(error)),
        };
        self.launch(
            &launch::copy_blocks(pairs.len() as u32, cache.shape.num_layers as u32),
            &CopyBlocksParams {
                cache: cache.values.address(),
                pairs: list.address() + 8,
                num_pairs: list.address(),
                block_bytes: cache.block_bytes,
                layer_bytes: cache.block_bytes * cache.shape.num_blocks as u64,
            },
        );
        // The list goes with this call.
        let outcome = self.stream.synchronize();
        self.note(outcome);
    }

    fn finish_step(&mut self, results: &mut Vec<RowResult>) -> Result<(), BackendError> {
        results.clear();
        let outcome = match self.failure.take() {
            Some(error) => Err(error),
            None => self.try_finish(results),
        };
        outcome.map_err(|error| BackendError::Device(error.to_string()))
    }

    fn read(&mut self, tensor: &CudaTensor) -> Vec<f32> {
        let values = self.rows(tensor.rows) as usize * tensor.width;
        match self.download::<u8>(&tensor.values, values * tensor.element.bytes()) {
            Ok(bytes) => from_bytes(&bytes, tensor.element),
            Err(error) => {
                self.note(Err(error));
                vec![f32::NAN; values]
            }
        }
    }

    fn read_routing(&mut self, routing: &CudaRouting) -> Vec<(u32, f32)> {
        self.download_routing(routing)
    }

    fn write(&mut self, tensor: &mut CudaTensor, values: &[f32]) {
        assert_eq!(values.len(), self.rows(tensor.rows) as usize * tensor.width, "the step's rows");
        let bytes = to_bytes(values, tensor.element);
        let outcome = self.uploader.write(&self.stream, &tensor.values, 0, &bytes);
        self.note(outcome);
    }

    fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }
}
