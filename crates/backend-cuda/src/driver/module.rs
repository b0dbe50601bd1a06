//! Compiled kernels on a device, and their launches.

use std::collections::BTreeMap;
use std::ffi::{CString, c_void};
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::sys::{self, CUfunction_attribute_enum as Attribute};

use super::{Context, CudaError, Stream, check};
use crate::kernels::{Launch, MODULES, Module};

/// The driver's number for machine code that it cannot use.
const NO_BINARY_FOR_GPU: u32 = sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU as u32;

/// All entries of this build, loaded.
#[derive(Debug)]
pub(crate) struct Kernels {
    modules: Vec<sys::CUmodule>,
    functions: BTreeMap<&'static str, sys::CUfunction>,
    context: Arc<Context>,
}

// SAFETY: modules and functions may be used from any thread with their context current.
unsafe impl Send for Kernels {}
// SAFETY: as above; the driver's calls are thread-safe.
unsafe impl Sync for Kernels {}

impl Kernels {
    /// Loads what this build has, as machine code where it has some for the device, and otherwise as PTX,
    /// which the driver compiles.
    pub(crate) fn load(context: &Arc<Context>) -> Result<Self, CudaError> {
        if MODULES.is_empty() {
            return Err(CudaError::NoKernels);
        }
        context.bind()?;
        let mut this =
            Self { modules: Vec::new(), functions: BTreeMap::new(), context: Arc::clone(context) };
        let (major, minor) = context.info().capability;
        for module in MODULES {
            let handle = load_module(module, (major * 10 + minor).cast_unsigned())?;
            this.modules.push(handle);
            for entry in module.entries {
                let shared_bytes = context.info().max_shared_bytes;
                this.functions.insert(entry, find(handle, entry, shared_bytes)?);
            }
        }
        Ok(this)
    }

    /// Enqueues a launch with one struct of parameters.
    ///
    /// # Panics
    /// If there is no such entry.
    pub(crate) fn launch<P: Pod>(
        &self,
        stream: &Stream,
        launch: &Launch,
        params: &P,
    ) -> Result<(), CudaError> {
        let function = self.functions.get(launch.entry);
        let function = function.unwrap_or_else(|| panic!("kernels/ has {}", launch.entry));
        let config = sys::CUlaunchConfig {
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: launch.grid[2],
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared_bytes,
            hStream: stream.handle(),
            attrs: std::ptr::null_mut(),
            numAttrs: 0,
        };
        let mut arguments = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        // SAFETY: every entry takes one struct, whose mirror has its size (a test compares them), and this crate
        // launches an entry with its own struct only; the driver copies it before the call returns. What its
        // pointers name is the caller's.
        let result = unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                *function,
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        check("cuLaunchKernelEx", result)
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            for module in &self.modules {
                // SAFETY: loaded once, unloaded once; nobody launches any more.
                let _ = unsafe { sys::cuModuleUnload(*module) };
            }
        }
    }
}

fn load_module(module: &Module, capability: u32) -> Result<sys::CUmodule, CudaError> {
    let own = |arch: u32| arch / 10 == capability / 10 && arch <= capability;
    let cubin = module.cubins.iter().rev().find(|(arch, _)| own(*arch));
    let ptx = module.ptx.iter().rev().find(|(arch, _)| *arch <= capability);
    if let Some((_, bytes)) = cubin {
        match load_image(bytes.as_ptr().cast()) {
            // A driver that takes no machine code of this compiler may take its PTX.
            Err(error) if error.code() == Some(NO_BINARY_FOR_GPU) => {}
            outcome => return outcome,
        }
    }
    let Some((_, text)) = ptx else { return Err(CudaError::NoKernels) };
    // The driver reads up to a zero.
    let text = CString::new(*text).map_err(|_| CudaError::NoKernels)?;
    load_image(text.as_ptr().cast())
}

fn load_image(image: *const c_void) -> Result<sys::CUmodule, CudaError> {
    let mut handle = std::ptr::null_mut();
    // SAFETY: a context is current; the image is a whole cubin, or PTX with a zero at its end.
    check("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&raw mut handle, image) })?;
    Ok(handle)
}

/// An entry, allowed to take all the shared memory that a block may have: 48 KiB otherwise.
fn find(
    module: sys::CUmodule,
    entry: &str,
    max_shared_bytes: i32,
) -> Result<sys::CUfunction, CudaError> {
    let mut handle = std::ptr::null_mut();
    let name = CString::new(entry).map_err(|_| CudaError::NoKernels)?;
    let mut own_bytes = 0;
    // SAFETY: the module is loaded, the name ends with a zero, the function is the module's.
    unsafe {
        let found = sys::cuModuleGetFunction(&raw mut handle, module, name.as_ptr());
        check("cuModuleGetFunction", found)?;
        let attribute = Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        let asked = sys::cuFuncGetAttribute(&raw mut own_bytes, attribute, handle);
        check("cuFuncGetAttribute", asked)?;
        let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let rest = (max_shared_bytes - own_bytes).max(0);
        check("cuFuncSetAttribute", sys::cuFuncSetAttribute(handle, attribute, rest))?;
    }
    Ok(handle)
}
