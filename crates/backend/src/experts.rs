//! What every backend checks of a layer of experts before it packs them.

use crate::oracle::{check_parts, check_view};
use crate::{
    BackendError, ExpertsShape, InnerSplit, MAX_EXPERTS, MAX_TOP_K, WeightKind, WeightView,
};

/// The experts of a layer as they come, one after the other.
#[derive(Clone, Debug)]
pub struct ExpertChecks {
    shape: ExpertsShape,
    /// Of gate, up and down of the first expert.
    kinds: Option<[WeightKind; 3]>,
    count: usize,
}

impl ExpertChecks {
    /// Checks the shape, and that of the router.
    pub fn new(shape: &ExpertsShape, router: &WeightView<'_>) -> Result<Self, BackendError> {
        check_view(router)?;
        let ExpertsShape { num_experts, top_k, hidden, feed_forward, split, .. } = *shape;
        let fail = |reason: String| Err(BackendError::Weight { name: router.name.into(), reason });
        if !(1..=MAX_EXPERTS).contains(&num_experts) {
            return fail(format!("{num_experts} experts; 1 to {MAX_EXPERTS} are possible"));
        }
        if !(1..=MAX_TOP_K.min(num_experts)).contains(&top_k) {
            return fail(format!("a token takes {top_k} of {num_experts} experts"));
        }
        let segments = split.segments;
        let is_split = segments.is_power_of_two() && segments <= 8;
        if !is_split || !feed_forward.is_multiple_of(segments) {
            return fail(format!("experts of width {feed_forward} in {segments} segments"));
        }
        if router.kind.is_quantized() {
            return fail(format!("a router of kind {:?}; floats are expected", router.kind));
        }
        if (router.rows, router.columns) != (num_experts, hidden) {
            let (rows, columns) = (router.rows, router.columns);
            return fail(format!("{rows} x {columns}, expected {num_experts} x {hidden}"));
        }
        Ok(Self { shape: *shape, kinds: None, count: 0 })
    }

    /// Checks the next expert.
    pub fn next(
        &mut self,
        gate_up: &[WeightView<'_>; 2],
        down: &WeightView<'_>,
    ) -> Result<(), BackendError> {
        let ExpertsShape { num_experts, hidden, feed_forward, split, .. } = self.shape;
        assert!(self.count < num_experts, "no more experts than the layer has");
        check_parts(gate_up, InnerSplit::WHOLE)?;
        check_parts(&[*down], split)?;
        let [gate, up] = gate_up;
        for (view, (rows, columns)) in [
            (gate, (feed_forward, hidden)),
            (up, (feed_forward, hidden)),
            (down, (hidden, feed_forward)),
        ] {
            if (view.rows, view.columns) != (rows, columns) {
                let (has_rows, has_columns) = (view.rows, view.columns);
                let reason = format!("{has_rows} x {has_columns}, expected {rows} x {columns}");
                return Err(BackendError::Weight { name: view.name.into(), reason });
            }
        }
        let kinds = [gate.kind, up.kind, down.kind];
        let first = *self.kinds.get_or_insert(kinds);
        if kinds != first {
            let reason = format!("gate, up and down are {kinds:?}, of other experts {first:?}");
            return Err(BackendError::Weight { name: gate.name.into(), reason });
        }
        self.count += 1;
        Ok(())
    }

    /// The layer's shape.
    #[must_use]
    pub fn shape(&self) -> &ExpertsShape {
        &self.shape
    }

    /// Experts that have come.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }
}
