//! The launches of routing and of experts.

use oarlock_backend::{Activation, BackendError, ExpertsShape, RowSet};

use crate::backend::{CudaBackend, backend_error};
use crate::kernels::launch::{self, ExpertTiling};
use crate::kernels::{
    ExpertCombineParams, ExpertPlanParams, GatedActivationParams, RouteParams, WorkType,
    activation_number,
};
use crate::tensor::CudaTensor;
use crate::weight::LinearAddresses;

use super::layer::ExpertAddresses;
use super::workspace::{Array, segments_at_once};
use super::{CudaExperts, CudaRouting};

/// Segments of a down projection at most: a block of `expert_combine_f32` has a warp for each.
const MAX_SEGMENTS: usize = 8;

impl CudaBackend {
    /// Changes how many bytes the sums of experts may take, for layers of experts that come later: 256 MiB
    /// otherwise. With fewer, long prompts take more launches; no bit depends on it.
    pub fn set_expert_sums_bytes(&mut self, bytes: usize) {
        self.expert_space.sums_bytes = bytes;
    }

    /// Memory for layers of this shape.
    pub(super) fn plan_experts(
        &mut self,
        shape: &ExpertsShape,
        router_parts: usize,
    ) -> Result<(), BackendError> {
        let assignments = self.limits.max_tokens.checked_mul(shape.top_k);
        if assignments.is_none_or(|count| i32::try_from(count).is_err()) {
            let (rows, top_k) = (self.limits.max_tokens, shape.top_k);
            let reason =
                format!("steps of {rows} rows that take {top_k} experts each are too large");
            return Err(BackendError::Device(reason));
        }
        let segments = shape.split.segments;
        if !segments.is_power_of_two() || segments > MAX_SEGMENTS {
            let reason =
                format!("experts cut into {segments} segments; 1, 2, 4 and 8 are possible");
            return Err(BackendError::Device(reason));
        }
        // What was there before may be in use.
        let outcome = self.stream.synchronize();
        outcome.map_err(|error| backend_error(&error, "experts", 0))?;
        let before = self.expert_space.bytes();
        let (context, limits) = (&self.device.context, &self.limits);
        let grown = self.expert_space.grow(context, (limits, self.work), shape, router_parts);
        self.memory_bytes = self.memory_bytes + self.expert_space.bytes() - before;
        grown
    }

    pub(crate) fn enqueue_route(
        &mut self,
        routing: &CudaRouting,
        input: &CudaTensor,
        experts: &CudaExperts,
    ) {
        let shape = *experts.shape();
        assert_eq!((input.element, input.width), (self.work, shape.hidden), "a layer's input");
        assert_eq!((input.rows, routing.top_k), (RowSet::Tokens, shape.top_k), "choices of tokens");
        let (rows, num_rows) = (self.rows(RowSet::Tokens), self.num_rows(RowSet::Tokens));
        let logits = self.expert_space.address(Array::Logits);
        let at = LinearAddresses {
            out: logits,
            out_element: WorkType::F32,
            input: input.address(),
            bias: None,
            num_rows,
        };
        for part in &experts.router.parts {
            let (launch, params) = experts.router.launch(part, self.device.shape(), rows, at);
            self.launch(&launch, &params);
        }
        self.launch(
            &launch::route(rows),
            &RouteParams {
                experts: routing.experts.address(),
                weights: routing.weights.address(),
                logits,
                num_rows,
                parts: experts.router_parts as u32,
                num_experts: shape.num_experts as u32,
                top_k: shape.top_k as u32,
                normalize: shape.normalize.into(),
            },
        );
    }

    pub(crate) fn enqueue_experts(
        &mut self,
        out: &CudaTensor,
        input: &CudaTensor,
        routing: &CudaRouting,
        experts: &CudaExperts,
        activation: Activation,
    ) {
        let shape = *experts.shape();
        assert_eq!((input.element, input.width), (self.work, shape.hidden), "a layer's input");
        assert_eq!((out.element, out.width), (WorkType::F32, shape.hidden), "a float32 output");
        assert_eq!((input.rows, routing.top_k), (RowSet::Tokens, shape.top_k), "choices of tokens");
        let rows = self.rows(RowSet::Tokens);
        let counts = (shape.top_k as u32, shape.num_experts as u32);
        let tiling = ExpertTiling::choose(self.device.shape(), &experts.formats, rows, counts);
        self.list_rows(routing, &shape, tiling);
        self.gate_up(input, experts, activation, tiling);
        self.down(out, routing, experts, tiling);
    }

