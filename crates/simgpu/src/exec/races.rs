//! Races on shared memory: two threads of a block touch a byte, at least one writes, nothing orders them.
//!
//! Each warp has a clock that advances at its barriers, and knows up to which clock of every other
//! warp it has synchronized. For each word the last write and two reads are remembered with thread and
//! clock; a word that is accessed in parts is split into bytes. Inside a warp only
//! `bar.warp.sync` orders lanes: other instructions with `.sync` meet, and order no memory (PTX ISA).

use std::collections::HashMap;

/// Warps of a block at most.
const MAX_WARPS: usize = 32;
const CLOCK_BITS: u32 = 21;
const MAX_CLOCK: u32 = (1 << CLOCK_BITS) - 1;

/// Thread (10 bits), clock (21 bits), and whether the access was atomic or volatile; 0 for none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Record(u32);

impl Record {
    fn new(thread: u32, clock: u32, is_strong: bool) -> Self {
        Self(thread | clock << 10 | u32::from(is_strong) << 31)
    }

    fn thread(self) -> u32 {
        self.0 & 0x3ff
    }

    fn clock(self) -> u32 {
        self.0 >> 10 & MAX_CLOCK
    }

    fn is_strong(self) -> bool {
        self.0 >> 31 == 1
    }

    /// Whether it happened before everything that a thread does now; `seen` are its warp's clocks. No
    /// record has clock 0, which is always in the past.
    #[inline(always)]
    fn is_before(self, thread: u32, seen: &Clocks) -> bool {
        self.clock() < seen[(self.thread() / 32) as usize] || self.thread() == thread
    }
}

/// In the place of the last write of a word that is accessed in parts. Its clock is never reached, and
/// its thread is that of no lane of a block with fewer than 32 warps.
const SPLIT: Record = Record(u32::MAX >> 1);

#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    write: Record,
    reads: [Record; 2],
}

impl Cell {
    /// Checks and remembers an access; the other thread of a race.
    #[inline(always)]
    fn touch(&mut self, touch: Touch, me: Record, seen: &Clocks) -> Result<(), u32> {
        let is_safe = |record: Record| {
            record.is_before(touch.thread, seen) || (record.is_strong() && touch.is_strong)
        };
        if !is_safe(self.write) {
            return Err(self.write.thread());
        }
        if touch.is_write {
            for read in self.reads {
                if !is_safe(read) {
                    return Err(read.thread());
                }
            }
            *self = Self { write: me, reads: [Record::default(); 2] };
        } else if self.reads[0].is_before(touch.thread, seen) {
            self.reads[0] = me;
        } else if self.reads[1].is_before(touch.thread, seen) {
            self.reads[1] = me;
        }
        Ok(())
    }
}

/// What a warp knows of the clocks of all warps.
pub(crate) type Clocks = [u32; MAX_WARPS];

/// The race detector of a block.
#[derive(Debug, Default)]
pub(crate) struct Races {
    words: Vec<Cell>,
    /// Bytes of the words that are accessed in parts.
    split: HashMap<u32, [Cell; 4]>,
    clocks: Vec<u32>,
    /// Clocks that each warp has synchronized with; its own clock for itself.
    seen: Vec<Clocks>,
}

/// One thread's access.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Touch {
    /// Thread of the block: 32 × warp + lane.
    pub(crate) thread: u32,
    pub(crate) is_write: bool,
    /// Atomic or volatile: such accesses do not race with each other.
    pub(crate) is_strong: bool,
}

impl Races {
    pub(crate) fn reset(&mut self, shared_bytes: u32, num_warps: usize) {
        let num_words = shared_bytes.div_ceil(4) as usize;
        self.words.clear();
        self.words.resize(num_words, Cell::default());
        self.split.clear();
        self.clocks.clear();
        self.clocks.resize(num_warps, 1);
        self.seen.clear();
        self.seen.resize(num_warps, [1; MAX_WARPS]);
    }

    /// Checks and remembers an access; the address and the other thread of a race.
    #[inline]
    pub(crate) fn touch(&mut self, offset: u32, len: u32, touch: Touch) -> Result<(), (u32, u32)> {
        if !len.is_multiple_of(4) {
            return self.touch_parts(offset, len, touch);
        }
        let warp = (touch.thread / 32) as usize;
        let seen = &self.seen[warp];
        let me = Record::new(touch.thread, self.clocks[warp], touch.is_strong);
        let first = (offset / 4) as usize;
        for cell in &mut self.words[first..first + (len / 4) as usize] {
            if cell.write == SPLIT || cell.touch(touch, me, seen).is_err() {
                return self.touch_parts(offset, len, touch);
            }
        }
        Ok(())
    }

