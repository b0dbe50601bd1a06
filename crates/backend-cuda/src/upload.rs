//! From the host's memory to the device's, through two page-locked buffers that take turns: while the
//! device copies one, the other is filled.

use std::sync::Arc;

use crate::driver::{Context, CudaError, DeviceBuffer, Event, PinnedBuffer, Stream};

/// Bytes of one of the buffers.
const CHUNK: usize = 4 << 20;

#[derive(Debug)]
pub(crate) struct Uploader {
    context: Arc<Context>,
    stages: [(PinnedBuffer<u8>, Event); 2],
    next: usize,
}

impl Uploader {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self, CudaError> {
        let stage =
            || Ok::<_, CudaError>((PinnedBuffer::new(context, CHUNK)?, Event::new(context)?));
        Ok(Self { context: Arc::clone(context), stages: [stage()?, stage()?], next: 0 })
    }

    /// A buffer with these bytes; they are there for all that is enqueued later.
    pub(crate) fn upload(
        &mut self,
        stream: &Stream,
        bytes: &[u8],
    ) -> Result<DeviceBuffer, CudaError> {
        let buffer = DeviceBuffer::new(&self.context, bytes.len())?;
        self.write(stream, &buffer, 0, bytes)?;
        Ok(buffer)
    }

    /// The same into a buffer that is there, from `offset` bytes on.
    pub(crate) fn write(
        &mut self,
        stream: &Stream,
        buffer: &DeviceBuffer,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), CudaError> {
        for (index, chunk) in bytes.chunks(CHUNK).enumerate() {
            let (stage, event) = &mut self.stages[self.next];
            // What it held before may still be on its way. An event that was never recorded is done.
            event.synchronize()?;
            stage[..chunk.len()].copy_from_slice(chunk);
            stream.upload(buffer, offset + index * CHUNK, stage, 0..chunk.len())?;
            event.record(stream)?;
            self.next = 1 - self.next;
        }
        Ok(())
    }
}
