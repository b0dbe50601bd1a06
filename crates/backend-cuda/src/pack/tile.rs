//! Tiles of 16 outputs by steps of 64 columns, as `mma.m16n8k16` takes them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use half::bf16;
use oarlock_backend::quant::{SUB_BLOCK, SubBlock, sub_block};
use oarlock_backend::{BackendError, WeightKind, WeightView};

use crate::kernels::{STEP_COLUMNS, TILE_OUTPUTS};

use super::linear::decode_row;

/// Where a row of a layer is stored.
#[derive(Clone, Copy)]
struct Row<'a> {
    kind: WeightKind,
    bytes: &'a [u8],
    first_sub_block: usize,
}

/// Bytes of a plane for each tile, segment and step.
#[derive(Clone, Copy)]
pub(super) struct Record {
    bytes: usize,
    is_cut: bool,
}

impl Record {
    /// Its first half is that of the step's columns; where the others of a segment's last step are padding, it
    /// is all that is stored.
    pub(super) const fn of_halves(bytes: usize) -> Self {
        Self { bytes, is_cut: true }
    }

    /// Always whole.
    pub(super) const fn whole(bytes: usize) -> Self {
        Self { bytes, is_cut: false }
    }
}

/// Segment, step and bytes of a tile's records.
fn records(
    tile: &mut [u8],
    segment_bytes: usize,
    record: Record,
) -> impl Iterator<Item = (usize, usize, &mut [u8])> {
    tile.chunks_exact_mut(segment_bytes).enumerate().flat_map(move |(segment, bytes)| {
        bytes.chunks_mut(record.bytes).enumerate().map(move |(step, out)| (segment, step, out))
    })
}

/// The rows of one tile; none where outputs are padded.
pub(super) struct TileRows<'a>([Option<Row<'a>>; TILE_OUTPUTS]);

/// The sub-blocks of one step, as indices into a view's row; none where columns are padded.
pub(super) type Step = [Option<usize>; 2];

/// Views of one layer, cut into tiles and steps.
pub(super) struct Tiles<'v, 'a> {
    views: &'v [WeightView<'a>],
    outputs: usize,
    segments: usize,
    /// Columns of one segment.
    width: usize,
}

impl<'v, 'a> Tiles<'v, 'a> {
    pub(super) fn new(views: &'v [WeightView<'a>], segments: usize) -> Self {
        let outputs = views.iter().map(|view| view.rows).sum();
        Self { views, outputs, segments, width: views[0].columns / segments }
    }

    fn num_tiles(&self) -> usize {
        self.outputs.div_ceil(TILE_OUTPUTS)
    }

    /// Steps of one segment.
    fn steps(&self) -> usize {
        self.width.div_ceil(STEP_COLUMNS)
    }

    /// The view that has an output, and its row there.
    fn find(&self, mut output: usize) -> Option<(&'v WeightView<'a>, usize)> {
        for view in self.views {
            if output < view.rows {
                return Some((view, output));
            }
            output -= view.rows;
        }
        None
    }

    fn rows(&self, tile: usize) -> TileRows<'a> {
        TileRows(std::array::from_fn(|i| {
            let (view, row) = self.find(tile * TILE_OUTPUTS + i)?;
            let bytes = view.row_bytes();
            let first_sub_block = view.first_column / SUB_BLOCK;
            Some(Row {
                kind: view.kind,
                bytes: &view.data[row * bytes..][..bytes],
                first_sub_block,
            })
        }))
    }

    /// Bytes of one segment of a tile.
    fn segment_bytes(&self, record: Record) -> usize {
        let padding = self.steps() * STEP_COLUMNS - self.width;
        let is_cut = record.is_cut && padding >= STEP_COLUMNS / 2;
        self.steps() * record.bytes - if is_cut { record.bytes / 2 } else { 0 }
    }

    /// A plane with a record for each tile, segment and step, written from quants.
    pub(super) fn plane(
        &self,
        record: Record,
        write: impl Fn(&TileRows<'a>, Step, &mut [u8]) + Sync,
    ) -> Vec<u8> {
        let segment_bytes = self.segment_bytes(record);
        let mut bytes = vec![0; self.num_tiles() * self.segments * segment_bytes];
        let blocks = self.width / SUB_BLOCK;
        for_each_tile(&mut bytes, self.segments * segment_bytes, |tile, out| {
            let rows = self.rows(tile);
            for (segment, step, out) in records(out, segment_bytes, record) {
                let places = [0, 1].map(|half| {
                    let block = 2 * step + half;
                    (block < blocks).then_some(segment * blocks + block)
                });
                write(&rows, places, out);
            }
        });
        bytes
    }

    /// The same, written from decoded columns: 16 rows of 64.
    pub(super) fn decoded_plane(
        &self,
        record: Record,
        write: impl Fn(&[[f32; STEP_COLUMNS]; TILE_OUTPUTS], &mut [u8]) + Sync,
    ) -> Result<Vec<u8>, BackendError> {
        let segment_bytes = self.segment_bytes(record);
        let mut bytes = vec![0; self.num_tiles() * self.segments * segment_bytes];
        let failure = Mutex::new(None);
        for_each_tile(&mut bytes, self.segments * segment_bytes, |tile, out| {
            let mut rows: [Vec<f32>; TILE_OUTPUTS] = Default::default();
            for (i, decoded) in rows.iter_mut().enumerate() {
                if let Some((view, row)) = self.find(tile * TILE_OUTPUTS + i)
                    && let Err(error) = decode_row(view, row, decoded)
                {
                    *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    return;
                }
            }
            for (segment, step, out) in records(out, segment_bytes, record) {
                let first = segment * self.width + step * STEP_COLUMNS;
                let end = ((segment + 1) * self.width).min(first + STEP_COLUMNS);
                let mut square = [[0.0; STEP_COLUMNS]; TILE_OUTPUTS];
                for (to, row) in square.iter_mut().zip(&rows) {
                    if !row.is_empty() {
                        to[..end - first].copy_from_slice(&row[first..end]);
                    }
                }
                write(&square, out);
            }
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(bytes),
        }
    }

    /// Q4_K's plane of (d, dmin): `[tile][super-block][16 outputs]`.
    pub(super) fn super_blocks(&self, first_sub_block: usize) -> Vec<u8> {
        let blocks = self.views[0].columns / SUB_BLOCK;
        let count = (first_sub_block + blocks).div_ceil(8);
        let mut bytes = vec![0; self.num_tiles() * count * TILE_OUTPUTS * 4];
        for_each_tile(&mut bytes, count * TILE_OUTPUTS * 4, |tile, out| {
            let rows = self.rows(tile);
            for (i, out) in out.chunks_exact_mut(4).enumerate() {
                let (super_block, row) = (i / TILE_OUTPUTS, i % TILE_OUTPUTS);
                if let Some(row) = rows.0[row] {
                    let first = row.first_sub_block / 8 * 8;
                    let block = sub_block(row.kind, row.bytes, first + super_block * 8);
                    out[..2].copy_from_slice(&block.scale.to_le_bytes());
                    out[2..].copy_from_slice(&block.minimum_scale.to_le_bytes());
                }
            }
        });
        bytes
    }
}

impl TileRows<'_> {
    /// A sub-block of an output; none where either is padding.
    fn sub_block(&self, output: usize, block: Option<usize>) -> Option<SubBlock> {
        let row = self.0[output]?;
        Some(sub_block(row.kind, row.bytes, row.first_sub_block + block?))
    }
}

