//! What all blocks of a launch share.

use super::program::{Constant, Program};
use super::registers::Registers;
use super::windows::PARAM_BASE;
use crate::decode::Special;
use crate::fault::{FaultKind, Space};
use crate::launch::Options;
use crate::memory::Memory;

/// A launch.
#[derive(Debug)]
pub(crate) struct Kernel<'a> {
    pub(crate) program: &'a Program,
    pub(crate) memory: &'a Memory,
    pub(crate) options: &'a Options,
    pub(crate) params: &'a [u8],
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic_shared_bytes: u32,
    /// Addresses of the module's variables.
    pub(crate) variables: &'a [u64],
}

/// Why a warp was stopped.
#[derive(Debug)]
pub(crate) struct Stop {
    pub(crate) lane: u32,
    pub(crate) what: FaultKind,
}

impl Kernel<'_> {
    pub(crate) fn num_threads(&self) -> u32 {
        self.block.iter().product()
    }

    pub(crate) fn shared_bytes(&self) -> u32 {
        if self.dynamic_shared_bytes == 0 {
            self.program.shared_bytes
        } else {
            self.program.dynamic_offset + self.dynamic_shared_bytes
        }
    }

    /// `%tid` of a thread that is counted through the block.
    pub(crate) fn thread(&self, linear: u32) -> [u32; 3] {
        let [x, y, _] = self.block;
        [linear % x, linear / x % y, linear / x / y]
    }

    /// Fills the constant rows of a warp.
    pub(crate) fn constants(&self, registers: &mut Registers, warp: u32, ctaid: [u32; 3]) {
        for &(row, constant) in &self.program.constants {
            match constant {
                Constant::Word(value) => *registers.get_mut(row) = [value; 32],
                Constant::Double(value) => *registers.get_mut(row) = [value; 32],
                Constant::Variable(index, offset) => {
                    let address = self.variables[index as usize].wrapping_add_signed(offset);
                    *registers.get_mut(row) = [address; 32];
                }
                Constant::Dynamic(offset) => {
                    *registers.get_mut(row) =
                        [(i64::from(self.program.dynamic_offset) + offset) as u32; 32];
                }
                Constant::DynamicDouble(offset) => {
                    *registers.get_mut(row) =
                        [(i64::from(self.program.dynamic_offset) + offset) as u64; 32];
                }
                Constant::Special(special) => {
                    *registers.get_mut(row) =
                        std::array::from_fn(|lane| self.special(special, warp, lane as u32, ctaid));
                }
            }
        }
    }

    fn special(&self, special: Special, warp: u32, lane: u32, ctaid: [u32; 3]) -> u32 {
        match special {
            Special::Tid(axis) => self.thread(warp * 32 + lane)[axis as usize],
            Special::Ntid(axis) => self.block[axis as usize],
            Special::Ctaid(axis) => ctaid[axis as usize],
            Special::Nctaid(axis) => self.grid[axis as usize],
            Special::Lane => lane,
            Special::Warp => warp,
            Special::NumWarps => self.num_threads().div_ceil(32),
            Special::LaneMask(0) => 1 << lane,
            Special::LaneMask(1) => (1 << lane) - 1,
            Special::LaneMask(2) => u32::MAX >> (31 - lane),
            Special::LaneMask(3) => !(u32::MAX >> (31 - lane)),
            Special::LaneMask(_) => !((1 << lane) - 1),
            Special::DynamicSharedBytes => self.dynamic_shared_bytes,
            Special::TotalSharedBytes => self.shared_bytes(),
            Special::Fixed(value) => value,
        }
    }

    /// Bytes of the parameters.
    pub(crate) fn param(&self, address: u64, out: &mut [u8]) -> Result<(), FaultKind> {
        let len = out.len();
        let offset = address.wrapping_sub(PARAM_BASE);
        let bytes =
            usize::try_from(offset).ok().and_then(|start| self.params.get(start..)?.get(..len));
        match bytes {
            Some(bytes) => out.copy_from_slice(bytes),
            None => {
                return Err(FaultKind::OutOfBounds {
                    space: Space::Param,
                    address: offset,
                    len: len as u32,
                });
            }
        }
        Ok(())
    }
}
