//! Results of the driver's functions.

use std::ffi::{CStr, c_char};

use crate::fault::{Fault, FaultKind};
use crate::memory::MemoryError;

/// `CUresult`: 0 is success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct CuResult(pub(crate) u32);

macro_rules! results {
    ($($name:ident = $code:literal, $driver_name:literal;)*) => {
        impl CuResult {
            $(pub(crate) const $name: Self = Self($code);)*
        }

        /// The driver's name of a result.
        fn name(result: CuResult) -> Option<&'static CStr> {
            match result.0 {
                $($code => Some($driver_name),)*
                _ => None,
            }
        }
    };
}

results! {
    SUCCESS = 0, c"CUDA_SUCCESS";
    INVALID_VALUE = 1, c"CUDA_ERROR_INVALID_VALUE";
    OUT_OF_MEMORY = 2, c"CUDA_ERROR_OUT_OF_MEMORY";
    NO_DEVICE = 100, c"CUDA_ERROR_NO_DEVICE";
    INVALID_DEVICE = 101, c"CUDA_ERROR_INVALID_DEVICE";
    INVALID_CONTEXT = 201, c"CUDA_ERROR_INVALID_CONTEXT";
    NO_BINARY_FOR_GPU = 209, c"CUDA_ERROR_NO_BINARY_FOR_GPU";
    INVALID_PTX = 218, c"CUDA_ERROR_INVALID_PTX";
    INVALID_HANDLE = 400, c"CUDA_ERROR_INVALID_HANDLE";
    NOT_FOUND = 500, c"CUDA_ERROR_NOT_FOUND";
    NOT_READY = 600, c"CUDA_ERROR_NOT_READY";
    ILLEGAL_ADDRESS = 700, c"CUDA_ERROR_ILLEGAL_ADDRESS";
    LAUNCH_OUT_OF_RESOURCES = 701, c"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES";
    LAUNCH_TIMEOUT = 702, c"CUDA_ERROR_LAUNCH_TIMEOUT";
    ASSERT = 710, c"CUDA_ERROR_ASSERT";
    MISALIGNED_ADDRESS = 716, c"CUDA_ERROR_MISALIGNED_ADDRESS";
    LAUNCH_FAILED = 719, c"CUDA_ERROR_LAUNCH_FAILED";
}

impl CuResult {
    /// What a call returns.
    pub(crate) fn of(outcome: Result<(), Self>) -> Self {
        outcome.err().unwrap_or(Self::SUCCESS)
    }
}

impl From<MemoryError> for CuResult {
    fn from(error: MemoryError) -> Self {
        match error {
            MemoryError::OutOfMemory { .. } => Self::OUT_OF_MEMORY,
            _ => Self::INVALID_VALUE,
        }
    }
}

/// What hardware says of a kernel that was stopped for this.
pub(crate) fn of_fault(fault: &Fault) -> CuResult {
    match fault.what {
        FaultKind::OutOfBounds { .. } => CuResult::ILLEGAL_ADDRESS,
        FaultKind::Misaligned { .. } => CuResult::MISALIGNED_ADDRESS,
        FaultKind::Trap { .. } => CuResult::ASSERT,
        FaultKind::TooLong { .. } => CuResult::LAUNCH_TIMEOUT,
        _ => CuResult::LAUNCH_FAILED,
    }
}

/// # Safety
/// `text` points to a place for a pointer.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(result: CuResult, text: *mut *const c_char) -> CuResult {
    let found = name(result);
    // SAFETY: the caller's promise.
    unsafe { *text = found.map_or(std::ptr::null(), CStr::as_ptr) };
    if found.is_some() { CuResult::SUCCESS } else { CuResult::INVALID_VALUE }
}

/// # Safety
/// `text` points to a place for a pointer.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(result: CuResult, text: *mut *const c_char) -> CuResult {
    // SAFETY: the caller's promise.
    unsafe { cuGetErrorName(result, text) }
}
