//! Everything that a handle may name, behind one lock: numbers, never addresses.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::device::Device;
use super::error::CuResult;
use super::settings::settings;
use super::streams::EventState;
use crate::module::LoadedModule;

/// A kernel of a loaded module.
#[derive(Clone)]
pub(crate) struct Function {
    pub(crate) module: Arc<LoadedModule>,
    pub(crate) entry: String,
    /// Of the module.
    pub(crate) module_handle: u64,
    pub(crate) max_dynamic_shared_bytes: u32,
}

/// What exists.
#[derive(Default)]
pub(crate) struct Registry {
    next: u64,
    pub(crate) devices: BTreeMap<usize, Arc<Device>>,
    /// Stream: its device's number.
    pub(crate) streams: BTreeMap<u64, usize>,
    pub(crate) events: BTreeMap<u64, Arc<EventState>>,
    pub(crate) modules: BTreeMap<u64, Arc<LoadedModule>>,
    pub(crate) functions: BTreeMap<u64, Function>,
    /// Page-locked memory: address and bytes.
    pub(crate) pinned: BTreeMap<u64, usize>,
}

impl Registry {
    /// A number that no other handle has. None is small, so that a wrong cast shows.
    pub(crate) fn number(&mut self) -> u64 {
        self.next += 1;
        0x5150_0000 + self.next * 16
    }

    /// Whether all of a range of host memory is page-locked.
    pub(crate) fn is_pinned(&self, address: u64, bytes: usize) -> bool {
        let before = self.pinned.range(..=address).next_back();
        before.is_some_and(|(start, len)| address + bytes as u64 <= start + *len as u64)
    }
}

/// Locks what exists. A panic of one call leaves it usable: each changes it in one place.
pub(crate) fn registry() -> MutexGuard<'static, Registry> {
    static REGISTRY: OnceLock<Mutex<Registry>> = OnceLock::new();
    REGISTRY.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// The context of a device: its number, made into a handle.
pub(crate) fn context_handle(device: usize) -> u64 {
    0xc0de_0000 + device as u64 * 16
}

/// The device of a context.
pub(crate) fn device_of_context(handle: u64) -> Option<usize> {
    (0..settings().num_devices).find(|device| context_handle(*device) == handle)
}

thread_local! {
    static CURRENT: std::cell::Cell<Option<usize>> = const { std::cell::Cell::new(None) };
}

/// Makes a device's context current on this thread, or none.
pub(crate) fn set_current(device: Option<usize>) {
    CURRENT.set(device);
}

/// The device whose context is current, if its last kernels did no harm.
pub(crate) fn current() -> Result<Arc<Device>, CuResult> {
    let number = CURRENT.get().ok_or(CuResult::INVALID_CONTEXT)?;
    let device = registry().devices.get(&number).cloned().ok_or(CuResult::INVALID_CONTEXT)?;
    device.check()?;
    Ok(device)
}

/// The device of a stream.
pub(crate) fn device_of_stream(stream: u64) -> Result<Arc<Device>, CuResult> {
    let registry = registry();
    let number = registry.streams.get(&stream).ok_or(CuResult::INVALID_HANDLE)?;
    let device = registry.devices.get(number).cloned().ok_or(CuResult::INVALID_CONTEXT)?;
    drop(registry);
    device.check()?;
    Ok(device)
}
