//! From the words of GGML's blocks to those of a tile, for sixteen rows at once.
//!
//! A row's blocks are copied as they are stored, sixteen rows are transposed, and then every step of decoding
//! is one operation on the same word of all rows. `oarlock_backend::quant` defines what the blocks mean.

use super::chunk::CHUNK;
use super::{BLOCK, Format, Q4_0, Q4K, Q5_0, Q5K, Q6K, Q8_0, TILE};

/// Blocks of 32 in a super-block, and in what is ordered at a time.
pub(super) const SUPER: usize = 8;

/// The same word of all rows of a tile.
type Word = [u32; TILE];

/// What a tile holds of [`SUPER`] blocks.
pub(super) struct Ordered {
    /// [`Format::BITS`] words for each block.
    pub(super) quants: [Word; CHUNK],
    /// [`Format::SCALE_BYTES`] for each block.
    pub(super) scales: [[u8; 2 * TILE]; SUPER],
    /// The super scales, then those of the minimums.
    pub(super) supers: [[u16; TILE]; 2],
}

impl Default for Ordered {
    fn default() -> Self {
        Self { quants: [[0; TILE]; CHUNK], scales: [[0; 2 * TILE]; SUPER], supers: [[0; TILE]; 2] }
    }
}

/// A format whose blocks can be read.
pub(super) trait Order: Format {
    /// Words of a row that [`Order::order`] wants transposed, at most.
    const WORDS: usize;
    /// Copies blocks of a row, at most [`SUPER`], which `stored` begins with. Scales of blocks without
    /// integer ones are put where they belong.
    fn copy(stored: &[u8], words: &mut [u32; CHUNK], output: usize, scales: &mut Ordered);
    /// Puts transposed words into a tile's order.
    fn order(words: &[Word; CHUNK], out: &mut Ordered);
}

/// Copies the scales and the other bytes of blocks of `BYTES` that hold one f16 scale first.
#[inline(always)]
fn copy_blocks<const BYTES: usize>(
    stored: &[u8],
    words: &mut [u32; CHUNK],
    output: usize,
    out: &mut Ordered,
) {
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(words);
    let blocks = stored.as_chunks::<BYTES>().0.iter();
    for ((block, bytes), scales) in
        blocks.zip(bytes.chunks_exact_mut(BYTES - 2)).zip(&mut out.scales)
    {
        bytes.copy_from_slice(&block[2..]);
        scales[2 * output] = block[0];
        scales[2 * output + 1] = block[1];
    }
    from_stored(words);
}

/// Copies a super-block of `BYTES`, which may end inside of a word.
#[inline(always)]
fn copy_super_block<const BYTES: usize>(stored: &[u8], words: &mut [u32; CHUNK]) {
    let Some(block) = stored.first_chunk::<BYTES>() else { return };
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(words);
    bytes[..BYTES].copy_from_slice(block);
    from_stored(words);
}

/// Words whose bytes were copied from a file; nothing to do on a little-endian machine.
#[inline(always)]
fn from_stored(words: &mut [u32; CHUNK]) {
    for word in words {
        *word = u32::from_le(*word);
    }
}

/// Words from `first` on, of all rows.
#[inline(always)]
fn from<const COUNT: usize>(words: &[Word; CHUNK], first: usize) -> &[Word; COUNT] {
    words[first..].first_chunk().expect("words of one super-block")
}

/// The tile's order of 32 quants of 4 bits in the low nibbles of 8 words, `>> shift`.
#[inline(always)]
fn join_nibbles(words: &[Word; 8], shift: u32, out: &mut [Word]) {
    const LOW: u32 = 0x0f0f_0f0f;
    let (first, second) = words.split_at(4);
    let pairs = first.as_flattened().iter().zip(second.as_flattened());
    for (out, (first, second)) in out.as_flattened_mut().iter_mut().zip(pairs) {
        *out = (first >> shift & LOW | (second >> shift & LOW) << 4).to_le();
    }
}

/// Bits `shift` and on of each byte of `N` words that `mask` has, side by side: those of word `w` from bit
/// `w * step`.
#[inline(always)]
fn join_bits<const N: usize>(
    words: &[Word; N],
    shift: u32,
    mask: u32,
    step: usize,
    out: &mut Word,
) {
    let mut joined = [0; TILE];
    for (index, word) in words.iter().enumerate() {
        for (joined, word) in joined.iter_mut().zip(word) {
            *joined |= (word >> shift & mask) << (index * step);
        }
    }
    *out = joined.map(u32::to_le);
}

/// One byte of a word.
#[inline(always)]
fn byte(word: u32, index: usize) -> u8 {
    (word >> (8 * index)) as u8
}

/// Super scales and minimums in the halves of one word, and the 6-bit scales and minimums of
/// `get_scale_min_k4` in three.
#[inline(always)]
fn order_k_scales(words: &[Word; 4], out: &mut Ordered) {
    let [supers, a, b, c] = words;
    for output in 0..TILE {
        out.supers[0][output] = (supers[output] as u16).to_le();
        out.supers[1][output] = ((supers[output] >> 16) as u16).to_le();
    }
    for sub in 0..4 {
        let (first, second) = out.scales.split_at_mut(4);
        let (first, second) = (&mut first[sub], &mut second[sub]);
        for output in 0..TILE {
            let [a, b, c] = [a, b, c].map(|word| byte(word[output], sub));
            first[output] = a & 63;
            first[TILE + output] = b & 63;
            second[output] = c & 15 | a >> 6 << 4;
            second[TILE + output] = c >> 4 | b >> 6 << 4;
        }
    }
}

