//! Memory of a device, and memory of the host that a device reads and writes by itself.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::sys;

use super::{Context, CudaError, check};

/// Bytes of a device's memory. Contents are undefined until they are written.
#[derive(Debug)]
pub(crate) struct DeviceBuffer {
    address: u64,
    bytes: usize,
    context: Arc<Context>,
}

impl DeviceBuffer {
    /// Takes `bytes` of the device's memory; at least one.
    pub(crate) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        let mut address = 0;
        let bytes = bytes.max(1);
        context.bind()?;
        // SAFETY: a context is current; one number is written.
        check("cuMemAlloc", unsafe { sys::cuMemAlloc_v2(&raw mut address, bytes) })?;
        Ok(Self { address, bytes, context: Arc::clone(context) })
    }

    /// Its first byte, as kernels see it.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// How many there are.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        // A lost context has freed it.
        if self.context.bind().is_ok() {
            // SAFETY: allocated by `new`, freed once; the driver waits for what still uses it.
            let _ = unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}

/// Page-locked memory of the host, zeroed. The device copies from and to it while the host goes on, so
/// whoever enqueues a copy waits for it before the memory is touched again.
#[derive(Debug)]
pub(crate) struct PinnedBuffer<T: Pod> {
    start: std::ptr::NonNull<T>,
    len: usize,
    context: Arc<Context>,
}

// SAFETY: it owns plain memory.
unsafe impl<T: Pod + Send> Send for PinnedBuffer<T> {}

impl<T: Pod> PinnedBuffer<T> {
    /// Takes memory for `len` values.
    pub(crate) fn new(context: &Arc<Context>, len: usize) -> Result<Self, CudaError> {
        let mut start = std::ptr::null_mut();
        let bytes = (len * size_of::<T>()).max(1);
        context.bind()?;
        // SAFETY: a context is current; one pointer is written.
        check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&raw mut start, bytes, 0) })?;
        let found = std::ptr::NonNull::new(start.cast::<T>());
        let start = found.ok_or(CudaError::Call {
            call: "cuMemHostAlloc",
            name: "null".to_owned(),
            code: 0,
        })?;
        // SAFETY: the driver gave so many bytes, aligned to pages; zeros are a `Pod` value.
        unsafe { start.as_ptr().cast::<u8>().write_bytes(0, bytes) };
        Ok(Self { start, len, context: Arc::clone(context) })
    }
}

impl<T: Pod> Deref for PinnedBuffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` initialized values lie there, owned by this one.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Pod> DerefMut for PinnedBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed for writing.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: Pod> Drop for PinnedBuffer<T> {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: allocated by `new`, freed once.
            let _ = unsafe { sys::cuMemFreeHost(self.start.as_ptr().cast()) };
        }
    }
}
