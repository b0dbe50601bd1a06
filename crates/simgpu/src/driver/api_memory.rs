//! Memory of devices, page-locked memory, copies.

use std::alloc::{Layout, alloc_zeroed, dealloc};

use super::CuResult;
use super::device::Device;
use super::handles::{current, device_of_stream, registry};
use super::streams::{Operation, Source};

/// Alignment of page-locked memory.
const PAGE: usize = 4096;

/// # Safety
/// `free` and `total` point to places for sizes.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> CuResult {
    CuResult::of(current().map(|device| {
        // SAFETY: the caller's promise.
        unsafe {
            *free = device.memory.free_bytes() as usize;
            *total = device.memory.capacity() as usize;
        }
    }))
}

/// # Safety
/// `address` points to a place for an address.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> CuResult {
    CuResult::of(current().and_then(|device| {
        if bytes == 0 {
            return Err(CuResult::INVALID_VALUE);
        }
        let start = device.memory.allocate(bytes as u64)?;
        // SAFETY: the caller's promise.
        unsafe { *address = start };
        Ok(())
    }))
}

/// Waits for the device first, as the driver does.
#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> CuResult {
    CuResult::of(current().and_then(|device| {
        device.synchronize_all()?;
        Ok(device.memory.free(address)?)
    }))
}

fn layout(bytes: usize) -> Result<Layout, CuResult> {
    Layout::from_size_align(bytes.max(1), PAGE).map_err(|_| CuResult::INVALID_VALUE)
}

/// # Safety
/// `address` points to a place for an address.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostAlloc(address: *mut u64, bytes: usize, _flags: u32) -> CuResult {
    CuResult::of(current().and_then(|_| {
        let layout = layout(bytes)?;
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(layout) };
        if start.is_null() {
            return Err(CuResult::OUT_OF_MEMORY);
        }
        registry().pinned.insert(start.expose_provenance() as u64, bytes);
        // SAFETY: the caller's promise.
        unsafe { *address = start.expose_provenance() as u64 };
        Ok(())
    }))
}

/// Waits for all devices first: one may be copying.
#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(address: u64) -> CuResult {
    let devices: Vec<_> = registry().devices.values().cloned().collect();
    for device in devices {
        // What failed does not copy any more.
        let _ = device.synchronize_all();
    }
    let Some(bytes) = registry().pinned.remove(&address) else { return CuResult::INVALID_VALUE };
    CuResult::of(layout(bytes).map(|layout| {
        let start: *mut u8 = std::ptr::with_exposed_provenance_mut(address as usize);
        // SAFETY: allocated with this layout by `cuMemHostAlloc`, and freed once.
        unsafe { dealloc(start, layout) };
    }))
}

/// Refuses a range that is not inside of one allocation.
fn check_range(device: &Device, address: u64, bytes: u64) -> Result<(), CuResult> {
    let (start, len) = device.memory.allocation(address).ok_or(CuResult::INVALID_VALUE)?;
    let end = address.checked_add(bytes).ok_or(CuResult::INVALID_VALUE)?;
    if end <= start + len { Ok(()) } else { Err(CuResult::INVALID_VALUE) }
}

/// # Safety
/// `from` points to so many bytes, which stay as they are until the stream has come past the copy if they
/// are page-locked.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: *const u8,
    bytes: usize,
    stream: u64,
) -> CuResult {
    CuResult::of(device_of_stream(stream).and_then(|device| {
        check_range(&device, to, bytes as u64)?;
        let address = from.expose_provenance() as u64;
        let source = if registry().is_pinned(address, bytes) {
            Source::Pinned { address, bytes }
        } else {
            // SAFETY: the caller's promise.
            Source::Copied(unsafe { std::slice::from_raw_parts(from, bytes) }.to_vec())
        };
        device.enqueue(stream, Operation::ToDevice { to, source })
    }))
}

/// # Safety
/// `to` points to so many bytes, which nobody touches until the stream has come past the copy.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: *mut u8,
    from: u64,
    bytes: usize,
    stream: u64,
) -> CuResult {
    CuResult::of(device_of_stream(stream).and_then(|device| {
        check_range(&device, from, bytes as u64)?;
        let address = to.expose_provenance() as u64;
        let is_pinned = registry().is_pinned(address, bytes);
        device.enqueue(stream, Operation::ToHost { to: address, from, bytes })?;
        // A copy to pageable memory is over when the call returns.
        if is_pinned { Ok(()) } else { device.synchronize(stream) }
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) -> CuResult {
    let bytes = bytes as u64;
    CuResult::of(device_of_stream(stream).and_then(|device| {
        check_range(&device, to, bytes)?;
        check_range(&device, from, bytes)?;
        device.enqueue(stream, Operation::OnDevice { to, from, bytes })
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(to: u64, byte: u8, bytes: usize, stream: u64) -> CuResult {
    let bytes = bytes as u64;
    CuResult::of(device_of_stream(stream).and_then(|device| {
        check_range(&device, to, bytes)?;
        device.enqueue(stream, Operation::Fill { to, byte, bytes })
    }))
}
