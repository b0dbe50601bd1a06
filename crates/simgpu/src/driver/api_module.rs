//! Modules, functions, launches.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io::Write as _;
use std::sync::Arc;

use super::CuResult;
use super::api_device::max_shared_bytes;
use super::handles::{Function, current, device_of_stream, registry};
use super::streams::{LaunchOperation, Operation};
use crate::module::{Entry, Module};

/// Dynamic shared memory that a function may have without asking.
const PLAIN_SHARED_BYTES: u32 = 48 << 10;
/// Threads of a block at most.
const MAX_THREADS: u32 = 1024;
/// First bytes of machine code: an ELF file, a fat binary.
const MACHINE_CODE: [[u8; 4]; 2] = [[0x7f, b'E', b'L', b'F'], [0x50, 0xed, 0x55, 0xba]];

/// # Safety
/// `module` points to a place for a handle, `image` to machine code of at least four bytes or to a text
/// that ends with a zero.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadData(module: *mut u64, image: *const c_char) -> CuResult {
    // SAFETY: the caller's promise; a text of fewer bytes ends before.
    let starts_with =
        |code: &[u8; 4]| unsafe { (0..4).all(|at| *image.cast::<u8>().add(at) == code[at]) };
    if MACHINE_CODE.iter().any(starts_with) {
        return CuResult::NO_BINARY_FOR_GPU;
    }
    CuResult::of(current().and_then(|device| {
        // SAFETY: the caller's promise.
        let text = unsafe { CStr::from_ptr(image) }.to_str().map_err(|_| CuResult::INVALID_PTX)?;
        let parsed = Module::parse(text).map_err(|error| {
            drop(writeln!(std::io::stderr(), "simgpu: {error}"));
            CuResult::INVALID_PTX
        })?;
        let loaded = Arc::new(parsed.load(&device.memory)?);
        let mut registry = registry();
        let number = registry.number();
        registry.modules.insert(number, loaded);
        // SAFETY: the caller's promise.
        unsafe { *module = number };
        Ok(())
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: u64) -> CuResult {
    let mut registry = registry();
    if registry.modules.remove(&module).is_none() {
        return CuResult::INVALID_HANDLE;
    }
    registry.functions.retain(|_, function| function.module_handle != module);
    CuResult::SUCCESS
}

/// # Safety
/// `function` points to a place for a handle, `name` to a text that ends with a zero.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetFunction(
    function: *mut u64,
    module: u64,
    name: *const c_char,
) -> CuResult {
    // SAFETY: the caller's promise.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
    let mut registry = registry();
    let Some(loaded) = registry.modules.get(&module).cloned() else {
        return CuResult::INVALID_HANDLE;
    };
    if loaded.module().entry(&name).is_none() {
        return CuResult::NOT_FOUND;
    }
    let number = registry.number();
    let found = Function {
        module: loaded,
        entry: name,
        module_handle: module,
        max_dynamic_shared_bytes: PLAIN_SHARED_BYTES,
    };
    registry.functions.insert(number, found);
    // SAFETY: the caller's promise.
    unsafe { *function = number };
    CuResult::SUCCESS
}

/// # Safety
/// `value` points to a place for an integer.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuFuncGetAttribute(
    value: *mut c_int,
    attribute: c_int,
    function: u64,
) -> CuResult {
    let registry = registry();
    let Some(function) = registry.functions.get(&function) else {
        return CuResult::INVALID_HANDLE;
    };
    let Some(entry) = function.module.module().entry(&function.entry) else {
        return CuResult::NOT_FOUND;
    };
    let found = match attribute {
        0 => MAX_THREADS,
        1 => entry.static_shared_bytes(),
        3 => entry.local_bytes(),
        4 => entry.num_registers(),
        8 => function.max_dynamic_shared_bytes,
        _ => return CuResult::INVALID_VALUE,
    };
    // SAFETY: the caller's promise.
    unsafe { *value = found as c_int };
    CuResult::SUCCESS
}

/// Only the greatest dynamic shared memory can be set.
#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(function: u64, attribute: c_int, value: c_int) -> CuResult {
    let mut registry = registry();
    let Some(function) = registry.functions.get_mut(&function) else {
        return CuResult::INVALID_HANDLE;
    };
    let own = function.module.module().entry(&function.entry).map_or(0, Entry::static_shared_bytes);
    let greatest = max_shared_bytes() - own as c_int;
    match (attribute, u32::try_from(value)) {
        (8, Ok(bytes)) if value <= greatest => {
            function.max_dynamic_shared_bytes = bytes;
            CuResult::SUCCESS
        }
        _ => CuResult::INVALID_VALUE,
    }
}

/// `CUlaunchConfig`.
#[repr(C)]
struct LaunchConfig {
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    stream: u64,
    attributes: *const c_void,
    num_attributes: u32,
}

/// # Safety
/// `config` points to a configuration, `params` to as many pointers as the kernel has parameters, each to
/// a parameter's bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchKernelEx(
    config: *const LaunchConfig,
    function: u64,
    params: *const *const u8,
    extra: *const c_void,
) -> CuResult {
    // SAFETY: the caller's promise.
    let config = unsafe { &*config };
    if config.num_attributes > 0 || !extra.is_null() || !config.attributes.is_null() {
        return CuResult::INVALID_VALUE;
    }
    let found = registry().functions.get(&function).cloned();
    let Some(function) = found else { return CuResult::INVALID_HANDLE };
    let Some(entry) = function.module.module().entry(&function.entry) else {
        return CuResult::NOT_FOUND;
    };
    let threads = config.block.iter().try_fold(1_u32, |product, &len| product.checked_mul(len));
    let is_empty = config.grid.contains(&0) || config.block.contains(&0);
    if is_empty || threads.is_none_or(|threads| threads > MAX_THREADS) {
        return CuResult::INVALID_VALUE;
    }
    if config.grid[1].max(config.grid[2]) > 65_535 {
        return CuResult::INVALID_VALUE;
    }
    if config.shared_bytes > function.max_dynamic_shared_bytes {
        return CuResult::LAUNCH_OUT_OF_RESOURCES;
    }
    let mut bytes = vec![0; entry.param_bytes()];
    for (index, param) in entry.params().iter().enumerate() {
        let to = &mut bytes[param.offset..][..param.size];
        // SAFETY: the caller's promise: one pointer for each parameter, to all of its bytes.
        unsafe { std::ptr::copy_nonoverlapping(*params.add(index), to.as_mut_ptr(), param.size) };
    }
    let operation = LaunchOperation {
        module: Arc::clone(&function.module),
        entry: function.entry.clone(),
        grid: config.grid,
        block: config.block,
        dynamic_shared_bytes: config.shared_bytes,
        params: bytes,
    };
    CuResult::of(
        device_of_stream(config.stream)
            .and_then(|device| device.enqueue(config.stream, Operation::Launch(operation))),
    )
}
