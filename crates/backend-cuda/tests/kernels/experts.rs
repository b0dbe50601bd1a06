//! Layers of experts: the bits of linear layers, whatever tiles and ranges of segments they are done in.

use oarlock_backend::{InnerSplit, WeightKind, WeightView};
use oarlock_backend_cuda::kernels::launch::{self, WorkType};
use oarlock_backend_cuda::kernels::{ExpertLinearParams, LinearParams};
use oarlock_backend_cuda::pack::{PackedLinear, PackedPart, pack_linear};

use crate::device::{Device, assert_same, has_kernels};
use crate::linear::{Layer, random_values, run as run_linear};
use crate::routing::{plan, random_choices};

/// Experts of one shape.
pub(crate) struct Experts {
    kind: WeightKind,
    outputs: usize,
    columns: usize,
    segments: usize,
    data: Vec<Vec<u8>>,
}

/// How they are computed.
#[derive(Clone, Copy)]
pub(crate) struct Way {
    pub(crate) tile_rows: u32,
    /// Segments of one launch.
    pub(crate) at_once: usize,
    /// Inputs are of rows, or of assignments.
    pub(crate) by_rows: bool,
}

impl Experts {
    pub(crate) fn new(
        kind: WeightKind,
        count: usize,
        (outputs, columns, segments): (usize, usize, usize),
    ) -> Self {
        let row = |expert: usize, row: usize| {
            let seed = (1000 * expert + row) as u64;
            oarlock_backend::quant::random_row(kind, columns, 0.05, seed)
        };
        let expert =
            |expert| (0..outputs).flat_map(|output| row(expert, output)).collect::<Vec<u8>>();
        let data = (0..count).map(expert).collect();
        Self { kind, outputs, columns, segments, data }
    }

    fn view(&self, expert: usize) -> WeightView<'_> {
        WeightView::whole("test", self.kind, self.outputs, self.columns, &self.data[expert])
    }

    pub(crate) fn packed(&self, work: WorkType) -> Vec<PackedLinear> {
        let split = InnerSplit { segments: self.segments };
        let pack = |expert| pack_linear(&[self.view(expert)], split, work).expect("good weights");
        (0..self.data.len()).map(pack).collect()
    }

    /// `[segments, assignments, outputs]` for rows that take these experts, by one linear layer for each
    /// segment of each expert. `input` has a row for each of the step's, or for each assignment.
    fn want(
        &self,
        device: &mut Device,
        work: WorkType,
        input: &[f32],
        (experts, top_k): (&[u32], usize),
    ) -> Vec<f32> {
        let by_rows = input.len() / self.columns * top_k == experts.len() && top_k > 1;
        let mut order: Vec<usize> = (0..experts.len()).collect();
        order.sort_by_key(|choice| experts[*choice]);
        let width = self.columns / self.segments;
        let mut want = Vec::new();
        for segment in 0..self.segments {
            let range = segment * width..(segment + 1) * width;
            let mut place = 0;
            for own in order.chunk_by(|a, b| experts[*a] == experts[*b]) {
                let view = self.view(experts[own[0]] as usize).with_columns(range.clone());
                let packed = pack_linear(&[view], InnerSplit::WHOLE, work).expect("good weights");
                let mut rows = Vec::new();
                for choice in own {
                    let row = if by_rows { choice / top_k } else { place };
                    rows.extend_from_slice(&input[row * self.columns..][range.clone()]);
                    place += 1;
                }
                want.extend(run_linear(device, &packed, work, &rows, None, 8));
            }
        }
        want
    }
}

