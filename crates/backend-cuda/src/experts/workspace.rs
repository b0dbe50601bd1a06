//! Memory that steps of layers of experts need beside what they give: all layers share it, one after the
//! other, and it is as large as the largest wants it.

use std::sync::Arc;

use oarlock_backend::{BackendError, BackendLimits, ExpertsShape};

use crate::backend::backend_error;
use crate::driver::{Context, DeviceBuffer};
use crate::kernels::launch::ExpertTiling;
use crate::kernels::{ExpertTile, WorkType};

/// Bytes of the sums of experts that are kept apart until a row's are added up, `[segments, assignments, hidden]`
/// in float32, unless told otherwise. Where all segments of a step need more, down projections go over ranges
/// of them; one segment is always there.
const SUMS_BYTES: usize = 256 << 20;

/// Rows of the smallest tile: with these a step has most of them.
const LEAST_TILE_ROWS: u32 = 8;

/// One buffer for each array.
#[derive(Debug)]
pub(crate) struct ExpertWorkspace {
    buffers: [Option<DeviceBuffer>; Array::ALL.len()],
    pub(super) sums_bytes: usize,
}

impl Default for ExpertWorkspace {
    fn default() -> Self {
        Self { buffers: Default::default(), sums_bytes: SUMS_BYTES }
    }
}

/// What is kept, for as many rows as a step may have; an assignment is a row with one of its experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Array {
    /// `[rows, parts, num_experts]`: logits of the router, float32.
    Logits,
    /// `[assignments]`: their rows.
    Rows,
    /// `[rows, top_k]`: which assignments they are.
    Places,
    /// [`ExpertTile`]s.
    Tiles,
    /// `[2]`: assignments and tiles.
    Counts,
    /// `[assignments, 2 feed_forward]` in the working type.
    GateUp,
    /// `[assignments, feed_forward]` in the working type.
    Gated,
    /// `[segments, assignments, hidden]`: sums of down projections, float32.
    Sums,
    /// `[levels, rows, hidden]`: joined ranges of segments that wait for their neighbors, float32.
    Pending,
}

impl Array {
    const ALL: [Self; 9] = [
        Self::Logits,
        Self::Rows,
        Self::Places,
        Self::Tiles,
        Self::Counts,
        Self::GateUp,
        Self::Gated,
        Self::Sums,
        Self::Pending,
    ];

    /// For the one who reads that there is no memory for it.
    fn what(self) -> &'static str {
        match self {
            Self::Logits => "logits of routers",
            Self::Rows | Self::Places | Self::Tiles | Self::Counts => "the list of experts' rows",
            Self::GateUp => "gate and up of experts",
            Self::Gated => "activations of experts",
            Self::Sums => "sums of experts",
            Self::Pending => "ranges of experts' sums",
        }
    }

    /// Bytes that a layer of this shape needs of it.
    fn bytes(
        self,
        shape: &ExpertsShape,
        (router_parts, sums_bytes): (usize, usize),
        limits: &BackendLimits,
        work: WorkType,
    ) -> usize {
        let ExpertsShape { num_experts, top_k, hidden, feed_forward, split, .. } = *shape;
        let rows = limits.max_tokens;
        let assignments = rows * top_k;
        let one_segment = assignments * hidden * 4;
        let sums = (split.segments * one_segment).min(sums_bytes.max(one_segment));
        match self {
            Self::Logits => rows * router_parts * num_experts * 4,
            Self::Rows | Self::Places => assignments * 4,
            Self::Tiles => {
                let tiling = ExpertTiling::with_rows(
                    assignments as u32,
                    num_experts as u32,
                    LEAST_TILE_ROWS,
                );
                tiling.tiles as usize * size_of::<ExpertTile>()
            }
            Self::Counts => 8,
            Self::GateUp => assignments * 2 * feed_forward * work.bytes(),
            Self::Gated => assignments * feed_forward * work.bytes(),
            Self::Sums => sums,
            Self::Pending => {
                let at_once = segments_at_once(sums, one_segment, split.segments);
                (split.segments / at_once).ilog2() as usize * rows * hidden * 4
            }
        }
    }
}

/// Segments whose sums have room at once: a power of two, so that they are a whole subtree.
pub(super) fn segments_at_once(bytes: usize, one_segment: usize, segments: usize) -> usize {
    let mut at_once = segments;
    while at_once > 1 && at_once * one_segment > bytes {
        at_once /= 2;
    }
    at_once
}

impl ExpertWorkspace {
    /// Grows to what a layer of this shape needs. Nothing that uses it may be enqueued.
    pub(super) fn grow(
        &mut self,
        context: &Arc<Context>,
        (limits, work): (&BackendLimits, WorkType),
        shape: &ExpertsShape,
        router_parts: usize,
    ) -> Result<(), BackendError> {
        for (array, buffer) in Array::ALL.into_iter().zip(&mut self.buffers) {
            let bytes = array.bytes(shape, (router_parts, self.sums_bytes), limits, work);
            if bytes == 0 || buffer.as_ref().is_some_and(|buffer| buffer.bytes() >= bytes) {
                continue;
            }
            // Both at once may not fit.
            *buffer = None;
            let grown = DeviceBuffer::new(context, bytes);
            *buffer = Some(grown.map_err(|error| backend_error(&error, array.what(), bytes))?);
        }
        Ok(())
    }

    fn buffer(&self, array: Array) -> Option<&DeviceBuffer> {
        self.buffers[array as usize].as_ref()
    }

    /// Where an array begins; 0 where no layer needs it.
    pub(super) fn address(&self, array: Array) -> u64 {
        self.buffer(array).map_or(0, DeviceBuffer::address)
    }

    /// Bytes of an array.
    pub(super) fn bytes_of(&self, array: Array) -> usize {
        self.buffer(array).map_or(0, DeviceBuffer::bytes)
    }

    /// Bytes of all.
    pub(super) fn bytes(&self) -> u64 {
        self.buffers.iter().flatten().map(|buffer| buffer.bytes() as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use oarlock_backend::InnerSplit;

    use super::*;

    #[test]
    fn sums_stay_within_their_bytes_where_they_can() {
        let shape = ExpertsShape {
            num_experts: 128,
            top_k: 8,
            normalize: true,
            hidden: 2048,
            feed_forward: 768,
            split: InnerSplit { segments: 8 },
        };
        let bytes = |max_tokens, array: Array| {
            let limits =
                BackendLimits { max_tokens, max_gathered: 1, max_chunks: 1, max_positions: 1 };
            array.bytes(&shape, (1, SUMS_BYTES), &limits, WorkType::Bf16)
        };
        // 64 KiB of one row and segment: all, two and one segment at once.
        assert_eq!(bytes(64, Array::Sums), (64 * 8) << 16);
        assert_eq!(bytes(64, Array::Pending), 0);
        assert_eq!(bytes(2048, Array::Sums), SUMS_BYTES);
        assert_eq!(bytes(2048, Array::Pending), 2 * 2048 * 2048 * 4);
        assert_eq!(bytes(8192, Array::Sums), 8192 << 16);
        assert_eq!(bytes(8192, Array::Pending), 3 * 8192 * 2048 * 4);
        // A step of fewer rows has more of them in the same memory.
        assert_eq!(segments_at_once(SUMS_BYTES, 2048 << 16, 8), 2);
        assert_eq!(segments_at_once(SUMS_BYTES, 1000 << 16, 8), 4);
        assert_eq!(segments_at_once(SUMS_BYTES, 512 << 16, 8), 8);
    }
}
