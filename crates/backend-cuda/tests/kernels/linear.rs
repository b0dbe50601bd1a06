//! Linear layers: near a float64 sum of the same operands, and the same bits for every number of rows.

use oarlock_backend::quant::{SplitMix, dequantize_row, random_row};
use oarlock_backend::{InnerSplit, WeightKind, WeightView};
use oarlock_backend_cuda::kernels::LinearParams;
use oarlock_backend_cuda::kernels::launch::{self, DeviceShape, LinearFormat, WorkType};
use oarlock_backend_cuda::pack::{PackedLinear, pack_linear};

use crate::device::{Device, assert_near, assert_same, has_kernels, rounded};

pub(crate) fn random_values(len: usize, seed: u64) -> Vec<f32> {
    let mut random = SplitMix(seed);
    (0..len).map(|_| random.uniform() + random.uniform()).collect()
}

pub(crate) struct Layer {
    kind: WeightKind,
    outputs: usize,
    columns: usize,
    segments: usize,
    data: Vec<u8>,
}

impl Layer {
    pub(crate) fn new(kind: WeightKind, outputs: usize, columns: usize, segments: usize) -> Self {
        let row = |row| random_row(kind, columns, 0.05, 100 + row as u64);
        Self { kind, outputs, columns, segments, data: (0..outputs).flat_map(row).collect() }
    }

    pub(crate) fn packed(&self, work: WorkType) -> PackedLinear {
        let view = WeightView::whole("test", self.kind, self.outputs, self.columns, &self.data);
        pack_linear(&[view], InnerSplit { segments: self.segments }, work).expect("good weights")
    }

    /// Sums in float64 of operands as the kernel has them.
    fn want(&self, work: WorkType, input: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let input = rounded(work, input);
        let mut out = vec![0.0; input.len() / self.columns * self.outputs];
        let bytes = self.data.len() / self.outputs;
        for output in 0..self.outputs {
            let mut row = vec![0.0; self.columns];
            dequantize_row(self.kind, &self.data[output * bytes..][..bytes], &mut row)
                .expect("whole blocks");
            let row = rounded(work, &row);
            for (i, input) in input.chunks(self.columns).enumerate() {
                let sum: f64 =
                    row.iter().zip(input).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                let bias = bias.map_or(0.0, |bias| f64::from(bias[output]));
                out[i * self.outputs + output] = (sum + bias) as f32;
            }
        }
        out
    }
}

/// Runs a packed layer; `tile_rows` chooses the kernel.
pub(crate) fn run(
    device: &mut Device,
    layer: &PackedLinear,
    work: WorkType,
    input: &[f32],
    bias: Option<&[f32]>,
    tile_rows: u32,
) -> Vec<f32> {
    let rows = (input.len() / layer.columns) as u32;
    let num_rows = device.upload(&[rows]);
    let from = device.upload_work(work, input);
    let out = device.allocate(rows as usize * layer.outputs * 4);
    let bias = bias.map_or(0, |bias| device.upload(bias));
    // Few outputs fill it, so that the rows alone choose.
    let small = DeviceShape { multiprocessors: 1, ..DeviceShape::default() };
    for part in &layer.parts {
        let plane = |bytes: &[u8]| if bytes.is_empty() { 0 } else { device.upload(bytes) };
        let first = part.first_output as u64 * 4;
        let params = LinearParams {
            out: out + first,
            input: from,
            weight: plane(&part.weight),
            scales: plane(&part.scales),
            sub_scales: plane(&part.sub_scales),
            bias: if bias == 0 { 0 } else { bias + first },
            num_rows,
            outputs: part.outputs as u32,
            columns: layer.columns as u32,
            segments: layer.segments as u32,
            first_sub_block: part.first_sub_block,
            out_is_float: 1,
            out_stride: layer.outputs as u32,
        };
        let chosen = launch::linear_on(
            small,
            part.format,
            tile_rows,
            part.outputs as u32,
            layer.segments as u32,
        );
        // As many blocks as the rows need, whatever tile was chosen.
        let grid = [rows.div_ceil(8), chosen.grid[1], 1];
        device.run(&launch::Launch { grid, ..chosen }, &params);
    }
    device.read(out, rows as usize * layer.outputs)
}

