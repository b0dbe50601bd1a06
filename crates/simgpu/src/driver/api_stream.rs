//! Streams and events.

use std::sync::Arc;

use super::CuResult;
use super::handles::{current, device_of_stream, registry};
use super::streams::{EventState, Operation};

/// # Safety
/// `stream` points to a place for a handle.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(stream: *mut u64, _flags: u32) -> CuResult {
    CuResult::of(current().map(|device| {
        let mut registry = registry();
        let number = registry.number();
        registry.streams.insert(number, device.number);
        device.add_stream(number);
        // SAFETY: the caller's promise.
        unsafe { *stream = number };
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: u64) -> CuResult {
    let found = {
        let mut registry = registry();
        let device = registry.streams.remove(&stream);
        device.and_then(|number| registry.devices.get(&number).cloned())
    };
    let Some(device) = found else { return CuResult::INVALID_HANDLE };
    device.remove_stream(stream);
    CuResult::SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: u64) -> CuResult {
    CuResult::of(device_of_stream(stream).and_then(|device| device.synchronize(stream)))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamQuery(stream: u64) -> CuResult {
    match device_of_stream(stream) {
        Err(error) => error,
        Ok(device) if device.is_idle(stream) => CuResult::SUCCESS,
        Ok(_) => CuResult::NOT_READY,
    }
}

fn event_of(handle: u64) -> Result<Arc<EventState>, CuResult> {
    registry().events.get(&handle).cloned().ok_or(CuResult::INVALID_HANDLE)
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(stream: u64, event: u64, _flags: u32) -> CuResult {
    CuResult::of(device_of_stream(stream).and_then(|device| {
        let event = event_of(event)?;
        // The record that was the last one when the wait was asked for.
        let record = event.last();
        device.enqueue(stream, Operation::Wait { event, record })
    }))
}

/// # Safety
/// `event` points to a place for a handle.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventCreate(event: *mut u64, _flags: u32) -> CuResult {
    CuResult::of(current().map(|_| {
        let mut registry = registry();
        let number = registry.number();
        registry.events.insert(number, Arc::default());
        // SAFETY: the caller's promise.
        unsafe { *event = number };
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: u64, stream: u64) -> CuResult {
    CuResult::of(device_of_stream(stream).and_then(|device| {
        let event = event_of(event)?;
        let record = event.record();
        device.enqueue(stream, Operation::Record { event, record })
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: u64) -> CuResult {
    CuResult::of(current().and_then(|device| {
        let event = event_of(event)?;
        let record = event.last();
        device.wait_until(|| event.is_past(record))
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(event: u64) -> CuResult {
    match current().and_then(|_| event_of(event)) {
        Err(error) => error,
        Ok(event) if event.is_past(event.last()) => CuResult::SUCCESS,
        Ok(_) => CuResult::NOT_READY,
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: u64) -> CuResult {
    let found = registry().events.remove(&event);
    if found.is_some() { CuResult::SUCCESS } else { CuResult::INVALID_HANDLE }
}
