//! A simulated device: memory, streams, and the thread that runs their operations.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::error::{CuResult, of_fault};
use super::settings::settings;
use super::streams::{LaunchOperation, Operation, Source};
use crate::launch::{LaunchConfig, Options, launch};
use crate::memory::Memory;

/// A device.
pub(crate) struct Device {
    pub(crate) number: usize,
    pub(crate) memory: Memory,
    state: Mutex<State>,
    /// Told when something was enqueued or done.
    changed: Condvar,
    launches: AtomicU64,
}

#[derive(Default)]
struct State {
    streams: BTreeMap<u64, VecDeque<Operation>>,
    /// The stream whose operation runs now.
    running: Option<u64>,
    /// The first error of a kernel; the device does nothing more.
    error: Option<CuResult>,
    random: u64,
    num_operations: u64,
}

impl Device {
    /// A device whose thread waits for work.
    pub(crate) fn start(number: usize) -> Arc<Self> {
        let state = State { random: settings().seed ^ 0x9e37_79b9_7f4a_7c15, ..State::default() };
        let this = Arc::new(Self {
            number,
            memory: Memory::new(settings().memory_bytes),
            state: Mutex::new(state),
            changed: Condvar::new(),
            launches: AtomicU64::new(0),
        });
        let device = Arc::clone(&this);
        std::thread::spawn(move || device.run());
        this
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The error that sticks, if there is one.
    pub(crate) fn check(&self) -> Result<(), CuResult> {
        self.lock().error.map_or(Ok(()), Err)
    }

    pub(crate) fn add_stream(&self, stream: u64) {
        self.lock().streams.insert(stream, VecDeque::new());
    }

    /// The stream runs out, then goes.
    pub(crate) fn remove_stream(&self, stream: u64) {
        // Its error is told by whoever asks for it.
        let _ = self.synchronize(stream);
        self.lock().streams.remove(&stream);
    }

    pub(crate) fn enqueue(&self, stream: u64, operation: Operation) -> Result<(), CuResult> {
        let mut state = self.lock();
        if let Some(error) = state.error {
            return Err(error);
        }
        state.streams.get_mut(&stream).ok_or(CuResult::INVALID_HANDLE)?.push_back(operation);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Whether a stream has nothing left to do.
    pub(crate) fn is_idle(&self, stream: u64) -> bool {
        let state = self.lock();
        state.running != Some(stream) && state.streams.get(&stream).is_none_or(VecDeque::is_empty)
    }

    /// Waits until `is_done`, which is asked whenever something is done.
    pub(crate) fn wait_until(&self, is_done: impl Fn() -> bool) -> Result<(), CuResult> {
        let mut state = self.lock();
        loop {
            if let Some(error) = state.error {
                return Err(error);
            }
            drop(state);
            if is_done() {
                return self.check();
            }
            state = self.lock();
            // Between the question and the lock something may have been done, so it waits with an end.
            let pause = std::time::Duration::from_millis(1);
            let waited = self.changed.wait_timeout(state, pause);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(crate) fn synchronize(&self, stream: u64) -> Result<(), CuResult> {
        self.wait_until(|| self.is_idle(stream))
    }

    /// Waits for all streams.
    pub(crate) fn synchronize_all(&self) -> Result<(), CuResult> {
        self.wait_until(|| {
            let state = self.lock();
            state.running.is_none() && state.streams.values().all(VecDeque::is_empty)
        })
    }

    /// One operation after the other, from streams in random order.
    fn run(&self) {
        loop {
            let mut state = self.lock();
            let (stream, operation) = loop {
                if let Some(next) = state.take() {
                    break next;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            };
            state.running = Some(stream);
            state.num_operations += 1;
            let seed = settings().seed.wrapping_add(state.num_operations);
            drop(state);
            // A panic here is a fault of ours; whoever waits for the device must hear of it all the same.
            let outcome = catch_unwind(AssertUnwindSafe(|| self.perform(operation, seed)));
            let outcome = outcome.unwrap_or(Err(CuResult::LAUNCH_FAILED));
            let mut state = self.lock();
            state.running = None;
            if let Err(error) = outcome {
                state.error.get_or_insert(error);
                state.streams.values_mut().for_each(VecDeque::clear);
            }
            drop(state);
            self.changed.notify_all();
        }
    }

    fn perform(&self, operation: Operation, seed: u64) -> Result<(), CuResult> {
        let memory = &self.memory;
        match operation {
            Operation::ToDevice { to, source: Source::Copied(bytes) } => {
                memory.write(to, &bytes)?;
            }
            Operation::ToDevice { to, source: Source::Pinned { address, bytes } } => {
                // SAFETY: the range was page-locked when the copy was enqueued, and freeing it waits for the
                // device. That the host leaves it alone meanwhile is CUDA's own rule.
                let bytes = unsafe { std::slice::from_raw_parts(address as *const u8, bytes) };
                memory.write(to, bytes)?;
            }
            Operation::ToHost { to, from, bytes } => {
                // SAFETY: page-locked as above, or the caller waits in the call that named it.
                let target = unsafe { std::slice::from_raw_parts_mut(to as *mut u8, bytes) };
                memory.read(from, target)?;
            }
            Operation::OnDevice { to, from, bytes } => memory.copy(to, from, bytes)?,
            Operation::Fill { to, byte, bytes } => memory.fill(to, bytes, &[byte])?,
            Operation::Launch(launch) => self.launch(&launch, seed)?,
            Operation::Record { event, record } => event.finish(record),
            Operation::Wait { .. } => {}
        }
        Ok(())
    }

    fn launch(&self, operation: &LaunchOperation, seed: u64) -> Result<(), CuResult> {
        let config = LaunchConfig {
            grid: operation.grid,
            block: operation.block,
            dynamic_shared_bytes: operation.dynamic_shared_bytes,
            params: &operation.params,
        };
        let mut options = Options { seed, ..Options::default() };
        if settings().threads > 0 {
            options.threads = settings().threads;
        }
        if self.launches.fetch_add(1, Ordering::Relaxed) + 1 == settings().breaks_at {
            let (number, kernel) = (self.number, &operation.entry);
            drop(writeln!(
                std::io::stderr(),
                "simgpu: device {number}: {kernel}: broken on purpose"
            ));
            return Err(CuResult::LAUNCH_FAILED);
        }
        let run = launch(&operation.module, &operation.entry, &config, &self.memory, &options);
        run.map(drop).map_err(|fault| {
            let number = self.number;
            drop(writeln!(std::io::stderr(), "simgpu: device {number}: {fault}"));
            of_fault(&fault)
        })
    }
}

impl State {
    /// The next operation of a random stream that has one that is ready.
    fn take(&mut self) -> Option<(u64, Operation)> {
        if self.error.is_some() {
            return None;
        }
        let is_ready = |queue: &VecDeque<Operation>| queue.front().is_some_and(Operation::is_ready);
        let count = self.streams.values().filter(|queue| is_ready(queue)).count();
        if count == 0 {
            return None;
        }
        // Xorshift (Marsaglia 2003).
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let chosen = (self.random % count as u64) as usize;
        let mut ready = self.streams.iter_mut().filter(|(_, queue)| is_ready(queue));
        let (stream, queue) = ready.nth(chosen)?;
        Some((*stream, queue.pop_front()?))
    }
}