    /// Lists the rows of each expert.
    fn list_rows(&mut self, routing: &CudaRouting, shape: &ExpertsShape, tiling: ExpertTiling) {
        let num_experts = shape.num_experts as u32;
        let params = ExpertPlanParams {
            rows: self.expert_space.address(Array::Rows),
            places: self.expert_space.address(Array::Places),
            tiles: self.expert_space.address(Array::Tiles),
            counts: self.expert_space.address(Array::Counts),
            experts: routing.experts.address(),
            num_rows: self.num_rows(RowSet::Tokens),
            num_experts,
            top_k: shape.top_k as u32,
            tile_rows: tiling.tile_rows,
            padding: 0,
        };
        self.launch(&launch::expert_plan(self.rows(RowSet::Tokens), num_experts), &params);
    }

    /// `Array::Gated`, of the input's rows.
    fn gate_up(
        &mut self,
        input: &CudaTensor,
        experts: &CudaExperts,
        activation: Activation,
        tiling: ExpertTiling,
    ) {
        let [gate_up, _] = experts.layers();
        let counts = self.expert_space.address(Array::Counts);
        let at = ExpertAddresses {
            out: self.expert_space.address(Array::GateUp),
            out_element: self.work,
            segment_values: 0,
            input: input.address(),
            rows: Some(self.expert_space.address(Array::Rows)),
            tiles: self.expert_space.address(Array::Tiles),
            num_tiles: counts + 4,
        };
        for (launch, params) in gate_up.launches((tiling.tile_rows, tiling.tiles), 0..1, at) {
            self.launch(&launch, &params);
        }
        let width = experts.shape().feed_forward as u32;
        let params = GatedActivationParams {
            out: self.expert_space.address(Array::Gated),
            gate_up: at.out,
            num_rows: counts,
            width,
            activation: activation_number(activation),
        };
        self.launch(&launch::gated_activation(self.work, tiling.assignments, width), &params);
    }

    /// `out`, from `Array::Gated`: as many segments at once as there is room for.
    fn down(
        &mut self,
        out: &CudaTensor,
        routing: &CudaRouting,
        experts: &CudaExperts,
        tiling: ExpertTiling,
    ) {
        let [_, down] = experts.layers();
        let ExpertsShape { hidden, top_k, .. } = *experts.shape();
        let rows = self.rows(RowSet::Tokens);
        let segment_values = tiling.assignments as usize * hidden;
        let room = self.expert_space.bytes_of(Array::Sums);
        let at_once = segments_at_once(room, segment_values * 4, down.segments());
        let ranges = down.segments() / at_once;
        let sums = self.expert_space.address(Array::Sums);
        let at = ExpertAddresses {
            out: sums,
            out_element: WorkType::F32,
            segment_values: segment_values as u64,
            input: self.expert_space.address(Array::Gated),
            rows: None,
            tiles: self.expert_space.address(Array::Tiles),
            num_tiles: self.expert_space.address(Array::Counts) + 4,
        };
        for range in 0..ranges {
            let segments = range * at_once..(range + 1) * at_once;
            for (launch, params) in down.launches((tiling.tile_rows, tiling.tiles), segments, at) {
                self.launch(&launch, &params);
            }
            let params = ExpertCombineParams {
                out: out.address(),
                pending: self.expert_space.address(Array::Pending),
                sums,
                places: self.expert_space.address(Array::Places),
                weights: routing.weights.address(),
                num_rows: self.num_rows(RowSet::Tokens),
                segment_values: segment_values as u64,
                level_values: u64::from(rows) * hidden as u64,
                hidden: hidden as u32,
                top_k: top_k as u32,
                range: range as u32,
                ranges: ranges as u32,
            };
            self.launch(&launch::expert_combine(rows, hidden as u32, at_once as u32), &params);
        }
    }

    /// The step's choices.
    pub(crate) fn download_routing(&mut self, routing: &CudaRouting) -> Vec<(u32, f32)> {
        let count = self.rows(RowSet::Tokens) as usize * routing.top_k;
        let copied = self.download::<u32>(&routing.experts, count).and_then(|experts| {
            Ok(experts.into_iter().zip(self.download::<f32>(&routing.weights, count)?).collect())
        });
        match copied {
            Ok(choices) => choices,
            Err(error) => {
                self.note(Err(error));
                vec![(0, f32::NAN); count]
            }
        }
    }
}
