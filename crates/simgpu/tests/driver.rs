//! The driver's C interface, called as a program calls it: devices, copies, streams, events, errors that stick.

#![expect(unsafe_code, reason = "the C interface is what is tested")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::Once;

// Without a use of it the library would not be linked.
use oarlock_simgpu as _;

unsafe extern "C" {
    fn cuInit(flags: u32) -> u32;
    fn cuDeviceGetCount(count: *mut c_int) -> u32;
    fn cuDevicePrimaryCtxRetain(context: *mut u64, device: c_int) -> u32;
    fn cuCtxSetCurrent(context: u64) -> u32;
    fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> u32;
    fn cuMemFree_v2(address: u64) -> u32;
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> u32;
    fn cuMemHostAlloc(address: *mut *mut u8, bytes: usize, flags: u32) -> u32;
    fn cuMemFreeHost(address: *mut u8) -> u32;
    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const u8, bytes: usize, stream: u64) -> u32;
    fn cuMemcpyDtoHAsync_v2(to: *mut u8, from: u64, bytes: usize, stream: u64) -> u32;
    fn cuMemsetD8Async(to: u64, byte: u8, bytes: usize, stream: u64) -> u32;
    fn cuStreamCreate(stream: *mut u64, flags: u32) -> u32;
    fn cuStreamSynchronize(stream: u64) -> u32;
    fn cuStreamDestroy_v2(stream: u64) -> u32;
    fn cuStreamWaitEvent(stream: u64, event: u64, flags: u32) -> u32;
    fn cuEventCreate(event: *mut u64, flags: u32) -> u32;
    fn cuEventRecord(event: u64, stream: u64) -> u32;
    fn cuEventSynchronize(event: u64) -> u32;
    fn cuEventQuery(event: u64) -> u32;
    fn cuModuleLoadData(module: *mut u64, image: *const c_char) -> u32;
    fn cuModuleGetFunction(function: *mut u64, module: u64, name: *const c_char) -> u32;
    fn cuLaunchKernelEx(
        config: *const Config,
        function: u64,
        params: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) -> u32;
}

#[repr(C)]
struct Config {
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
    stream: u64,
    attributes: *const c_void,
    num_attributes: u32,
}

const SUCCESS: u32 = 0;
const INVALID_VALUE: u32 = 1;
const INVALID_CONTEXT: u32 = 201;
const NO_BINARY_FOR_GPU: u32 = 209;
const INVALID_PTX: u32 = 218;
const INVALID_HANDLE: u32 = 400;
const NOT_FOUND: u32 = 500;
const ILLEGAL_ADDRESS: u32 = 700;
const LAUNCH_OUT_OF_RESOURCES: u32 = 701;

/// Adds 1 to as many words as there are threads, from an address on.
const PTX: &str = "
.version 8.0
.target sm_80
.address_size 64
.visible .entry increment(.param .u64 words)
{
    .reg .b32 %r<3>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [words];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd1, %rd2;
    ld.global.u32 %r2, [%rd3];
    add.s32 %r2, %r2, 1;
    st.global.u32 [%rd3], %r2;
    ret;
}
";

fn ok(result: u32) {
    assert_eq!(result, SUCCESS);
}

/// Three devices, one for each test that breaks or fills one.
fn device(number: c_int) -> u64 {
    static DEVICES: Once = Once::new();
    // SAFETY: set before the interface is used, and while every other thread waits here.
    DEVICES.call_once(|| unsafe { std::env::set_var("OARLOCK_SIMGPU", "3x64MiB") });
    let mut context = 0;
    // SAFETY: places for what is written.
    unsafe {
        ok(cuInit(0));
        ok(cuDevicePrimaryCtxRetain(&raw mut context, number));
        ok(cuCtxSetCurrent(context));
    }
    context
}

fn stream() -> u64 {
    let mut stream = 0;
    // SAFETY: a place for a handle.
    ok(unsafe { cuStreamCreate(&raw mut stream, 1) });
    stream
}

fn allocate(bytes: usize) -> u64 {
    let mut address = 0;
    // SAFETY: a place for an address.
    ok(unsafe { cuMemAlloc_v2(&raw mut address, bytes) });
    address
}

fn increment() -> u64 {
    let (mut module, mut function) = (0, 0);
    let text = CString::new(PTX).expect("no zero inside");
    // SAFETY: texts end with a zero; places for handles.
    unsafe {
        ok(cuModuleLoadData(&raw mut module, text.as_ptr()));
        let missing = cuModuleGetFunction(&raw mut function, module, c"decrement".as_ptr());
        assert_eq!(missing, NOT_FOUND);
        ok(cuModuleGetFunction(&raw mut function, module, c"increment".as_ptr()));
    }
    function
}

fn launch(function: u64, stream: u64, threads: u32, shared_bytes: u32, mut words: u64) -> u32 {
    let config = Config {
        grid: [1; 3],
        block: [threads, 1, 1],
        shared_bytes,
        stream,
        attributes: std::ptr::null(),
        num_attributes: 0,
    };
    let mut params = [(&raw mut words).cast::<c_void>()];
    // SAFETY: one parameter, of eight bytes.
    unsafe {
        cuLaunchKernelEx(&raw const config, function, params.as_mut_ptr(), std::ptr::null_mut())
    }
}

fn read(from: u64, words: usize, stream: u64) -> Vec<u32> {
    let mut values = vec![0_u32; words];
    // SAFETY: pageable memory is filled before the call returns.
    ok(unsafe { cuMemcpyDtoHAsync_v2(values.as_mut_ptr().cast(), from, words * 4, stream) });
    values
}

