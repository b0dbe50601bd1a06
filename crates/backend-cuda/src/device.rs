//! A device with this build's kernels loaded, shared by what computes on it.

use std::sync::Arc;

use crate::driver::{Context, CudaError, Kernels};
use crate::kernels::launch::DeviceShape;

/// A device, ready to compute. Clones share it.
#[derive(Clone, Debug)]
pub struct CudaDevice {
    pub(crate) context: Arc<Context>,
    pub(crate) kernels: Arc<Kernels>,
}

impl CudaDevice {
    /// Opens a device and loads the kernels.
    pub fn open(ordinal: usize) -> Result<Self, CudaError> {
        let context = Context::new(ordinal)?;
        let kernels = Arc::new(Kernels::load(&context)?);
        Ok(Self { context, kernels })
    }

    /// Free bytes and all bytes of its memory.
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        self.context.memory()
    }

    /// What launches are fitted to.
    pub(crate) fn shape(&self) -> DeviceShape {
        let info = self.context.info();
        DeviceShape {
            multiprocessors: info.num_multiprocessors,
            max_shared_bytes: info.max_shared_bytes.max(0).cast_unsigned(),
        }
    }

    /// The kind of device and of its code, which decides bits: `cuda-9.0-bfloat16`.
    #[must_use]
    pub fn kind(&self) -> String {
        let (major, minor) = self.context.info().capability;
        format!("cuda-{major}.{minor}")
    }
}
