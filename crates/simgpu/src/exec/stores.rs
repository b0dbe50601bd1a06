//! A block's stores that other blocks do not see yet.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::global::place;
use super::random::Random;
use crate::memory::Memory;

const LINE_BYTES: u64 = 128;
/// More lines than this are not held back.
const MAX_LINES: usize = 4096;

#[derive(Debug)]
struct Line {
    address: u64,
    /// Which bytes are held.
    mask: u128,
    data: [u8; LINE_BYTES as usize],
}

/// Multiplies: addresses need no more, and the order is the same in every run.
#[derive(Debug, Default)]
pub(crate) struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 32;
    }
}

/// A map whose order does not depend on the process.
pub(crate) type AddressMap<V> = HashMap<u64, V, BuildHasherDefault<AddressHasher>>;

/// Stores held back, by line of 128 bytes.
#[derive(Debug, Default)]
pub(crate) struct Stores {
    lines: Vec<Line>,
    index: AddressMap<usize>,
}

impl Stores {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Puts held bytes in the place of those read; a bit for each byte that was held.
    pub(crate) fn overlay(&self, address: u64, out: &mut [u8]) -> u32 {
        let start = (address % LINE_BYTES) as usize;
        let Some(&index) = self.index.get(&(address - start as u64)) else {
            return 0;
        };
        let line = &self.lines[index];
        let mut held = 0;
        for (i, byte) in out.iter_mut().enumerate() {
            if line.mask >> (start + i) & 1 == 1 {
                *byte = line.data[start + i];
                held |= 1 << i;
            }
        }
        held
    }

    /// Whether bytes of the line of this address are held.
    pub(crate) fn holds(&self, address: u64) -> bool {
        !self.is_empty() && self.index.contains_key(&(address - address % LINE_BYTES))
    }

    /// Whether bytes of any line of a range are held.
    pub(crate) fn holds_any(&self, address: u64, len: usize) -> bool {
        !self.is_empty()
            && (address / LINE_BYTES..address.saturating_add(len as u64).div_ceil(LINE_BYTES))
                .any(|line| self.index.contains_key(&(line * LINE_BYTES)))
    }

    /// Holds a longer range back, line by line.
    pub(crate) fn hold_span(&mut self, address: u64, bytes: &[u8]) {
        let (mut at, mut rest) = (address, bytes);
        while !rest.is_empty() {
            let room = (LINE_BYTES - at % LINE_BYTES) as usize;
            let (part, after) = rest.split_at(room.min(rest.len()));
            self.hold(at, part);
            at += part.len() as u64;
            rest = after;
        }
    }

    /// Holds a store, whose bytes were found allocated, back.
    pub(crate) fn hold(&mut self, address: u64, bytes: &[u8]) {
        let start = (address % LINE_BYTES) as usize;
        let line_address = address - start as u64;
        let index = *self.index.entry(line_address).or_insert_with(|| {
            self.lines.push(Line {
                address: line_address,
                mask: 0,
                data: [0; LINE_BYTES as usize],
            });
            self.lines.len() - 1
        });
        let line = &mut self.lines[index];
        line.data[start..start + bytes.len()].copy_from_slice(bytes);
        line.mask |= (u128::MAX >> (128 - bytes.len())) << start;
    }

    /// Writes the line of this address through, if it is held.
    pub(crate) fn release_line(&mut self, memory: &Memory, address: u64) {
        if let Some(index) = self.index.remove(&(address - address % LINE_BYTES)) {
            self.remove(memory, index);
        }
    }

    fn remove(&mut self, memory: &Memory, index: usize) {
        let line = self.lines.swap_remove(index);
        if let Some(moved) = self.lines.get(index) {
            self.index.insert(moved.address, index);
        }
        write_through(memory, &line);
    }

    /// Writes everything through, in random order.
    pub(crate) fn release_all(&mut self, memory: &Memory, random: &mut Random) {
        if self.is_empty() {
            return;
        }
        random.shuffle(&mut self.lines);
        self.lines.iter().for_each(|line| write_through(memory, line));
        self.lines.clear();
        self.index.clear();
    }

    /// Writes some lines through.
    pub(crate) fn release_some(&mut self, memory: &Memory, random: &mut Random) {
        let keep = if self.lines.len() > MAX_LINES { MAX_LINES / 2 } else { self.lines.len() / 2 };
        while self.lines.len() > keep {
            let index = random.below(self.lines.len());
            self.index.remove(&self.lines[index].address);
            self.remove(memory, index);
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.lines.len() > MAX_LINES
    }
}

/// Writes aligned pieces of up to 8 bytes at once: a thread's word is never seen half.
fn write_through(memory: &Memory, line: &Line) {
    let mut at = 0_usize;
    while at < LINE_BYTES as usize {
        let held = |len: usize| {
            at.is_multiple_of(len) && line.mask >> at & ((1 << len) - 1) == (1 << len) - 1
        };
        let Some(len) = [8, 4, 2, 1].into_iter().find(|&len| held(len)) else {
            at += 1;
            continue;
        };
        // Freed meanwhile: nobody can see the bytes any more.
        if let Ok(place) = place(memory, line.address + at as u64, len as u32, false) {
            place.write(&line.data[at..at + len]);
        }
        at += len;
    }
}
