//! `out = input * weight^T + bias`: activations are converted once, then every thread computes its
//! tiles of outputs for all rows. An output's sum has one order, whatever the rows and threads.

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod bf16;
mod f32;
mod portable;

pub(crate) use activations::{ActivationBuffers, BlockMeta, MAX_GROUP, group_len};
pub(crate) use f32::tile as f32_tile;

use std::ops::Range;

use crate::InstructionSet;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use crate::amx::{HardwareTiles, TILE_ROWS, TileUnit as _};
use crate::buffer::SharedSlice;
use crate::isa::Isa;
use crate::pack::{
    BLOCK, CpuWeight, PackedPart, PartValues, QuantFormat, QuantPart, QuantTile, TILE,
};
use crate::threads::{ThreadPool, quarter_share};

use activations::bf16_blocks;

/// Rows whose activations stay in the cache while a thread goes through its tiles.
pub(crate) const PANEL: usize = 64;
/// Multiplications of a panel between two signs of progress: milliseconds at the slowest, and enough not
/// to be felt.
pub(crate) const WORK_PER_SIGN: usize = 1 << 23;
/// Segments of an inner sum at most.
pub(crate) const MAX_SEGMENTS: usize = 8;

/// Sums of one tile for the rows of one group.
pub(crate) type TileSums = [[f32; TILE]; MAX_GROUP];

/// One group of rows of the int8 activations: `[block][row]`.
#[derive(Clone, Copy)]
pub(crate) struct QuantRows<'a> {
    /// 1, 2, 4 or 8.
    pub(crate) rows: usize,
    /// `[block][row][32]`.
    pub(crate) values: &'a [i8],
    /// `[block][row]`.
    pub(crate) meta: &'a [BlockMeta],
}

/// Input and output of one linear layer.
pub(crate) struct LinearCall<'a> {
    pub(crate) weight: &'a CpuWeight,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) input: &'a [f32],
    pub(crate) out: &'a mut [f32],
    pub(crate) rows: usize,
}

/// The tile unit of a thread, configured while it works on one range of tiles.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) type Unit = HardwareTiles;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(crate) type Unit = std::convert::Infallible;

/// `None` where the instruction set has no tiles.
pub(crate) fn configured_unit(isa: Isa) -> Option<Unit> {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if isa.get() == InstructionSet::Amx {
        // SAFETY: an `Isa` is only made of an instruction set that the CPU has and the kernel granted;
        // a thread works on one range at a time, and the unit lives no longer than that.
        return Some(unsafe { HardwareTiles::new() });
    }
    let _ = isa;
    None
}

/// Computes a linear layer.
pub(crate) fn linear(
    isa: Isa,
    pool: &mut ThreadPool,
    buffers: &mut ActivationBuffers,
    call: LinearCall<'_>,
) -> Result<(), String> {
    let LinearCall { weight, bias, input, out, rows } = call;
    assert_eq!(input.len(), rows * weight.columns, "input of the layer");
    assert_eq!(out.len(), rows * weight.outputs, "output of the layer");
    assert!(bias.is_none_or(|bias| bias.len() == weight.outputs), "bias of the layer");
    let (int8, bf16) = weight.takes();
    buffers.convert(isa, pool, input, rows, weight, (int8, bf16))?;
    let out = SharedSlice::new(out);
    let threads = pool.threads();
    let buffers = &*buffers;
    let progress = pool.progress();
    let tiles_per_sign = (WORK_PER_SIGN / (PANEL * TILE * weight.columns)).max(1);
    pool.run(weight.tiles(), quarter_share(weight.tiles(), threads), &|_, tiles| {
        let unit = configured_unit(isa);
        for first_row in (0..rows).step_by(PANEL) {
            let rows = first_row..rows.min(first_row + PANEL);
            let products = Products { isa, unit: &unit, weight, input, buffers };
            let panel = Panel { products, bias, rows, out };
            // A range of a wide layer and many rows may take seconds.
            for first in tiles.clone().step_by(tiles_per_sign) {
                panel.run(first..tiles.end.min(first + tiles_per_sign));
                if let Some(progress) = &progress {
                    progress.advance();
                }
            }
        }
    })
}

/// The rows of one panel.
pub(crate) struct Panel<'a> {
    pub(crate) products: Products<'a>,
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) rows: Range<usize>,
    pub(crate) out: SharedSlice<f32>,
}

