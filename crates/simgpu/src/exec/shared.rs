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
