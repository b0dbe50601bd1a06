//! Linear layers on the device.

use oarlock_backend::{BackendError, InnerSplit, WeightView};

use crate::backend::CudaBackend;
use crate::driver::DeviceBuffer;
use crate::kernels::LinearParams;
use crate::kernels::launch::{self, DeviceShape, Launch, LinearFormat, WorkType};
use crate::pack::{PackedPart, pack_linear};

/// A packed linear layer.
#[derive(Debug)]
pub struct CudaWeight {
    pub(crate) columns: usize,
    pub(crate) outputs: usize,
    segments: usize,
    pub(crate) parts: Vec<Part>,
}

/// What a linear layer reads and writes on the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinearAddresses {
    /// `[rows, outputs]` of `out_element`.
    pub(crate) out: u64,
    pub(crate) out_element: WorkType,
    /// `[rows, columns]` in the working type.
    pub(crate) input: u64,
    /// `[outputs]`, float32.
    pub(crate) bias: Option<u64>,
    /// `[1]`.
    pub(crate) num_rows: u64,
}

/// Outputs of one format: one launch.
#[derive(Debug)]
pub(crate) struct Part {
    format: LinearFormat,
    first_output: usize,
    outputs: usize,
    first_sub_block: u32,
    weight: DeviceBuffer,
    scales: Option<DeviceBuffer>,
    sub_scales: Option<DeviceBuffer>,
}

impl CudaWeight {
    /// Packs a layer and sends it to the device.
    pub(crate) fn pack(
        backend: &mut CudaBackend,
        views: &[WeightView<'_>],
        split: InnerSplit,
    ) -> Result<Self, BackendError> {
        let packed = pack_linear(views, split, backend.work)?;
        let name = views[0].name;
        let parts = packed.parts.iter().map(|part| Part::send(backend, name, part));
        Ok(Self {
            columns: packed.columns,
            outputs: packed.outputs,
            segments: packed.segments,
            parts: parts.collect::<Result<_, _>>()?,
        })
    }

    /// The launch of one part over `rows` rows.
    pub(crate) fn launch(
        &self,
        part: &Part,
        device: DeviceShape,
        rows: u32,
        at: LinearAddresses,
    ) -> (Launch, LinearParams) {
        let Part { format, first_output, outputs, first_sub_block, .. } = *part;
        let address =
            |buffer: &Option<DeviceBuffer>| buffer.as_ref().map_or(0, DeviceBuffer::address);
        let params = LinearParams {
            out: at.out + (first_output * at.out_element.bytes()) as u64,
            input: at.input,
            weight: part.weight.address(),
            scales: address(&part.scales),
            sub_scales: address(&part.sub_scales),
            bias: at.bias.map_or(0, |bias| bias + first_output as u64 * 4),
            num_rows: at.num_rows,
            outputs: outputs as u32,
            columns: self.columns as u32,
            segments: self.segments as u32,
            first_sub_block,
            out_is_float: (at.out_element == WorkType::F32).into(),
            out_stride: self.outputs as u32,
        };
        let segments = self.segments as u32;
        (launch::linear_on(device, format, rows, outputs as u32, segments), params)
    }
}

impl Part {
    fn send(
        backend: &mut CudaBackend,
        name: &str,
        part: &PackedPart,
    ) -> Result<Self, BackendError> {
        let mut plane =
            |bytes: &[u8]| (!bytes.is_empty()).then(|| backend.upload(name, bytes)).transpose();
        let (scales, sub_scales) = (plane(&part.scales)?, plane(&part.sub_scales)?);
        Ok(Self {
            format: part.format,
            first_output: part.first_output,
            outputs: part.outputs,
            first_sub_block: part.first_sub_block,
            weight: backend.upload(name, &part.weight)?,
            scales,
            sub_scales,
        })
    }
}
