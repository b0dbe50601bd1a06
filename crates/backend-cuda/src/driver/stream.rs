//! Streams, in which operations go in order, and events, by which others see how far they are.

use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::sys;

use super::{Context, CudaError, DeviceBuffer, PinnedBuffer, check};

/// A queue of the device.
#[derive(Debug)]
pub(crate) struct Stream {
    handle: sys::CUstream,
    context: Arc<Context>,
}

// SAFETY: a stream may be used from any thread with its context current.
unsafe impl Send for Stream {}

impl Stream {
    /// A stream that does not wait for the default one.
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self, CudaError> {
        let mut stream = std::ptr::null_mut();
        context.bind()?;
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: a context is current; one handle is written.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&raw mut stream, flags) })?;
        Ok(Self { handle: stream, context: Arc::clone(context) })
    }

    pub(super) fn handle(&self) -> sys::CUstream {
        self.handle
    }

    /// Waits until all that was enqueued is done. The first error of any of it is returned.
    pub(crate) fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the stream lives.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.handle) })
    }

    /// Copies `source` to the device, from `offset` bytes on. `source` must not change until the stream has
    /// come past it.
    ///
    /// # Panics
    /// If the buffer has no room for it.
    pub(crate) fn upload<T: Pod>(
        &self,
        to: &DeviceBuffer,
        offset: usize,
        source: &PinnedBuffer<T>,
        range: std::ops::Range<usize>,
    ) -> Result<(), CudaError> {
        let bytes: &[u8] = bytemuck::cast_slice(&source[range]);
        assert!(offset + bytes.len() <= to.bytes(), "the copy ends inside of the buffer");
        if bytes.is_empty() {
            return Ok(());
        }
        let address = to.address() + offset as u64;
        // SAFETY: both ranges exist; the source is page-locked and the caller leaves it alone.
        let result = unsafe {
            sys::cuMemcpyHtoDAsync_v2(address, bytes.as_ptr().cast(), bytes.len(), self.handle)
        };
        check("cuMemcpyHtoDAsync", result)
    }

    /// Copies from the device, from `offset` bytes on, to `target`, which holds it once the stream has come
    /// past it.
    ///
    /// # Panics
    /// If the buffer has not so many bytes.
    pub(crate) fn download<T: Pod>(
        &self,
        target: &mut PinnedBuffer<T>,
        range: std::ops::Range<usize>,
        from: &DeviceBuffer,
        offset: usize,
    ) -> Result<(), CudaError> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut target[range]);
        assert!(offset + bytes.len() <= from.bytes(), "the copy begins inside of the buffer");
        if bytes.is_empty() {
            return Ok(());
        }
        let address = from.address() + offset as u64;
        // SAFETY: both ranges exist; the target is page-locked and the caller waits before it looks.
        let result = unsafe {
            sys::cuMemcpyDtoHAsync_v2(bytes.as_mut_ptr().cast(), address, bytes.len(), self.handle)
        };
        check("cuMemcpyDtoHAsync", result)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made by `new`, destroyed once; the driver lets it run out.
            let _ = unsafe { sys::cuStreamDestroy_v2(self.handle) };
        }
    }
}

/// A mark in a stream.
#[derive(Debug)]
pub(crate) struct Event {
    handle: sys::CUevent,
    context: Arc<Context>,
}

// SAFETY: an event may be used from any thread with its context current.
unsafe impl Send for Event {}

impl Event {
    /// An event without a time.
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self, CudaError> {
        let mut event = std::ptr::null_mut();
        context.bind()?;
        let flags = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: a context is current; one handle is written.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&raw mut event, flags) })?;
        Ok(Self { handle: event, context: Arc::clone(context) })
    }

    /// Marks the end of what is enqueued so far.
    pub(crate) fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: both live.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.handle, stream.handle) })
    }

    /// Waits for the last record.
    pub(crate) fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the event lives.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.handle) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made by `new`, destroyed once.
            let _ = unsafe { sys::cuEventDestroy_v2(self.handle) };
        }
    }
}
