//! The CUDA driver, called through cudarc: the few handles that the backend needs, each released by its
//! drop. The only unsafe code of this crate.
//!
//! Absent on purpose: what is computed. A handle keeps its [`Context`] alive; calls return the driver's
//! error with the name of the call.

mod context;
mod memory;
mod module;
mod stream;

pub(crate) use context::Context;
pub use context::{DeviceInfo, check_device, device_count};
pub(crate) use memory::{DeviceBuffer, PinnedBuffer};
pub(crate) use module::Kernels;
pub(crate) use stream::{Event, Stream};

use cudarc::driver::sys;
use thiserror::Error;

/// Why the driver could not do something.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CudaError {
    /// There is no driver.
    #[error(
        "no CUDA driver: libcuda.so.1 cannot be loaded; install NVIDIA's driver, or take --device cpu"
    )]
    NoDriver,
    /// No device of that number.
    #[error("CUDA device {ordinal} does not exist: this machine has {count}")]
    NoDevice {
        /// The one that was asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The driver is older than the compiler of the kernels.
    #[error(
        "the CUDA driver is for CUDA {}.{}; {}.{} or newer is needed",
        version / 1000, version % 1000 / 10, least / 1000, least % 1000 / 10
    )]
    OldDriver {
        /// As the driver says it: 12040 is 12.4.
        version: i32,
        /// The same of the compiler.
        least: i32,
    },
    /// The device is older than the kernels.
    #[error("{name} has compute capability {major}.{minor}; 8.0 or higher is needed")]
    TooOld {
        /// The device.
        name: String,
        /// Its capability.
        major: i32,
        /// Its capability.
        minor: i32,
    },
    /// This build has no kernels.
    #[error(
        "this build has no CUDA kernels: run `cargo xtask cuda-toolkit`, then build again with --features \
         cuda"
    )]
    NoKernels,
    /// A call failed.
    #[error("{call}: {name} ({code})")]
    Call {
        /// The driver's function.
        call: &'static str,
        /// The driver's name of the error.
        name: String,
        /// Its number.
        code: u32,
    },
}

impl CudaError {
    /// The driver's number of the error, if it is one of the driver's.
    #[must_use]
    pub fn code(&self) -> Option<u32> {
        match self {
            Self::Call { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether the device has no memory left.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        self.code() == Some(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY as u32)
    }
}

/// Turns a call's result into an error that names it.
pub(crate) fn check(call: &'static str, result: sys::CUresult) -> Result<(), CudaError> {
    if result == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    Err(CudaError::Call { call, name: error_name(result), code: result as u32 })
}

/// The driver's own name of an error.
fn error_name(result: sys::CUresult) -> String {
    let mut text = std::ptr::null();
    // SAFETY: the pointer is written to, or left as it is; what it then points to is a constant.
    let known = unsafe { sys::cuGetErrorName(result, &raw mut text) };
    if known != sys::CUresult::CUDA_SUCCESS || text.is_null() {
        return format!("{result:?}");
    }
    // SAFETY: the driver gave a C string that lives as long as the library.
    unsafe { std::ffi::CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