impl Panel<'_> {
    /// Computes tiles, counted through all parts.
    pub(crate) fn run(&self, tiles: Range<usize>) {
        let mut sums = [[[0.0; TILE]; MAX_GROUP]; MAX_SEGMENTS];
        let mut first_tile = 0;
        for part in &self.products.weight.parts {
            let part_tiles = part.outputs.div_ceil(TILE);
            let from = tiles.start.clamp(first_tile, first_tile + part_tiles);
            let to = tiles.end.clamp(first_tile, first_tile + part_tiles);
            for tile in from..to {
                self.tile(part, tile - first_tile, &mut sums);
            }
            first_tile += part_tiles;
        }
    }

    fn tile(&self, part: &PackedPart, tile: usize, sums: &mut [TileSums; MAX_SEGMENTS]) {
        let mut row = self.rows.start;
        while row < self.rows.end {
            let group = group_len(self.rows.end - row);
            self.products.sums(part, tile, (row, group), sums);
            join_segments(self.products.weight.segments, |i| {
                for row in 0..group {
                    for lane in 0..TILE {
                        sums[i][row][lane] = sums[2 * i][row][lane] + sums[2 * i + 1][row][lane];
                    }
                }
            });
            self.store(part, tile, row, &sums[0][..group]);
            row += group;
        }
    }

    /// Adds the bias and writes the valid outputs of a tile.
    fn store(&self, part: &PackedPart, tile: usize, first_row: usize, sums: &[[f32; TILE]]) {
        let output = part.first_output + tile * TILE;
        let valid = TILE.min(part.outputs - tile * TILE);
        for (row, sums) in (first_row..).zip(sums) {
            let at = row * self.products.weight.outputs + output;
            // SAFETY: each tile is computed by one thread, and the output outlives the job.
            let out = unsafe { self.out.range(at..at + valid) };
            match self.bias {
                Some(bias) => {
                    for ((out, sum), bias) in out.iter_mut().zip(sums).zip(&bias[output..]) {
                        *out = sum + bias;
                    }
                }
                None => out.copy_from_slice(&sums[..valid]),
            }
        }
    }
}

/// A layer and its converted input, as one thread multiplies them.
pub(crate) struct Products<'a> {
    pub(crate) isa: Isa,
    pub(crate) unit: &'a Option<Unit>,
    pub(crate) weight: &'a CpuWeight,
    /// What `buffers` were converted from; read by parts in float32 only.
    pub(crate) input: &'a [f32],
    pub(crate) buffers: &'a ActivationBuffers,
}

impl Products<'_> {
    /// Sums of each segment of one tile for a group of rows (first, length).
    pub(crate) fn sums(
        &self,
        part: &PackedPart,
        tile: usize,
        (row, group): (usize, usize),
        sums: &mut [TileSums; MAX_SEGMENTS],
    ) {
        for (segment, sums) in sums[..self.weight.segments].iter_mut().enumerate() {
            let sums = &mut sums[..group];
            sums.fill([0.0; TILE]);
            match &part.values {
                PartValues::Quantized(values) => {
                    self.quantized(values, tile, segment, row, sums);
                }
                PartValues::Bf16(values) => {
                    let blocks = bf16_blocks(self.weight);
                    let weights =
                        &values.tile(tile)[segment * blocks * BLOCK / 2..][..blocks * BLOCK / 2];
                    self.bf16(weights, segment, row, sums);
                }
                PartValues::F32(values) => {
                    let columns = self.weight.columns;
                    let width = columns / self.weight.segments;
                    let weights = &values.tile(tile)[segment * width..][..width];
                    let input = &self.input[row * columns + segment * width..];
                    f32::tile(self.isa, weights, (input, columns), sums);
                }
            }
        }
    }

    fn quantized(
        &self,
        part: &QuantPart,
        tile: usize,
        segment: usize,
        row: usize,
        sums: &mut [[f32; TILE]],
    ) {
        let blocks = part.blocks() / self.weight.segments;
        let range = segment * blocks..(segment + 1) * blocks;
        let rows = self.buffers.quant_rows(row, sums.len(), part.blocks());
        quantized_tile(self.isa, part.format(), &part.tile(tile), range, rows, sums);
    }

    fn bf16(&self, weights: &[[u32; TILE]], segment: usize, row: usize, sums: &mut [[f32; TILE]]) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if let Some(unit) = self.unit
            && let Some(sums) = sums.first_chunk_mut::<TILE_ROWS>()
        {
            let (pairs, distance) = self.buffers.bf16_pairs(row, segment, self.weight);
            return unit.bf16_blocks(pairs, distance, weights, sums);
        }
        let input = self.buffers.bf16_rows(row, sums.len(), segment, self.weight);
        bf16::tile(self.isa, weights, input, sums);
    }
}

