//! Activations as the kernels take them: int8 with a scale per block of 32, or bfloat16.

use bytemuck::{Pod, Zeroable};
use oarlock_backend::BackendError;

use crate::InstructionSet;
use crate::buffer::{AlignedBuffer, SharedSlice};
use crate::isa::{Isa, multiversion};
use crate::lanes::Lanes;
use crate::pack::{BLOCK, CpuWeight, round_to_bf16};
use crate::threads::{ThreadPool, quarter_share};

use super::QuantRows;

/// Rows that a kernel takes at once at most.
pub(crate) const MAX_GROUP: usize = 8;
/// Values below which the caller converts alone: a job for all threads would cost more.
const ALONE: usize = 16 * 1024;

/// Rows of the next group where `rows` are left: 8, 4, 2 or 1.
pub(crate) fn group_len(rows: usize) -> usize {
    if rows >= MAX_GROUP { MAX_GROUP } else { 1 << rows.ilog2() }
}

/// What belongs to 32 int8 activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct BlockMeta {
    /// Value of one unit; NaN where the block holds a NaN or an infinity.
    pub(crate) scale: f32,
    /// Sum of all 32.
    pub(crate) sum: i32,
    /// Sums of the first and the last 16.
    pub(crate) half_sums: [i32; 2],
}

/// Memory for the converted input of a linear layer.
#[derive(Debug)]
pub(crate) struct ActivationBuffers {
    max_rows: usize,
    values: AlignedBuffer<i8>,
    meta: AlignedBuffer<BlockMeta>,
    bf16: AlignedBuffer<f32>,
}

impl ActivationBuffers {
    /// Buffers for `max_rows` rows; [`Self::reserve`] makes them wide enough.
    pub(crate) fn new(max_rows: usize) -> Result<Self, BackendError> {
        Ok(Self {
            max_rows,
            values: AlignedBuffer::zeroed(0, "activations")?,
            meta: AlignedBuffer::zeroed(0, "activations")?,
            bf16: AlignedBuffer::zeroed(0, "activations")?,
        })
    }

    /// Makes room for more rows, as wide as those that there was room for.
    pub(crate) fn raise_max_rows(&mut self, max_rows: usize) -> Result<(), BackendError> {
        let more = |len: usize| (len / self.max_rows.max(1)).saturating_mul(max_rows);
        let (values, meta, bf16) =
            (more(self.values.len()), more(self.meta.len()), more(self.bf16.len()));
        self.values = AlignedBuffer::zeroed(values, "int8 activations")?;
        self.meta = AlignedBuffer::zeroed(meta, "int8 activations")?;
        self.bf16 = AlignedBuffer::zeroed(bf16, "bfloat16 activations")?;
        self.max_rows = max_rows;
        Ok(())
    }

    /// Makes room for the input of a layer.
    pub(crate) fn reserve(&mut self, weight: &CpuWeight) -> Result<(), BackendError> {
        let (int8, bf16) = weight.takes();
        let values = self.max_rows * weight.columns;
        if int8 && values > self.values.len() {
            self.values = AlignedBuffer::zeroed(values, "int8 activations")?;
            self.meta = AlignedBuffer::zeroed(values / BLOCK, "int8 activations")?;
        }
        let padded = self.max_rows * padded_width(weight);
        if bf16 && padded > self.bf16.len() {
            self.bf16 = AlignedBuffer::zeroed(padded, "bfloat16 activations")?;
        }
        Ok(())
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        self.values.bytes() + self.meta.bytes() + self.bf16.bytes()
    }

    /// Converts the input of a layer to what its parts take: (int8, bfloat16).
    pub(crate) fn convert(
        &mut self,
        isa: Isa,
        pool: &mut ThreadPool,
        input: &[f32],
        rows: usize,
        weight: &CpuWeight,
        (int8, bf16): (bool, bool),
    ) -> Result<(), String> {
        let columns = weight.columns;
        let views = self.views(isa, rows, weight, (int8, bf16));
        let convert = |first: usize, end: usize| {
            for row in first..end {
                // SAFETY: whole groups go to one thread.
                unsafe {
                    views.convert(&input[row * columns..][..columns], row, group_of(row, rows));
                };
            }
        };
        if rows * columns <= ALONE {
            convert(0, rows);
            return Ok(());
        }
        // Whole groups go to one thread, since their rows are interleaved.
        let groups = rows.div_ceil(MAX_GROUP);
        let threads = pool.threads();
        pool.run(groups, quarter_share(groups, threads), &|_, groups| {
            convert(groups.start * MAX_GROUP, rows.min(groups.end * MAX_GROUP));
        })
    }