#[test]
fn every_format_and_tile_is_near_and_agrees() {
    if !has_kernels() {
        return;
    }
    for (i, (kind, outputs, columns, segments)) in [
        (WeightKind::Bf16, 40, 100, 1),
        (WeightKind::Bf16, 64, 256, 2),
        (WeightKind::F32, 17, 90, 2),
        (WeightKind::Q8_0, 48, 512, 8),
        (WeightKind::Q8_0, 33, 96, 1),
        (WeightKind::Q4K, 70, 768, 8),
        (WeightKind::Q4K, 16, 256, 1),
        (WeightKind::Q6K, 24, 256, 4),
    ]
    .into_iter()
    .enumerate()
    {
        let layer = Layer::new(kind, outputs, columns, segments);
        let packed = layer.packed(WorkType::Bf16);
        let input = random_values(70 * columns, 7);
        let bias = random_values(outputs, 8);
        let bias = (i % 2 == 0).then_some(bias.as_slice());
        let what = format!("{kind:?} {outputs}x{columns} in {segments}");
        let mut device = Device::new(i as u64);
        let mut rows_done: Option<Vec<f32>> = None;
        for (rows, tile_rows) in [(70, 65), (70, 32), (9, 8), (1, 8), (33, 64)] {
            let input = &input[..rows * columns];
            let got = run(&mut device, &packed, WorkType::Bf16, input, bias, tile_rows);
            let want = layer.want(WorkType::Bf16, input, bias);
            assert_near(&got, &want, 1e-6, &format!("{what}, {rows} rows"));
            let first = rows_done.get_or_insert_with(|| got.clone());
            assert_same(&got, &first[..got.len()], &format!("{what}, {rows} rows, other tile"));
        }
    }
}

#[test]
fn float32_is_exact() {
    if !has_kernels() {
        return;
    }
    for (kind, outputs, columns, segments) in
        [(WeightKind::F32, 40, 100, 4), (WeightKind::Q4K, 33, 256, 1), (WeightKind::F16, 3, 33, 1)]
    {
        let layer = Layer::new(kind, outputs, columns, segments);
        let packed = layer.packed(WorkType::F32);
        assert_eq!(packed.parts[0].format, LinearFormat::F32);
        let input = random_values(35 * columns, 9);
        let mut device = Device::new(3);
        let got = run(&mut device, &packed, WorkType::F32, &input, None, 35);
        let want = layer.want(WorkType::F32, &input, None);
        assert_near(&got, &want, 1e-6, &format!("{kind:?}"));
    }
}

/// Ranks that have some of the segments each, and what a sum over ranks makes of them.
#[test]
fn shards_join_to_the_whole() {
    if !has_kernels() {
        return;
    }
    for (kind, columns, segments) in
        [(WeightKind::Bf16, 120, 8), (WeightKind::Q8_0, 768, 8), (WeightKind::Q4K, 1280, 4)]
    {
        let outputs = 33;
        let layer = Layer::new(kind, outputs, columns, segments);
        let input = random_values(9 * columns, 11);
        let mut device = Device::new(12);
        let packed = layer.packed(WorkType::Bf16);
        let whole = run(&mut device, &packed, WorkType::Bf16, &input, None, 9);
        for ranks in [2, 4] {
            let width = columns / ranks;
            let mut partial: Vec<Vec<f32>> = Vec::new();
            for rank in 0..ranks {
                let range = rank * width..(rank + 1) * width;
                let view = WeightView::whole("test", kind, outputs, columns, &layer.data)
                    .with_columns(range.clone());
                let split = InnerSplit { segments: segments / ranks };
                let shard = pack_linear(&[view], split, WorkType::Bf16).expect("good weights");
                let mine: Vec<f32> =
                    input.chunks(columns).flat_map(|row| row[range.clone()].to_vec()).collect();
                partial.push(run(&mut device, &shard, WorkType::Bf16, &mine, None, 9));
            }
            while partial.len() > 1 {
                partial = partial
                    .chunks(2)
                    .map(|pair| pair[0].iter().zip(&pair[1]).map(|(a, b)| a + b).collect())
                    .collect();
            }
            assert_same(&partial[0], &whole, &format!("{kind:?} over {ranks} ranks"));
        }
    }
}