/// Calls `fill` with every tile and its bytes, on as many threads as there are cores.
fn for_each_tile(bytes: &mut [u8], tile_bytes: usize, fill: impl Fn(usize, &mut [u8]) + Sync) {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let tiles: Vec<Mutex<&mut [u8]>> = bytes.chunks_exact_mut(tile_bytes).map(Mutex::new).collect();
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(tile) = tiles.get(index) else { return };
            fill(index, &mut tile.lock().unwrap_or_else(PoisonError::into_inner));
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads.min(tiles.len()) {
            scope.spawn(work);
        }
        work();
    });
}

/// The lane that has columns `8 q..8 q + 8` of outputs `r` and `r + 8`.
fn lanes() -> impl Iterator<Item = (usize, usize, usize)> {
    (0..32).map(|lane| (lane, lane / 4, lane % 4))
}

/// `[mma 0..4][lane][4 registers]`.
pub(super) fn bf16_step(rows: &[[f32; STEP_COLUMNS]; TILE_OUTPUTS], out: &mut [u8]) {
    for (mma, out) in out.chunks_exact_mut(512).enumerate() {
        for (lane, r, q) in lanes() {
            for register in 0..4 {
                let row = &rows[r + register % 2 * 8];
                let column = mma / 2 * 32 + q * 8 + mma % 2 * 4 + register / 2 * 2;
                let at = lane * 16 + register * 4;
                for i in 0..2 {
                    let value = bf16::from_f32(row[column + i]);
                    out[at + 2 * i..][..2].copy_from_slice(&value.to_le_bytes());
                }
            }
        }
    }
}

/// Quants `[half][lane][r | r + 8][8]` as signed bytes, and scales `[output][half]`; what is empty is
/// not written.
pub(super) fn q8_0_step(rows: &TileRows<'_>, step: Step, quants: &mut [u8], scales: &mut [u8]) {
    for output in 0..TILE_OUTPUTS {
        for (half, place) in step.into_iter().enumerate() {
            let Some(block) = rows.sub_block(output, place) else { continue };
            if !scales.is_empty() {
                scales[output * 4 + half * 2..][..2].copy_from_slice(&block.scale.to_le_bytes());
            }
            if !quants.is_empty() {
                for (column, quant) in block.quants.into_iter().enumerate() {
                    let lane = output % 8 * 4 + column / 8;
                    quants[half * 512 + lane * 16 + output / 8 * 8 + column % 8] = quant ^ 0x80;
                }
            }
        }
    }
}

/// Quants `[half][lane][r | r + 8][4]`, column i in the low and i + 4 in the high half of a byte, and
/// 6-bit scales and minimums in three planes of 16 bytes; what is empty is not written.
pub(super) fn q4_k_step(rows: &TileRows<'_>, step: Step, quants: &mut [u8], scales: &mut [u8]) {
    for output in 0..TILE_OUTPUTS {
        let mut bits = 0_u32;
        for (half, place) in step.into_iter().enumerate() {
            let Some(block) = rows.sub_block(output, place) else { continue };
            bits |= u32::from(block.sub_scales[0].cast_unsigned() & 63) << (6 * half);
            bits |= u32::from(block.minimums[0] & 63) << (12 + 6 * half);
            if !quants.is_empty() {
                for (column, quant) in block.quants.into_iter().enumerate() {
                    let lane = output % 8 * 4 + column / 8;
                    let at = half * 256 + lane * 8 + output / 8 * 4 + column % 4;
                    quants[at] |= quant << (column % 8 / 4 * 4);
                }
            }
        }
        if !scales.is_empty() {
            for plane in 0..3 {
                scales[plane * 16 + output] = (bits >> (8 * plane)) as u8;
            }
        }
    }
}