#[test]
fn devices_are_counted_and_apart() {
    device(0);
    let mut count = 0;
    // SAFETY: a place for an integer.
    ok(unsafe { cuDeviceGetCount(&raw mut count) });
    assert_eq!(count, 3);
    let on_first = allocate(64);
    let (mut free, mut total) = (0, 0);
    // SAFETY: places for sizes.
    ok(unsafe { cuMemGetInfo_v2(&raw mut free, &raw mut total) });
    assert!(free < total && total == 64 << 20);
    let mut too_much = 0;
    // SAFETY: places for addresses and handles.
    unsafe {
        assert_ne!(cuMemAlloc_v2(&raw mut too_much, 65 << 20), SUCCESS);
        assert_eq!(cuCtxSetCurrent(77), INVALID_CONTEXT);
    }
    // Nothing of one device is reached from another's stream.
    device(2);
    let other = stream();
    // SAFETY: the call is refused.
    assert_eq!(unsafe { cuMemsetD8Async(on_first, 0, 64, other) }, INVALID_VALUE);
    // SAFETY: handles of this test.
    unsafe {
        ok(cuStreamDestroy_v2(other));
        assert_eq!(cuStreamSynchronize(other), INVALID_HANDLE);
        device(0);
        ok(cuMemFree_v2(on_first));
        assert_eq!(cuMemFree_v2(on_first), INVALID_VALUE);
    }
}

#[test]
fn streams_keep_their_order_and_events_order_streams() {
    device(0);
    let function = increment();
    let words = allocate(128);
    let (first, second) = (stream(), stream());
    let mut event = 0;
    // SAFETY: a place for a handle; buffers of this test.
    unsafe {
        ok(cuEventCreate(&raw mut event, 0));
        ok(cuEventQuery(event));
        ok(cuMemsetD8Async(words, 0, 128, first));
    }
    for round in 1..=20 {
        // SAFETY: handles of this test.
        unsafe {
            ok(launch(function, first, 32, 0, words));
            ok(cuEventRecord(event, first));
            ok(cuStreamWaitEvent(second, event, 0));
            ok(launch(function, second, 32, 0, words));
            ok(cuEventRecord(event, second));
            ok(cuStreamWaitEvent(first, event, 0));
        }
        if round % 5 == 0 {
            // SAFETY: as above.
            ok(unsafe { cuEventSynchronize(event) });
            assert_eq!(read(words, 32, first), vec![2 * round; 32]);
        }
    }
}

/// The device reads page-locked memory when the copy's turn comes, pageable memory at once.
#[test]
fn a_buffer_that_is_reused_too_early_shows() {
    device(0);
    let (stream, blocker) = (stream(), stream());
    let (to, busy) = (allocate(1024), allocate(4 << 20));
    let mut pinned: *mut u8 = std::ptr::null_mut();
    let mut event = 0;
    // SAFETY: places for handles.
    unsafe {
        ok(cuEventCreate(&raw mut event, 0));
        ok(cuMemHostAlloc(&raw mut pinned, 1024, 0));
    }
    let copied = |pinned: *mut u8, pageable: &mut [u8]| {
        let from = if pageable.is_empty() { pinned } else { pageable.as_mut_ptr() };
        // SAFETY: the buffer has so many bytes; what is written to it early is the point.
        unsafe {
            from.write_bytes(1, 1024);
            // The copy waits for what keeps the device busy.
            for byte in 0..20 {
                ok(cuMemsetD8Async(busy, byte, 4 << 20, blocker));
            }
            ok(cuEventRecord(event, blocker));
            ok(cuStreamWaitEvent(stream, event, 0));
            ok(cuMemcpyHtoDAsync_v2(to, from, 1024, stream));
            from.write_bytes(2, 1024);
        }
        read(to, 1, stream)[0]
    };
    // A busy machine may be so late that it writes again after the copy, but not often.
    let shown = (0..20).filter(|_| copied(pinned, &mut []) != 0x0101_0101).count();
    assert!(shown > 10, "{shown} of 20");
    assert_eq!(copied(pinned, &mut vec![0; 1024]), 0x0101_0101);
    // SAFETY: allocated above; all copies are done.
    ok(unsafe { cuMemFreeHost(pinned) });
}

#[test]
fn what_a_kernel_broke_stays_broken() {
    device(1);
    let (stream, function) = (stream(), increment());
    let words = allocate(64);
    // SAFETY: buffers of this test.
    ok(unsafe { cuMemsetD8Async(words, 0, 64, stream) });
    assert_eq!(launch(function, stream, 16, 49 << 10, words), LAUNCH_OUT_OF_RESOURCES);
    assert_eq!(launch(function, stream, 1025, 0, words), INVALID_VALUE);
    // A thread too many: the words end at the sixteenth.
    ok(launch(function, stream, 17, 0, words));
    let mut address = 0;
    // SAFETY: handles of this test.
    unsafe {
        assert_eq!(cuStreamSynchronize(stream), ILLEGAL_ADDRESS);
        assert_eq!(launch(function, stream, 1, 0, words), ILLEGAL_ADDRESS);
        assert_eq!(cuMemAlloc_v2(&raw mut address, 16), ILLEGAL_ADDRESS);
    }
    // Other devices go on.
    device(2);
    allocate(16);
}

#[test]
fn machine_code_and_damaged_texts_are_refused() {
    device(2);
    let mut module = 0;
    let elf = b"\x7fELF....\0";
    let damaged = CString::new(PTX.replace("ret;", "retreat;")).expect("no zero inside");
    // SAFETY: both end with a zero.
    unsafe {
        assert_eq!(cuModuleLoadData(&raw mut module, elf.as_ptr().cast()), NO_BINARY_FOR_GPU);
        assert_eq!(cuModuleLoadData(&raw mut module, damaged.as_ptr()), INVALID_PTX);
    }
}