    /// Accesses of a warp's 32 lanes to `len` bytes each, one after the other; false if there is a race, or
    /// a word that is accessed in parts, which is then to be found lane by lane.
    #[inline]
    pub(crate) fn touch_span(&mut self, offset: u32, len: u32, first: Touch) -> bool {
        let warp = (first.thread / 32) as usize;
        let (seen, clock) = (&self.seen[warp], self.clocks[warp]);
        let per_lane = (len / 4) as usize;
        let start = (offset / 4) as usize;
        let cells = &mut self.words[start..start + 32 * per_lane];
        for (lane, cells) in cells.chunks_exact_mut(per_lane).enumerate() {
            let touch = Touch { thread: first.thread + lane as u32, ..first };
            let me = Record::new(touch.thread, clock, touch.is_strong);
            for cell in cells {
                if cell.write == SPLIT || cell.touch(touch, me, seen).is_err() {
                    return false;
                }
            }
        }
        true
    }

    /// Any access, word by word or byte by byte.
    fn touch_parts(&mut self, offset: u32, len: u32, touch: Touch) -> Result<(), (u32, u32)> {
        let mut at = offset;
        let end = offset + len;
        while at < end {
            let word = at / 4;
            let part_end = end.min((word + 1) * 4);
            if part_end - at == 4 && self.words[word as usize].write != SPLIT {
                let warp = (touch.thread / 32) as usize;
                let me = Record::new(touch.thread, self.clocks[warp], touch.is_strong);
                let raced = self.words[word as usize].touch(touch, me, &self.seen[warp]);
                raced.map_err(|other| (at, other))?;
            } else {
                self.touch_bytes(at, part_end, touch)?;
            }
            at = part_end;
        }
        Ok(())
    }

    fn touch_bytes(&mut self, start: u32, end: u32, touch: Touch) -> Result<(), (u32, u32)> {
        let warp = (touch.thread / 32) as usize;
        let me = Record::new(touch.thread, self.clocks[warp], touch.is_strong);
        let word = start / 4;
        let whole = self.words[word as usize];
        let cells = self.split.entry(word).or_insert([whole; 4]);
        self.words[word as usize].write = SPLIT;
        for at in start..end {
            let raced = cells[(at % 4) as usize].touch(touch, me, &self.seen[warp]);
            raced.map_err(|other| (at, other))?;
        }
        Ok(())
    }

    /// An instruction with `.sync` orders the lanes of a warp.
    pub(crate) fn sync_warp(&mut self, warp: usize) {
        self.clocks[warp] += 1;
        self.seen[warp][warp] = self.clocks[warp];
        if self.clocks[warp] >= MAX_CLOCK - 1 {
            self.forget();
        }
    }

    /// A warp arrives at a barrier: adds what it did and knows to what the barrier passes on.
    pub(crate) fn arrive(&mut self, warp: usize, passed: &mut Clocks) {
        self.sync_warp(warp);
        for (sum, seen) in passed.iter_mut().zip(&self.seen[warp]) {
            *sum = (*sum).max(*seen);
        }
    }

    /// A warp leaves a barrier and knows what all arrived with.
    pub(crate) fn leave(&mut self, warp: usize, passed: &Clocks) {
        for (seen, sum) in self.seen[warp].iter_mut().zip(passed) {
            *seen = (*seen).max(*sum);
        }
    }

    /// Clocks are about to overflow: everything so far counts as ordered.
    fn forget(&mut self) {
        let (bytes, num_warps) = (self.words.len() as u32 * 4, self.clocks.len());
        self.reset(bytes, num_warps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(thread: u32, is_write: bool) -> Touch {
        Touch { thread, is_write, is_strong: false }
    }

    fn races() -> Races {
        let mut races = Races::default();
        races.reset(64, 2);
        races
    }

    #[test]
    fn writes_of_two_threads_race_until_a_barrier() {
        let mut races = races();
        assert_eq!(races.touch(0, 4, touch(0, true)), Ok(()));
        assert_eq!(races.touch(0, 4, touch(33, false)), Err((0, 0)));
        let mut passed = [0; MAX_WARPS];
        races.arrive(0, &mut passed);
        races.arrive(1, &mut passed);
        races.leave(0, &passed);
        races.leave(1, &passed);
        assert_eq!(races.touch(0, 4, touch(33, false)), Ok(()));
        assert_eq!(races.touch(0, 4, touch(1, true)), Err((0, 33)));
    }

    #[test]
    fn halves_of_a_word_are_told_apart() {
        let mut races = races();
        assert_eq!(races.touch(8, 2, touch(0, true)), Ok(()));
        assert_eq!(races.touch(10, 2, touch(1, true)), Ok(()));
        assert_eq!(races.touch(8, 4, touch(0, false)), Err((10, 1)));
        races.sync_warp(0);
        assert_eq!(races.touch(8, 4, touch(0, false)), Ok(()));
    }
}