    /// Converts rows that lie anywhere, in these groups (first row, length), which cover rows from 0 on.
    pub(crate) fn convert_groups<'a>(
        &mut self,
        isa: Isa,
        pool: &mut ThreadPool,
        groups: &[(usize, usize)],
        input: &(dyn Fn(usize) -> &'a [f32] + Sync),
        weight: &CpuWeight,
    ) -> Result<(), String> {
        let rows = groups.last().map_or(0, |(first, len)| first + len);
        let views = self.views(isa, rows, weight, weight.takes());
        let threads = pool.threads();
        pool.run(groups.len(), quarter_share(groups.len(), threads), &|_, taken| {
            for &(first, len) in &groups[taken] {
                for row in first..first + len {
                    // SAFETY: whole groups go to one thread.
                    unsafe { views.convert(input(row), row, (first, len)) };
                }
            }
        })
    }

    fn views(
        &mut self,
        isa: Isa,
        rows: usize,
        weight: &CpuWeight,
        (int8, bf16): (bool, bool),
    ) -> ActivationViews {
        assert!(rows <= self.max_rows, "rows within the limits");
        ActivationViews {
            isa,
            columns: weight.columns,
            segment: weight.columns / weight.segments,
            padded: padded_width(weight),
            values: int8
                .then(|| (SharedSlice::new(&mut self.values), SharedSlice::new(&mut self.meta))),
            floats: bf16.then(|| SharedSlice::new(&mut self.bf16)),
        }
    }

    /// The int8 rows of the group that begins at `row`.
    pub(super) fn quant_rows(&self, row: usize, group: usize, blocks: usize) -> QuantRows<'_> {
        QuantRows {
            rows: group,
            values: &self.values[row * blocks * BLOCK..][..group * blocks * BLOCK],
            meta: &self.meta[row * blocks..][..group * blocks],
        }
    }

    /// One segment of the bfloat16 rows of a group, and the distance between rows.
    pub(super) fn bf16_rows(
        &self,
        row: usize,
        group: usize,
        segment: usize,
        weight: &CpuWeight,
    ) -> (&[f32], usize) {
        let padded = padded_width(weight);
        let first = segment * padded / weight.segments;
        (&self.bf16[row * padded + first..(row + group) * padded], padded)
    }

    /// The same for a full group where the instruction set has tiles: words of two columns.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    pub(super) fn bf16_pairs(
        &self,
        row: usize,
        segment: usize,
        weight: &CpuWeight,
    ) -> (&[u32], usize) {
        let padded = padded_width(weight);
        let first = segment * padded / weight.segments / 2;
        let group = &self.bf16[row * padded..(row + MAX_GROUP) * padded];
        (&bytemuck::cast_slice(group)[first..], padded)
    }
}

/// The buffers, as threads share them while they convert the input of one layer.
struct ActivationViews {
    isa: Isa,
    columns: usize,
    /// Columns of one segment.
    segment: usize,
    padded: usize,
    /// Where int8 is taken.
    values: Option<(SharedSlice<i8>, SharedSlice<BlockMeta>)>,
    /// Where bfloat16 is taken.
    floats: Option<SharedSlice<f32>>,
}

impl ActivationViews {
    /// Converts one row, which is in the group (first row, length).
    ///
    /// # Safety
    /// No other thread converts a row of the group, and the buffers live.
    unsafe fn convert(&self, input: &[f32], row: usize, (group, rows_of_group): (usize, usize)) {
        let Self { isa, columns, segment, padded, .. } = *self;
        if let Some((values, meta)) = &self.values {
            // Where the row's group begins, and how it is interleaved.
            let range = |unit| group * columns / unit..(group + rows_of_group) * columns / unit;
            // SAFETY: the parts of other rows in the group are not touched through this view.
            let (values, meta) = unsafe { (values.range(range(1)), meta.range(range(BLOCK))) };
            quantize_row(isa, input, values, meta, row - group, rows_of_group);
        }
        if let Some(floats) = &self.floats {
            // SAFETY: the row is this thread's.
            let out = unsafe { floats.range(row * padded..(row + 1) * padded) };
            round_row(input, out, segment);
            if isa.get() == InstructionSet::Amx && rows_of_group == MAX_GROUP {
                to_pairs(out);
            }
        }
    }
}

/// Packs a rounded row as words of two values, the even column low, into the first half of its place:
/// what tiles take, made once instead of for every tile of weights.
fn to_pairs(row: &mut [f32]) {
    let words: &mut [u32] = bytemuck::cast_slice_mut(row);
    for pair in 0..words.len() / 2 {
        words[pair] = words[2 * pair] >> 16 | words[2 * pair + 1] & 0xffff_0000;
    }
}

/// Blocks of 32 in one padded segment.
pub(super) fn bf16_blocks(weight: &CpuWeight) -> usize {
    (weight.columns / weight.segments).div_ceil(BLOCK)
}

/// Width of a row whose segments are padded to whole blocks.
fn padded_width(weight: &CpuWeight) -> usize {
    weight.segments * bf16_blocks(weight) * BLOCK
}

