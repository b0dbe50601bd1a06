//! Layers of experts on the device: routers, packed experts, and which of them the rows of a step take.
//!
//! The number of rows of an expert is known on the device only: `expert_plan` lists them there, in memory
//! that all layers share ([`workspace`]), and launches cover the worst case.

mod layer;
mod operations;
mod workspace;

use oarlock_backend::{
    BackendError, ExpertChecks, ExpertsShape, InnerSplit, WeightKind, WeightView,
};

use crate::backend::{CudaBackend, check_width};
use crate::driver::DeviceBuffer;
use crate::kernels::LinearFormat;
use crate::pack::{pack_linear, router_parts};
use crate::weight::CudaWeight;

use layer::ExpertLayer;
pub(crate) use workspace::ExpertWorkspace;

/// A layer's router and experts.
#[derive(Debug)]
pub struct CudaExperts {
    checks: ExpertChecks,
    /// `[parts, num_experts]` outputs: logits are sums of parts.
    router: CudaWeight,
    router_parts: usize,
    /// Gate and up of all experts, and down; none as yet.
    layers: Option<[ExpertLayer; 2]>,
    /// Of all parts of both.
    formats: Vec<LinearFormat>,
}

/// Which experts each row of the step takes, with which weights: `[rows, top_k]` of both.
#[derive(Debug)]
pub struct CudaRouting {
    top_k: usize,
    experts: DeviceBuffer,
    weights: DeviceBuffer,
}

impl CudaExperts {
    /// Packs the router, and plans the memory that steps of such a layer need.
    pub(crate) fn new(
        backend: &mut CudaBackend,
        shape: &ExpertsShape,
        router: &WeightView<'_>,
    ) -> Result<Self, BackendError> {
        let checks = ExpertChecks::new(shape, router)?;
        check_width(shape.hidden)?;
        check_width(2 * shape.feed_forward)?;
        let parts = router_parts(router, backend.work)?;
        let rows = parts.count * router.rows;
        let data = bytemuck::cast_slice(&parts.values);
        let view = WeightView::whole(router.name, WeightKind::F32, rows, router.columns, data);
        let packed = CudaWeight::pack(backend, &[view], InnerSplit::WHOLE)?;
        backend.plan_experts(shape, parts.count)?;
        Ok(Self {
            checks,
            router: packed,
            router_parts: parts.count,
            layers: None,
            formats: Vec::new(),
        })
    }

    /// Packs the next expert. The first one takes the memory of all: they have one size.
    pub(crate) fn push(
        &mut self,
        backend: &mut CudaBackend,
        gate_up: &[WeightView<'_>; 2],
        down: &WeightView<'_>,
    ) -> Result<(), BackendError> {
        let index = self.checks.count();
        self.checks.next(gate_up, down)?;
        let ExpertsShape { num_experts, split, .. } = *self.checks.shape();
        let packed = [
            (pack_linear(gate_up, InnerSplit::WHOLE, backend.work)?, gate_up[0].name),
            (pack_linear(&[*down], split, backend.work)?, down.name),
        ];
        if self.layers.is_none() {
            let [gate_up, down] = &packed;
            let parts = gate_up.0.parts.iter().chain(&down.0.parts);
            self.formats = parts.map(|part| part.format).collect();
            self.layers = Some([
                ExpertLayer::new(backend, &gate_up.0, num_experts, gate_up.1)?,
                ExpertLayer::new(backend, &down.0, num_experts, down.1)?,
            ]);
        }
        for (layer, (packed, name)) in self.layers.iter().flatten().zip(&packed) {
            layer.write(backend, packed, index, name)?;
        }
        Ok(())
    }

    fn shape(&self) -> &ExpertsShape {
        self.checks.shape()
    }

    /// Gate and up, and down, of a layer that is whole.
    fn layers(&self) -> &[ExpertLayer; 2] {
        let is_whole = self.checks.count() == self.shape().num_experts;
        let layers = self.layers.as_ref().filter(|_| is_whole);
        layers.unwrap_or_else(|| panic!("{} experts were packed", self.checks.count()))
    }
}

impl CudaRouting {
    pub(crate) fn new(
        backend: &mut CudaBackend,
        shape: &ExpertsShape,
    ) -> Result<Self, BackendError> {
        let bytes = backend.limits.max_tokens * shape.top_k * 4;
        let experts = backend.buffer("the experts of rows", bytes)?;
        let weights = backend.buffer("the weights of rows' experts", bytes)?;
        Ok(Self { top_k: shape.top_k, experts, weights })
    }
}
