//! AMX: asking the kernel for tiles, and the tile operation, in hardware and as a model of it.

mod unit;

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) use unit::HardwareTiles;
#[cfg(any(test, all(target_arch = "x86_64", target_os = "linux")))]
pub(crate) use unit::SoftwareTiles;
pub(crate) use unit::{TILE_ROWS, TileUnit};

/// Whether the CPU has AMX tiles with bfloat16 that keep to Intel's definition, and Linux lets
/// this process use them.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub(crate) fn request_tiles() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    use std::sync::OnceLock;

    /// `ARCH_REQ_XCOMP_PERM`: ask for the use of an extended register state (arch_prctl(2)).
    const REQUEST_PERMISSION: libc::c_long = 0x1023;
    /// `XFEATURE_XTILEDATA`: the tiles.
    const TILE_DATA: libc::c_long = 18;
    /// AMX-BF16 and AMX-TILE in EDX of leaf 7.
    const FEATURES: u32 = 1 << 22 | 1 << 24;
    static GRANTED: OnceLock<bool> = OnceLock::new();
    *GRANTED.get_or_init(|| {
        if __cpuid(0).eax < 7 || __cpuid_count(7, 0).edx & FEATURES != FEATURES {
            return false;
        }
        // SAFETY: this request only changes which instructions the process may use.
        let granted =
            unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 };
        // Groups of other sizes are computed without tiles: a CPU or hypervisor whose tiles round
        // differently would make a request's bits depend on its batch, so it counts as having none.
        // SAFETY: the CPU has tiles and the kernel granted them; no other tiles of this thread are in use.
        granted && unit::agree(&unsafe { HardwareTiles::new() }, &SoftwareTiles)
    })
}

/// Only Linux on x86-64 is asked.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
pub(crate) fn request_tiles() -> bool {
    false
}
