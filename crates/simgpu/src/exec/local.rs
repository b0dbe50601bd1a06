//! Local memory of a warp's threads.

use crate::fault::{FaultKind, Space};

const SPACE: Space = Space::Local;

/// Bytes of each lane, one lane after the other.
#[derive(Debug, Default)]
pub(crate) struct Local {
    bytes_per_lane: usize,
    data: Vec<u8>,
    is_written: Vec<bool>,
}

impl Local {
    pub(crate) fn reset(&mut self, bytes_per_lane: u32) {
        self.bytes_per_lane = bytes_per_lane as usize;
        let size = 32 * self.bytes_per_lane;
        self.data.clear();
        self.data.resize(size, 0xa5);
        self.is_written.clear();
        self.is_written.resize(size, false);
    }

    fn range(
        &self,
        lane: usize,
        offset: u64,
        len: u32,
    ) -> Result<std::ops::Range<usize>, FaultKind> {
        if offset & u64::from(len - 1) != 0 {
            return Err(FaultKind::Misaligned { space: SPACE, address: offset, len });
        }
        if offset + u64::from(len) > self.bytes_per_lane as u64 {
            return Err(FaultKind::OutOfBounds { space: SPACE, address: offset, len });
        }
        let start = lane * self.bytes_per_lane + offset as usize;
        Ok(start..start + len as usize)
    }

    pub(crate) fn read(
        &self,
        lane: usize,
        offset: u64,
        out: &mut [u8],
        checks: bool,
    ) -> Result<(), FaultKind> {
        let len = out.len() as u32;
        let range = self.range(lane, offset, len)?;
        if checks && !self.is_written[range.clone()].iter().all(|&written| written) {
            return Err(FaultKind::Uninitialized { space: SPACE, address: offset, len });
        }
        out.copy_from_slice(&self.data[range]);
        Ok(())
    }

    pub(crate) fn write(
        &mut self,
        lane: usize,
        offset: u64,
        bytes: &[u8],
    ) -> Result<(), FaultKind> {
        let range = self.range(lane, offset, bytes.len() as u32)?;
        self.is_written[range.clone()].fill(true);
        self.data[range].copy_from_slice(bytes);
        Ok(())
    }
}
