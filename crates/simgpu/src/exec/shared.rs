//! A block's shared memory: bytes, which of them were written, and which a copy will still write.

use super::races::{Races, Touch};
use crate::fault::{FaultKind, Space};

const WRITTEN: u8 = 1;
/// Target of a `cp.async` that was not waited for.
const PENDING: u8 = 2;

const SPACE: Space = Space::Shared;

/// Shared memory.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) data: Vec<u8>,
    state: Vec<u8>,
    pub(crate) races: Races,
    checks_races: bool,
    checks_uninitialized: bool,
}

impl Shared {
    pub(crate) fn reset(&mut self, bytes: u32, num_warps: usize, races: bool, uninitialized: bool) {
        self.data.clear();
        self.data.resize(bytes as usize, 0xa5);
        self.state.clear();
        self.state.resize(bytes as usize, 0);
        (self.checks_races, self.checks_uninitialized) = (races, uninitialized);
        self.races.reset(if races { bytes } else { 0 }, num_warps);
    }

    /// Where an access lies, if it is aligned to its length and inside.
    #[inline]
    fn range(&self, address: u64, len: u32) -> Result<std::ops::Range<usize>, FaultKind> {
        if address & u64::from(len - 1) != 0 {
            return Err(FaultKind::Misaligned { space: SPACE, address, len });
        }
        let start = address as usize;
        if address >= self.data.len() as u64 || start + len as usize > self.data.len() {
            return Err(FaultKind::OutOfBounds { space: SPACE, address, len });
        }
        Ok(start..start + len as usize)
    }

    #[inline]
    fn touch(&mut self, address: u64, len: u32, touch: Touch) -> Result<(), FaultKind> {
        if self.checks_races {
            let raced = self.races.touch(address as u32, len, touch);
            raced.map_err(|(at, other)| FaultKind::SharedRace { address: u64::from(at), other })?;
        }
        Ok(())
    }

    /// Whether all states of a range are exactly `WRITTEN`.
    #[inline]
    fn is_written(states: &[u8]) -> bool {
        match states.len() {
            4 => states == [WRITTEN; 4],
            16 => states == [WRITTEN; 16],
            _ => states.iter().all(|&state| state == WRITTEN),
        }
    }

    fn pending(&self, range: std::ops::Range<usize>) -> Result<(), FaultKind> {
        let found = self.state[range.clone()].iter().position(|state| state & PENDING != 0);
        match found {
            Some(at) => Err(FaultKind::PendingAsyncCopy { address: (range.start + at) as u64 }),
            None => Ok(()),
        }
    }

    /// Checks a read; its bytes are then `data[range]`.
    #[inline]
    pub(crate) fn read(
        &mut self,
        address: u64,
        len: u32,
        touch: Touch,
    ) -> Result<std::ops::Range<usize>, FaultKind> {
        let range = self.range(address, len)?;
        if !Self::is_written(&self.state[range.clone()]) {
            self.pending(range.clone())?;
            if self.checks_uninitialized {
                return Err(FaultKind::Uninitialized { space: SPACE, address, len });
            }
        }
        self.touch(address, len, touch)?;
        Ok(range)
    }

    /// Reads an access of fixed length, the quick way where nothing is unusual.
    #[inline(always)]
    pub(crate) fn read_fixed<const N: usize>(
        &mut self,
        address: u64,
        touch: Touch,
    ) -> Result<[u8; N], FaultKind> {
        let start = address as usize;
        let is_usual = address.is_multiple_of(N as u64)
            && self
                .state
                .get(start..start.saturating_add(N))
                .is_some_and(|states| states == [WRITTEN; N]);
        if is_usual {
            self.touch(address, N as u32, touch)?;
        } else {
            self.read(address, N as u32, touch)?;
        }
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.data[start..start + N]);
        Ok(bytes)
    }

    /// Writes an access of fixed length, the quick way where nothing is unusual.
    #[inline(always)]
    pub(crate) fn write_fixed<const N: usize>(
        &mut self,
        address: u64,
        bytes: [u8; N],
        touch: Touch,
    ) -> Result<(), FaultKind> {
        let start = address as usize;
        let is_usual = address.is_multiple_of(N as u64)
            && self
                .state
                .get(start..start.saturating_add(N))
                .is_some_and(|states| states == [WRITTEN; N]);
        if !is_usual {
            return self.write(address, &bytes, touch);
        }
        self.touch(address, N as u32, touch)?;
        self.data[start..start + N].copy_from_slice(&bytes);
        Ok(())
    }

    /// Checks a write and does it.
    #[inline]
    pub(crate) fn write(
        &mut self,
        address: u64,
        bytes: &[u8],
        touch: Touch,
    ) -> Result<(), FaultKind> {
        let len = bytes.len() as u32;
        let range = self.range(address, len)?;
        if !Self::is_written(&self.state[range.clone()]) {
            self.pending(range.clone())?;
            self.state[range.clone()].fill(WRITTEN);
        }
        self.touch(address, len, touch)?;
        self.data[range].copy_from_slice(bytes);
        Ok(())
    }

    /// Bytes that the 32 lanes of a warp, the first of which `touch` names, read one after the other; none
    /// if anything is unusual, which goes lane by lane.
    #[inline]
    pub(crate) fn read_span(&mut self, address: u64, len: u32, touch: Touch) -> Option<&[u8]> {
        let range = self.span(address, len)?;
        if self.checks_races && !self.races.touch_span(address as u32, len, touch) {
            return None;
        }
        Some(&self.data[range])
    }

    /// Room for the bytes that the 32 lanes of a warp write one after the other.
    #[inline]
    pub(crate) fn write_span(&mut self, address: u64, len: u32, touch: Touch) -> Option<&mut [u8]> {
        let range = self.span(address, len)?;
        if self.checks_races && !self.races.touch_span(address as u32, len, touch) {
            return None;
        }
        Some(&mut self.data[range])
    }

    /// A range of 32 × `len` bytes that is aligned, inside, and written.
    fn span(&self, address: u64, len: u32) -> Option<std::ops::Range<usize>> {
        let (start, size) = (address as usize, 32 * len as usize);
        if !address.is_multiple_of(u64::from(len))
            || !len.is_multiple_of(4)
            || start.saturating_add(size) > self.data.len()
        {
            return None;
        }
        let states = &self.state[start..start + size];
        let mut differences = 0;
        for state in states {
            differences |= state ^ WRITTEN;
        }
        (differences == 0).then_some(start..start + size)
    }

    /// A copy is issued: its target may not be touched until it is waited for.
    pub(crate) fn begin_copy(
        &mut self,
        address: u64,
        len: u32,
        touch: Touch,
    ) -> Result<(), FaultKind> {
        let range = self.range(address, len)?;
        self.pending(range.clone())?;
        self.touch(address, len, touch)?;
        self.state[range].iter_mut().for_each(|state| *state |= PENDING);
        Ok(())
    }

    /// The data of a copy arrive; they may still not be touched.
    pub(crate) fn land_copy(&mut self, address: u64, bytes: &[u8]) {
        let start = address as usize;
        self.data[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// The copy's thread has waited for it: to the others this is a write by that thread, now.
    pub(crate) fn end_copy(
        &mut self,
        address: u64,
        len: u32,
        touch: Touch,
    ) -> Result<(), FaultKind> {
        let start = address as usize;
        self.state[start..start + len as usize].fill(WRITTEN);
        self.touch(address, len, touch)
    }
}
