//! Sixteen rows side by side, and their change of order: how every packer turns rows of a file into tiles.
//!
//! A packer decodes a piece of each of a tile's rows into the words of a [`Chunk`], which stays in the
//! nearest cache, and [`write_chunk`] writes it to the tile in order: whole cache lines, one after the other.

use crate::lanes::{LANES, Lanes};

use super::TILE;

/// Words of one row in a chunk: four lines of its cache, so that rows which lie a power of two apart in a
/// file, and compete for the same places of the cache, are read for several lines at once.
pub(super) const CHUNK: usize = 64;

/// Words `[row][word]` of a tile's rows.
pub(super) type Chunk = [[u32; CHUNK]; TILE];

/// Writes the first words of every row as `[word][row]`.
#[inline(always)]
pub(super) fn write_chunk<L: Lanes>(chunk: &Chunk, out: &mut [[u32; TILE]]) {
    let (whole, rest) = out.as_chunks_mut::<LANES>();
    let square = |index: usize| {
        let mut rows = [&[0; LANES]; TILE];
        for (to, row) in rows.iter_mut().zip(chunk) {
            *to = &row.as_chunks::<LANES>().0[index];
        }
        rows
    };
    let last = whole.len();
    for (index, out) in whole.iter_mut().enumerate() {
        L::transpose(square(index), out);
    }
    if !rest.is_empty() {
        let mut padded = [[0; TILE]; LANES];
        L::transpose(square(last), &mut padded);
        rest.copy_from_slice(&padded[..rest.len()]);
    }
}

/// Bytes of a row that are asked of the memory before they are read.
const AHEAD: usize = 512;

/// Asks for `len` bytes of a row that are read soon: those [`AHEAD`] of `at`, or as far into the row of the next
/// tile. Sixteen rows at once are more streams than a CPU foresees by itself.
#[inline(always)]
pub(super) fn prefetch(rows: &[u8], row_bytes: usize, at: usize, len: usize) {
    let ahead = at % row_bytes + AHEAD;
    let from = if ahead < row_bytes { at + AHEAD } else { at + AHEAD + (TILE - 1) * row_bytes };
    ask(rows.as_ptr().wrapping_add(from), len);
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn ask(first: *const u8, len: usize) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    const LINE: usize = 64;
    for line in (0..len).step_by(LINE) {
        // SAFETY: a hint, which no address makes fail.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(first.wrapping_add(line).cast()) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn ask(_: *const u8, _: usize) {}