/// `[segments, assignments, outputs]` by the entries of experts.
pub(crate) fn run(
    device: &mut Device,
    packed: &[PackedLinear],
    work: WorkType,
    input: &[f32],
    (experts, top_k): (&[u32], usize),
    way: Way,
) -> Vec<f32> {
    let layer = &packed[0];
    let plan = plan(device, experts, (packed.len(), top_k), way.tile_rows);
    let segment_values = plan.assignments * layer.outputs;
    let out = device.allocate(layer.segments * segment_values * 4);
    let from = device.upload_work(work, input);
    for (index, part) in layer.parts.iter().enumerate() {
        // All experts of a plane, one after the other.
        let plane = |of: fn(&PackedPart) -> &Vec<u8>| {
            let bytes: Vec<u8> =
                packed.iter().flat_map(|layer| of(&layer.parts[index]).clone()).collect();
            if bytes.is_empty() { 0 } else { device.upload(&bytes) }
        };
        let linear = LinearParams {
            input: from,
            weight: plane(|part| &part.weight),
            scales: plane(|part| &part.scales),
            sub_scales: plane(|part| &part.sub_scales),
            outputs: part.outputs as u32,
            columns: layer.columns as u32,
            segments: layer.segments as u32,
            first_sub_block: part.first_sub_block,
            out_is_float: 1,
            out_stride: layer.outputs as u32,
            ..LinearParams::default()
        };
        for first_segment in (0..layer.segments).step_by(way.at_once) {
            let at = first_segment * segment_values + part.first_output;
            let params = ExpertLinearParams {
                linear: LinearParams { out: out + at as u64 * 4, ..linear },
                rows: if way.by_rows { plan.params.rows } else { 0 },
                tiles: plan.params.tiles,
                num_tiles: plan.params.counts + 4,
                weight_bytes: part.weight.len() as u64,
                scale_bytes: part.scales.len() as u64,
                sub_scale_bytes: part.sub_scales.len() as u64,
                segment_values: segment_values as u64,
                first_segment: first_segment as u32,
                end_segment: (first_segment + way.at_once) as u32,
            };
            let tiles = plan.num_tiles as u32 + 3;
            let launch = launch::experts(part.format, way.tile_rows, tiles, part.outputs as u32);
            device.run(&launch, &params);
        }
    }
    device.read(out, layer.segments * segment_values)
}

#[test]
fn every_tile_and_range_has_the_bits_of_linear_layers() {
    if !has_kernels() {
        return;
    }
    for (seed, (kind, shape, rows)) in (0..).zip([
        (WeightKind::Bf16, (40, 100, 1), 23),
        (WeightKind::Bf16, (33, 40, 8), 9),
        (WeightKind::Q8_0, (48, 512, 8), 40),
        (WeightKind::Q8_0, (33, 96, 1), 5),
        (WeightKind::Q4K, (70, 768, 8), 23),
        (WeightKind::Q6K, (24, 256, 4), 23),
    ]) {
        let (count, top_k) = (6, 2);
        let layer = Experts::new(kind, count, shape);
        let packed = layer.packed(WorkType::Bf16);
        let mut experts = random_choices(rows, (count, top_k), seed);
        if rows == 40 {
            // Two for all rows, none for the others.
            experts = [1, 4].repeat(rows);
        }
        for by_rows in [true, false] {
            let input_rows = if by_rows { rows } else { experts.len() };
            let input = random_values(input_rows * layer.columns, 5);
            let mut device = Device::new(seed);
            let choices = (&experts[..], top_k);
            let want = layer.want(&mut device, WorkType::Bf16, &input, choices);
            for (tile_rows, at_once) in [(8, layer.segments), (32, 1), (64, layer.segments)] {
                let way = Way { tile_rows, at_once, by_rows };
                let got = run(&mut device, &packed, WorkType::Bf16, &input, choices, way);
                let what = format!("{kind:?} {shape:?}, {tile_rows} rows, {at_once} at once");
                assert_same(&got, &want, &what);
            }
        }
    }
}

#[test]
fn float32_has_the_bits_of_linear_layers() {
    if !has_kernels() {
        return;
    }
    for (seed, (kind, shape)) in
        (0..).zip([(WeightKind::F32, (40, 100, 4)), (WeightKind::Q4K, (33, 256, 1))])
    {
        let layer = Experts::new(kind, 5, shape);
        let packed = layer.packed(WorkType::F32);
        let experts = random_choices(41, (5, 3), seed);
        let input = random_values(41 * layer.columns, 9);
        let mut device = Device::new(seed);
        let want = layer.want(&mut device, WorkType::F32, &input, (&experts, 3));
        for at_once in [1, layer.segments] {
            let way = Way { tile_rows: 32, at_once, by_rows: true };
            let got = run(&mut device, &packed, WorkType::F32, &input, (&experts, 3), way);
            assert_same(&got, &want, &format!("{kind:?}, {at_once} at once"));
        }
    }
}

/// The linear layers that are compared with are those of other tests.
#[test]
fn one_expert_is_a_linear_layer() {
    if !has_kernels() {
        return;
    }
    let (rows, outputs, columns) = (11, 40, 192);
    let layer = Layer::new(WeightKind::Bf16, outputs, columns, 1).packed(WorkType::Bf16);
    let input = random_values(rows * columns, 2);
    let mut device = Device::new(1);
    let want = run_linear(&mut device, &layer, WorkType::Bf16, &input, None, 32);
    let way = Way { tile_rows: 32, at_once: 1, by_rows: true };
    let experts = vec![0; rows];
    let got = run(&mut device, &[layer], WorkType::Bf16, &input, (&experts, 1), way);
    assert_same(&got, &want, "the only expert");
}
