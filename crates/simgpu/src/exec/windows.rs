//! Generic addresses: which part of the address space is shared memory, local memory, parameters.

/// Shared memory; its low 32 bits are zero, so that truncating gives the offset.
pub(crate) const SHARED_BASE: u64 = 0xf000_0000_0000;
/// Local memory of each thread.
pub(crate) const LOCAL_BASE: u64 = 0xf100_0000_0000;
/// Parameters of the kernel.
pub(crate) const PARAM_BASE: u64 = 0xf200_0000_0000;
/// Length of each.
const WINDOW_BYTES: u64 = 1 << 32;

/// Whether an address lies in the window that starts at `base`.
#[inline(always)]
pub(crate) fn is_in(address: u64, base: u64) -> bool {
    address.wrapping_sub(base) < WINDOW_BYTES
}