/// The fixed tree of neighbors, `((s0 + s1) + (s2 + s3)) + ...`, into the first segment: `join(i)` makes segment
/// `i` the sum of `2 i` and `2 i + 1`.
#[inline(always)]
pub(crate) fn join_segments(segments: usize, mut join: impl FnMut(usize)) {
    let mut count = segments;
    while count > 1 {
        count /= 2;
        (0..count).for_each(&mut join);
    }
}

/// Sums of one tile over a range of blocks, from zero, for one group of rows.
fn quantized_tile(
    isa: Isa,
    format: QuantFormat,
    tile: &QuantTile<'_>,
    blocks: Range<usize>,
    rows: QuantRows<'_>,
    sums: &mut [[f32; TILE]],
) {
    #[cfg(target_arch = "x86_64")]
    match isa.get() {
        InstructionSet::Portable => {}
        // SAFETY: an `Isa` is only made of an instruction set that the CPU has.
        InstructionSet::Avx2 => return unsafe { avx2::tile(format, tile, blocks, rows, sums) },
        // Tiles would be slower: every block's products leave them through memory to be scaled.
        InstructionSet::Avx512 | InstructionSet::Amx => {
            // SAFETY: as above.
            return unsafe { avx512::tile(format, tile, blocks, rows, sums) };
        }
    }
    let _ = isa;
    portable::tile(format, tile, blocks, rows, sums);
}

#[cfg(test)]
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tests {
    use super::*;
    use crate::Dtype;
    use crate::amx::SoftwareTiles;
    use oarlock_backend::quant::{SplitMix, random_row};
    use oarlock_backend::{InnerSplit, WeightKind, WeightView};

    /// One tile of random weights and eight random rows.
    struct Case {
        weight: CpuWeight,
        buffers: ActivationBuffers,
    }

    impl Case {
        fn new(kind: WeightKind, isa: Isa) -> Self {
            let mut pool = ThreadPool::new(1).unwrap();
            let columns = 1024;
            let data: Vec<u8> =
                (0..TILE as u64).flat_map(|row| random_row(kind, columns, 0.1, row)).collect();
            let view = WeightView::whole("w", kind, TILE, columns, &data);
            let weight =
                CpuWeight::pack(&[view], InnerSplit::WHOLE, Dtype::Auto, isa, &mut pool).unwrap();
            let mut buffers = ActivationBuffers::new(TILE_ROWS).unwrap();
            buffers.reserve(&weight).unwrap();
            let mut random = SplitMix(2);
            let input: Vec<f32> = (0..TILE_ROWS * columns).map(|_| random.uniform()).collect();
            buffers.convert(isa, &mut pool, &input, TILE_ROWS, &weight, weight.takes()).unwrap();
            Self { weight, buffers }
        }
    }

    /// The model of the tile unit against the portable kernel; the unit itself, where there is one, is in
    /// `tests/`.
    #[test]
    fn tiles_give_the_portable_bits() {
        let portable = Isa::new(InstructionSet::Portable).unwrap();
        let Case { weight, buffers } = Case::new(WeightKind::F32, portable);
        let mut got = [[0.0; TILE]; TILE_ROWS];
        let mut want = got;
        let PartValues::Bf16(part) = &weight.parts[0].values else {
            panic!("float weights are packed as bfloat16");
        };
        let (values, distance) = buffers.bf16_rows(0, TILE_ROWS, 0, &weight);
        bf16::tile(portable, part.tile(0), (values, distance), &mut want);
        let pairs: Vec<u32> = values
            .as_chunks::<2>()
            .0
            .iter()
            .map(|[even, odd]| even.to_bits() >> 16 | odd.to_bits())
            .collect();
        SoftwareTiles.bf16_blocks(&pairs, distance / 2, part.tile(0), &mut got);
        let bits = |sums: [[f32; TILE]; TILE_ROWS]| sums.map(|row| row.map(f32::to_bits));
        assert_eq!(bits(got), bits(want));
    }
}