impl Order for Q4_0 {
    const WORDS: usize = 4 * SUPER;

    #[inline(always)]
    fn copy(stored: &[u8], words: &mut [u32; CHUNK], output: usize, out: &mut Ordered) {
        copy_blocks::<18>(stored, words, output, out);
    }

    /// A tile has the nibbles where the block has them.
    #[inline(always)]
    fn order(words: &[Word; CHUNK], out: &mut Ordered) {
        for (out, word) in out.quants.as_flattened_mut().iter_mut().zip(words.as_flattened()) {
            *out = word.to_le();
        }
    }
}

impl Order for Q8_0 {
    const WORDS: usize = 8 * SUPER;

    #[inline(always)]
    fn copy(stored: &[u8], words: &mut [u32; CHUNK], output: usize, out: &mut Ordered) {
        copy_blocks::<34>(stored, words, output, out);
    }

    /// Signed bytes become unsigned by adding 128.
    #[inline(always)]
    fn order(words: &[Word; CHUNK], out: &mut Ordered) {
        for (out, word) in out.quants.as_flattened_mut().iter_mut().zip(words.as_flattened()) {
            *out = (word ^ 0x8080_8080).to_le();
        }
    }
}

impl Order for Q5_0 {
    const WORDS: usize = 5 * SUPER;

    #[inline(always)]
    fn copy(stored: &[u8], words: &mut [u32; CHUNK], output: usize, out: &mut Ordered) {
        copy_blocks::<22>(stored, words, output, out);
    }

    /// The fifth bits stand first in a block, and last in a tile, where bit `i` of the block's goes to byte
    /// `i % 4`, bit `i / 4`: the five bits of its place rotate by two.
    #[inline(always)]
    fn order(words: &[Word; CHUNK], out: &mut Ordered) {
        for (words, out) in words.chunks_exact(5).zip(out.quants.chunks_exact_mut(5)) {
            out[..4].copy_from_slice(&words[1..]);
            for (out, word) in out[4].iter_mut().zip(words[0]) {
                *out = unshuffle(unshuffle(word));
            }
            for out in out.as_flattened_mut() {
                *out = out.to_le();
            }
        }
    }
}

/// Even bits to the low half, odd ones to the high half (Warren, Hacker's Delight, 7-2): the bits of each
/// bit's place rotate by one.
#[inline(always)]
fn unshuffle(mut word: u32) -> u32 {
    for (shift, mask) in [(1, 0x2222_2222), (2, 0x0c0c_0c0c), (4, 0x00f0_00f0), (8, 0x0000_ff00)] {
        let swapped = (word ^ word >> shift) & mask;
        word ^= swapped ^ swapped << shift;
    }
    word
}

impl Order for Q4K {
    const WORDS: usize = 36;

    #[inline(always)]
    fn copy(stored: &[u8], words: &mut [u32; CHUNK], _: usize, _: &mut Ordered) {
        copy_super_block::<144>(stored, words);
    }

    #[inline(always)]
    fn order(words: &[Word; CHUNK], out: &mut Ordered) {
        order_k_scales(from(words, 0), out);
        for sub in 0..SUPER {
            let nibbles = from(words, 4 + sub / 2 * 8);
            join_nibbles(nibbles, sub as u32 % 2 * 4, &mut out.quants[4 * sub..][..4]);
        }
    }
}

impl Order for Q5K {
    const WORDS: usize = 44;

    #[inline(always)]
    fn copy(stored: &[u8], words: &mut [u32; CHUNK], _: usize, _: &mut Ordered) {
        copy_super_block::<176>(stored, words);
    }

    #[inline(always)]
    fn order(words: &[Word; CHUNK], out: &mut Ordered) {
        order_k_scales(from(words, 0), out);
        let high = from::<8>(words, 4);
        for sub in 0..SUPER {
            let nibbles = from(words, 12 + sub / 2 * 8);
            let out = &mut out.quants[5 * sub..][..5];
            join_nibbles(nibbles, sub as u32 % 2 * 4, &mut out[..4]);
            join_bits(high, sub as u32, 0x0101_0101, 1, &mut out[4]);
        }
    }
}

impl Order for Q6K {
    const WORDS: usize = 53;

    #[inline(always)]
    fn copy(stored: &[u8], words: &mut [u32; CHUNK], _: usize, _: &mut Ordered) {
        copy_super_block::<210>(stored, words);
    }

    #[inline(always)]
    fn order(words: &[Word; CHUNK], out: &mut Ordered) {
        for sub in 0..SUPER {
            let (half, quarter) = (sub / 4, sub % 4);
            let quants = &mut out.quants[6 * sub..][..6];
            let low = from(words, half * 16 + quarter % 2 * 8);
            join_nibbles(low, quarter as u32 / 2 * 4, &mut quants[..4]);
            for (part, out) in quants[4..].iter_mut().enumerate() {
                let high = from::<4>(words, 32 + half * 8 + part * 4);
                join_bits(high, 2 * quarter as u32, 0x0303_0303, 2, out);
            }
            let scales = words[48 + sub / 2];
            for output in 0..TILE {
                out.scales[sub][output] = byte(scales[output], sub % 2 * 2);
                out.scales[sub][TILE + output] = byte(scales[output], sub % 2 * 2 + 1);
            }
        }
        for (out, word) in out.supers[0].iter_mut().zip(words[52]) {
            *out = (word as u16).to_le();
        }
    }
}

const _: () = assert!(BLOCK == 32 && 2 * TILE == Q8_0::SCALE_BYTES);
