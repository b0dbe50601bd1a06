//! One linear layer of all experts.

use oarlock_backend::BackendError;

use crate::backend::CudaBackend;
use crate::driver::DeviceBuffer;
use crate::kernels::launch;
use crate::kernels::{ExpertLinearParams, Launch, LinearFormat, LinearParams, WorkType};
use crate::pack::{PackedLinear, PackedPart};

/// Packed weights of one shape, expert by expert in each plane.
#[derive(Debug)]
pub(super) struct ExpertLayer {
    columns: usize,
    outputs: usize,
    segments: usize,
    parts: Vec<ExpertPart>,
}

/// Outputs of one format: one launch.
#[derive(Debug)]
struct ExpertPart {
    format: LinearFormat,
    first_output: usize,
    outputs: usize,
    first_sub_block: u32,
    /// Values or quants, scales, sub-scales.
    planes: [Option<Plane>; 3],
}

/// One plane of all experts.
#[derive(Debug)]
struct Plane {
    values: DeviceBuffer,
    /// Of one expert.
    bytes: usize,
}

/// What a layer of experts reads and writes on the device; assignments are as the plan lists them.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExpertAddresses {
    /// `[assignments, outputs]` of `out_element`, for each segment that is summed.
    pub(super) out: u64,
    pub(super) out_element: WorkType,
    /// Values from one segment's sums to the next's.
    pub(super) segment_values: u64,
    /// In the working type: rows that `rows` names, or one for each assignment.
    pub(super) input: u64,
    pub(super) rows: Option<u64>,
    pub(super) tiles: u64,
    /// `[1]`.
    pub(super) num_tiles: u64,
}

fn planes(part: &PackedPart) -> [&[u8]; 3] {
    [&part.weight, &part.scales, &part.sub_scales]
}

impl ExpertLayer {
    /// Memory for so many experts that are packed like this one.
    pub(super) fn new(
        backend: &mut CudaBackend,
        packed: &PackedLinear,
        num_experts: usize,
        name: &str,
    ) -> Result<Self, BackendError> {
        let what = format!("{num_experts} experts like {name}");
        let mut plane = |bytes: &[u8]| -> Result<Option<Plane>, BackendError> {
            if bytes.is_empty() {
                return Ok(None);
            }
            let values = backend.buffer(&what, bytes.len() * num_experts)?;
            Ok(Some(Plane { values, bytes: bytes.len() }))
        };
        let parts = packed.parts.iter().map(|part| {
            let [weight, scales, sub_scales] = planes(part);
            Ok(ExpertPart {
                format: part.format,
                first_output: part.first_output,
                outputs: part.outputs,
                first_sub_block: part.first_sub_block,
                planes: [plane(weight)?, plane(scales)?, plane(sub_scales)?],
            })
        });
        Ok(Self {
            columns: packed.columns,
            outputs: packed.outputs,
            segments: packed.segments,
            parts: parts.collect::<Result<_, BackendError>>()?,
        })
    }

    /// Sends an expert to its place.
    pub(super) fn write(
        &self,
        backend: &mut CudaBackend,
        packed: &PackedLinear,
        index: usize,
        name: &str,
    ) -> Result<(), BackendError> {
        let place = |part: &ExpertPart| (part.format, part.first_output, part.first_sub_block);
        let packed_place =
            |part: &PackedPart| (part.format, part.first_output, part.first_sub_block);
        if !self.parts.iter().map(place).eq(packed.parts.iter().map(packed_place)) {
            let reason = "an expert whose columns begin elsewhere in their blocks".to_owned();
            return Err(BackendError::Weight { name: name.to_owned(), reason });
        }
        for (part, packed) in self.parts.iter().zip(&packed.parts) {
            for (plane, bytes) in part.planes.iter().zip(planes(packed)) {
                if let Some(plane) = plane {
                    assert_eq!(bytes.len(), plane.bytes, "experts of one size");
                    backend.upload_at(name, &plane.values, index * plane.bytes, bytes)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn segments(&self) -> usize {
        self.segments
    }

    /// The launches of a range of the segments over all tiles of a plan.
    pub(super) fn launches(
        &self,
        (tile_rows, tiles): (u32, u32),
        segments: std::ops::Range<usize>,
        at: ExpertAddresses,
    ) -> impl Iterator<Item = (Launch, ExpertLinearParams)> {
        self.parts.iter().map(move |part| {
            let [weight, scales, sub_scales] = &part.planes;
            let address = |plane: &Option<Plane>| {
                plane.as_ref().map_or((0, 0), |plane| (plane.values.address(), plane.bytes as u64))
            };
            let [weight, scales, sub_scales] = [weight, scales, sub_scales].map(address);
            let outputs = part.outputs as u32;
            let linear = LinearParams {
                out: at.out + (part.first_output * at.out_element.bytes()) as u64,
                input: at.input,
                weight: weight.0,
                scales: scales.0,
                sub_scales: sub_scales.0,
                bias: 0,
                num_rows: 0,
                outputs,
                columns: self.columns as u32,
                segments: self.segments as u32,
                first_sub_block: part.first_sub_block,
                out_is_float: (at.out_element == WorkType::F32).into(),
                out_stride: self.outputs as u32,
            };
            let params = ExpertLinearParams {
                linear,
                rows: at.rows.unwrap_or(0),
                tiles: at.tiles,
                num_tiles: at.num_tiles,
                weight_bytes: weight.1,
                scale_bytes: scales.1,
                sub_scale_bytes: sub_scales.1,
                segment_values: at.segment_values,
                first_segment: segments.start as u32,
                end_segment: segments.end as u32,
            };
            (launch::experts(part.format, tile_rows, tiles, outputs), params)
        })
    }
}
