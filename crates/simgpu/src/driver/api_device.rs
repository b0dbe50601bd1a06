//! Initialization, devices, contexts.

use std::ffi::{c_char, c_int};

use super::CuResult;
use super::device::Device;
use super::handles::{context_handle, current, device_of_context, registry, set_current};
use super::settings::settings;

/// CUDA 13.0.
const VERSION: c_int = 13_000;
/// Streaming multiprocessors of a device: few, so that small steps fill it.
const MULTIPROCESSORS: c_int = 4;
/// Shared memory of one block at most, as devices of the capability have it.
pub(crate) fn max_shared_bytes() -> c_int {
    match settings().capability {
        (8, 0 | 7) => 163 << 10,
        (8 | 12, _) => 99 << 10,
        _ => 227 << 10,
    }
}

fn check_device(device: c_int) -> Result<usize, CuResult> {
    let number = usize::try_from(device).map_err(|_| CuResult::INVALID_DEVICE)?;
    if number < settings().num_devices { Ok(number) } else { Err(CuResult::INVALID_DEVICE) }
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(flags: u32) -> CuResult {
    match (flags, settings().num_devices) {
        (0, 0) => CuResult::NO_DEVICE,
        (0, _) => CuResult::SUCCESS,
        _ => CuResult::INVALID_VALUE,
    }
}

/// # Safety
/// `version` points to a place for an integer.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> CuResult {
    // SAFETY: the caller's promise.
    unsafe { *version = VERSION };
    CuResult::SUCCESS
}

/// # Safety
/// `count` points to a place for an integer.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> CuResult {
    // SAFETY: the caller's promise.
    unsafe { *count = settings().num_devices as c_int };
    CuResult::SUCCESS
}

/// # Safety
/// `device` points to a place for an integer.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> CuResult {
    CuResult::of(check_device(ordinal).map(|_| {
        // SAFETY: the caller's promise.
        unsafe { *device = ordinal };
    }))
}

/// # Safety
/// `name` points to `len` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, device: c_int) -> CuResult {
    const NAME: &[u8] = b"Oarlock simulated GPU\0";
    CuResult::of(check_device(device).and_then(|_| {
        let len = usize::try_from(len).unwrap_or(0);
        if len < NAME.len() {
            return Err(CuResult::INVALID_VALUE);
        }
        // SAFETY: the caller's promise; the name is no longer than that.
        unsafe { std::ptr::copy_nonoverlapping(NAME.as_ptr(), name.cast(), NAME.len()) };
        Ok(())
    }))
}

/// # Safety
/// `bytes` points to a place for a size.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) -> CuResult {
    CuResult::of(check_device(device).map(|_| {
        // SAFETY: the caller's promise.
        unsafe { *bytes = settings().memory_bytes as usize };
    }))
}

/// An attribute by its number in `CUdevice_attribute`.
fn attribute(number: c_int) -> Option<c_int> {
    Some(match number {
        // Threads, and x, y, z of a block; x, y, z of a grid.
        1..=3 => 1024,
        4 => 64,
        5 => c_int::MAX,
        6 | 7 => 65_535,
        // Shared memory of a block without asking; constant memory and registers of a block; lanes.
        8 => 48 << 10,
        9 | 12 => 64 << 10,
        10 => 32,
        16 => MULTIPROCESSORS,
        // Bytes of the L2 cache.
        38 => 40 << 20,
        75 => settings().capability.0,
        76 => settings().capability.1,
        97 => max_shared_bytes(),
        // Memory pools.
        115 => 0,
        _ => return None,
    })
}

/// # Safety
/// `value` points to a place for an integer.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(
    value: *mut c_int,
    number: c_int,
    device: c_int,
) -> CuResult {
    CuResult::of(check_device(device).and_then(|_| {
        let found = attribute(number).ok_or(CuResult::INVALID_VALUE)?;
        // SAFETY: the caller's promise.
        unsafe { *value = found };
        Ok(())
    }))
}

/// # Safety
/// `context` points to a place for a handle.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut u64, device: c_int) -> CuResult {
    CuResult::of(check_device(device).map(|number| {
        registry().devices.entry(number).or_insert_with(|| Device::start(number));
        // SAFETY: the caller's promise.
        unsafe { *context = context_handle(number) };
    }))
}

/// The device stays: another retain finds it as it was left.
#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> CuResult {
    CuResult::of(check_device(device).map(drop))
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: u64) -> CuResult {
    if context == 0 {
        set_current(None);
        return CuResult::SUCCESS;
    }
    let Some(device) = device_of_context(context) else { return CuResult::INVALID_CONTEXT };
    set_current(Some(device));
    CuResult::SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> CuResult {
    CuResult::of(current().and_then(|device| device.synchronize_all()))
}