/// First row and length of the group of `row`. Panels begin at multiples of whole groups, so groups
/// are the same inside a panel.
fn group_of(row: usize, rows: usize) -> (usize, usize) {
    let mut first = row / MAX_GROUP * MAX_GROUP;
    loop {
        let len = group_len(rows - first);
        if row < first + len {
            return (first, len);
        }
        first += len;
    }
}

/// Rounds one row to bfloat16 (kept as floats), each segment padded with zeros to whole blocks.
fn round_row(input: &[f32], out: &mut [f32], width: usize) {
    let padded = width.next_multiple_of(BLOCK);
    for (input, out) in input.chunks(width).zip(out.chunks_mut(padded)) {
        for (out, &value) in out.iter_mut().zip(input) {
            *out = round_to_bf16(value).to_f32();
        }
        out[width..].fill(0.0);
    }
}

multiversion! {
    /// Quantizes one row into its place in a group of `stride` rows.
    fn quantize_row = quantize_row_generic(
        input: &[f32], values: &mut [i8], meta: &mut [BlockMeta], row: usize, stride: usize,
    );
}

#[inline(always)]
fn quantize_row_generic<L: Lanes>(
    input: &[f32],
    values: &mut [i8],
    meta: &mut [BlockMeta],
    row: usize,
    stride: usize,
) {
    let values = values.as_chunks_mut::<BLOCK>().0;
    for (block, input) in input.as_chunks::<BLOCK>().0.iter().enumerate() {
        let at = block * stride + row;
        meta[at] = quantize_block(input, &mut values[at]);
    }
}

/// `scale = amax / 127`, `q = round_half_even(x * (127 / amax))`. A block whose `127 / amax` overflows
/// (all magnitudes below 4e-37) is zero.
#[inline(always)]
fn quantize_block(input: &[f32; BLOCK], out: &mut [i8; BLOCK]) -> BlockMeta {
    /// Adding and subtracting 1.5 · 2²³ rounds to nearest even.
    const ROUND: f32 = 12_582_912.0;
    let mut greatest = [0_u32; BLOCK];
    for (greatest, value) in greatest.iter_mut().zip(input) {
        // Magnitudes order as their bits do; infinities and NaNs come last.
        *greatest = value.to_bits() & 0x7fff_ffff;
    }
    let amax = f32::from_bits(greatest.into_iter().fold(0, u32::max));
    *out = [0; BLOCK];
    if !amax.is_finite() {
        return BlockMeta { scale: f32::NAN, ..BlockMeta::default() };
    }
    let inverse = 127.0 / amax;
    if !inverse.is_finite() {
        return BlockMeta::default();
    }
    let mut half_sums = [0; 2];
    for half in 0..2 {
        for i in half * 16..half * 16 + 16 {
            let quant =
                (input[i] * inverse + ROUND).to_bits().wrapping_sub(ROUND.to_bits()).cast_signed();
            out[i] = quant as i8;
            half_sums[half] += quant;
        }
    }
    BlockMeta { scale: amax / 127.0, sum: half_sums[0] + half_sums[1], half_sums }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_quantized_as_documented() {
        let input: [f32; BLOCK] = std::array::from_fn(|i| (i as f32 - 15.5) * 0.37);
        let mut out = [0; BLOCK];
        let meta = quantize_block(&input, &mut out);
        assert!((meta.scale - 15.5 * 0.37 / 127.0).abs() < 1e-7);
        for (quant, value) in out.iter().zip(input) {
            assert_eq!(f32::from(*quant), (value * (127.0 / (15.5_f32 * 0.37))).round_ties_even());
        }
        assert_eq!(meta.sum, out.iter().map(|&q| i32::from(q)).sum::<i32>());
        assert_eq!(meta.half_sums[0], out[..16].iter().map(|&q| i32::from(q)).sum::<i32>());
        assert_eq!(out.iter().max(), Some(&127));
    }

    #[test]
    fn extremes() {
        let mut out = [1; BLOCK];
        assert_eq!(quantize_block(&[0.0; BLOCK], &mut out), BlockMeta::default());
        assert_eq!(quantize_block(&[1e-40; BLOCK], &mut out), BlockMeta::default());
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut input = [1.0; BLOCK];
            input[7] = bad;
            assert!(quantize_block(&input, &mut out).scale.is_nan());
            assert_eq!(out, [0; BLOCK]);
        }
        let meta = quantize_block(&[f32::MAX; BLOCK], &mut out);
        assert_eq!((meta.sum, out[0]), (127 * 32, 127));
    }

    #[test]
    fn groups_cover_rows_in_order() {
        for rows in 1..40 {
            let mut next = 0;
            while next < rows {
                let len = group_len(rows - next);
                for row in next..next + len {
                    assert_eq!(group_of(row, rows), (next, len));
                }
                next += len;
            }
        }
    }
}
