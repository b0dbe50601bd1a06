//! Devices and their primary contexts.

use std::sync::Arc;

use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute};

use super::{CudaError, check};
use crate::kernels::HAS_KERNELS;

/// The release of the compiler whose PTX and machine code the driver must take, as drivers say theirs.
fn least_driver() -> i32 {
    option_env!("OARLOCK_NVCC_RELEASE").and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// How many devices there are; an error where there is no driver. Asks the loader first, since cudarc
/// panics where the library is missing.
pub fn device_count() -> Result<usize, CudaError> {
    // SAFETY: loading the driver's library runs its initializers, which the driver is made for.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    let mut count = 0;
    // SAFETY: the library is there; the second call writes one integer.
    unsafe {
        let started = sys::cuInit(0);
        if started == sys::CUresult::CUDA_ERROR_NO_DEVICE {
            return Ok(0);
        }
        check("cuInit", started)?;
        check("cuDeviceGetCount", sys::cuDeviceGetCount(&raw mut count))?;
    }
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Whether this build can compute on the device, as far as can be told without it.
pub fn check_device(ordinal: usize) -> Result<DeviceInfo, CudaError> {
    if !HAS_KERNELS {
        return Err(CudaError::NoKernels);
    }
    let count = device_count()?;
    if ordinal >= count {
        return Err(CudaError::NoDevice { ordinal, count });
    }
    let (mut version, mut device) = (0, 0);
    // SAFETY: the driver is initialized and has a device of this number; integers are written.
    let info = unsafe {
        check("cuDriverGetVersion", sys::cuDriverGetVersion(&raw mut version))?;
        check("cuDeviceGet", sys::cuDeviceGet(&raw mut device, ordinal as i32))?;
        device_info(device)?
    };
    if version < least_driver() {
        return Err(CudaError::OldDriver { version, least: least_driver() });
    }
    if info.capability.0 < 8 {
        let (major, minor) = info.capability;
        return Err(CudaError::TooOld { name: info.name, major, minor });
    }
    Ok(info)
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Streaming multiprocessors.
    pub num_multiprocessors: u32,
    /// Shared memory that one block may have at most.
    pub max_shared_bytes: i32,
}

/// A device's primary context.
#[derive(Debug)]
pub(crate) struct Context {
    device: sys::CUdevice,
    handle: sys::CUcontext,
    info: DeviceInfo,
}

// SAFETY: a context may be made current on any thread, and the driver's calls on it are thread-safe.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Retains the primary context of a device and makes it current.
    pub(crate) fn new(ordinal: usize) -> Result<Arc<Self>, CudaError> {
        let info = check_device(ordinal)?;
        let mut device = 0;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the driver is initialized and has a device of this number.
        unsafe {
            check("cuDeviceGet", sys::cuDeviceGet(&raw mut device, ordinal as i32))?;
            let retained = sys::cuDevicePrimaryCtxRetain(&raw mut handle, device);
            check("cuDevicePrimaryCtxRetain", retained)?;
            let this = Arc::new(Self { device, handle, info });
            this.bind()?;
            Ok(this)
        }
    }

    /// Makes it current on this thread; all other calls need that.
    pub(crate) fn bind(&self) -> Result<(), CudaError> {
        // SAFETY: the context is retained for as long as this value lives.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.handle) })
    }

    /// What the device is.
    pub(crate) fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// Free bytes and all bytes of the device's memory.
    pub(crate) fn memory(&self) -> Result<(u64, u64), CudaError> {
        let (mut free, mut total) = (0, 0);
        self.bind()?;
        // SAFETY: a context is current; two integers are written.
        let result = unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) };
        check("cuMemGetInfo", result)?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once by `new`. An error leaves nothing to do: the process ends soon.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// # Safety
/// The driver is initialized and the device is one of its.
unsafe fn device_info(device: sys::CUdevice) -> Result<DeviceInfo, CudaError> {
    let mut name = [0_u8; 128];
    let mut memory_bytes = 0;
    // SAFETY: the buffer has the length that is passed; the others write one number each.
    unsafe {
        let got = sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32, device);
        check("cuDeviceGetName", got)?;
        check("cuDeviceTotalMem", sys::cuDeviceTotalMem_v2(&raw mut memory_bytes, device))?;
        let attribute = |attribute| {
            let mut value = 0;
            let got = sys::cuDeviceGetAttribute(&raw mut value, attribute, device);
            check("cuDeviceGetAttribute", got).map(|()| value)
        };
        let name = std::ffi::CStr::from_bytes_until_nul(&name).unwrap_or_default();
        Ok(DeviceInfo {
            name: name.to_string_lossy().into_owned(),
            capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            memory_bytes: memory_bytes as u64,
            num_multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?
                .cast_unsigned(),
            max_shared_bytes: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
        })
    }
}
