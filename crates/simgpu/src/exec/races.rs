//! Races on shared memory: two threads of a block touch a byte, at least one writes, nothing orders them.
//!
//! Each warp has a clock that advances at its barriers, and knows up to which clock of every other
//! warp it has synchronized. For each word the last write and two reads are remembered with thread and
//! clock; a word that is accessed in parts is split into bytes. Inside a warp, an instruction with
//! `.sync` orders all of its lanes.

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
}

#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    write: Record,
    reads: [Record; 2],
}

/// What a warp knows of the clocks of all warps.
pub(crate) type Clocks = [u32; MAX_WARPS];

/// The race detector of a block.
#[derive(Debug, Default)]
pub(crate) struct Races {
    words: Vec<Cell>,
    /// Words that are accessed in parts.
    is_split: Vec<bool>,
    split: HashMap<u32, [Cell; 4]>,
    clocks: Vec<u32>,
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
        self.is_split.clear();
        self.is_split.resize(num_words, false);
        self.split.clear();
        self.clocks.clear();
        self.clocks.resize(num_warps, 1);
        self.seen.clear();
        self.seen.resize(num_warps, [0; MAX_WARPS]);
    }

    /// Checks and remembers an access; the address and the other thread of a race.
    #[inline]
    pub(crate) fn touch(&mut self, offset: u32, len: u32, touch: Touch) -> Result<(), (u32, u32)> {
        let mut at = offset;
        let end = offset + len;
        while at < end {
            let word = at / 4;
            let is_whole = at.is_multiple_of(4) && end - at >= 4;
            if is_whole && !self.is_split[word as usize] {
                let mut cell = self.words[word as usize];
                let raced = self.check(&mut cell, touch);
                self.words[word as usize] = cell;
                raced.map_err(|other| (at, other))?;
                at += 4;
            } else {
                let part_end = end.min((word + 1) * 4);
                self.touch_bytes(at, part_end, touch)?;
                at = part_end;
            }
        }
        Ok(())
    }

    fn touch_bytes(&mut self, start: u32, end: u32, touch: Touch) -> Result<(), (u32, u32)> {
        let word = start / 4;
        let whole = self.words[word as usize];
        self.is_split[word as usize] = true;
        let mut cells = *self.split.entry(word).or_insert([whole; 4]);
        let mut result = Ok(());
        for at in start..end {
            let raced = self.check(&mut cells[(at % 4) as usize], touch);
            result = result.and(raced.map_err(|other| (at, other)));
        }
        self.split.insert(word, cells);
        result
    }

    #[inline]
    fn check(&self, cell: &mut Cell, touch: Touch) -> Result<(), u32> {
        let (warp, lane) = ((touch.thread / 32) as usize, touch.thread % 32);
        let me = Record::new(touch.thread, self.clocks[warp], touch.is_strong);
        let is_safe = |record: Record| {
            self.is_ordered(record, warp, lane) || (record.is_strong() && touch.is_strong)
        };
        if !is_safe(cell.write) {
            return Err(cell.write.thread());
        }
        if touch.is_write {
            for read in cell.reads {
                if !is_safe(read) {
                    return Err(read.thread());
                }
            }
            *cell = Cell { write: me, reads: [Record::default(); 2] };
        } else if self.is_ordered(cell.reads[0], warp, lane) {
            cell.reads[0] = me;
        } else if self.is_ordered(cell.reads[1], warp, lane) {
            cell.reads[1] = me;
        }
        Ok(())
    }

    /// Whether an earlier access happened before anything that the thread does now.
    #[inline]
    fn is_ordered(&self, record: Record, warp: usize, lane: u32) -> bool {
        if record == Record::default() {
            return true;
        }
        let (other, clock) = ((record.thread() / 32) as usize, record.clock());
        if other == warp {
            record.thread() % 32 == lane || clock < self.clocks[warp]
        } else {
            clock < self.seen[warp][other]
        }
    }

    /// An instruction with `.sync` orders the lanes of a warp.
    pub(crate) fn sync_warp(&mut self, warp: usize) {
        self.clocks[warp] += 1;
        if self.clocks[warp] >= MAX_CLOCK {
            self.forget();
        }
    }

    /// A warp arrives at a barrier: adds what it did and knows to what the barrier passes on.
    pub(crate) fn arrive(&mut self, warp: usize, passed: &mut Clocks) {
        self.seen[warp][warp] = self.clocks[warp] + 1;
        for (sum, seen) in passed.iter_mut().zip(&self.seen[warp]) {
            *sum = (*sum).max(*seen);
        }
        self.sync_warp(warp);
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
