//! The backend's threads: helpers that wait for a job, run their share of it, and wait again.
//!
//! Waiting spins briefly, since the next operation of a step follows within microseconds, and then
//! sleeps, since the machine may be shared. Threads take ranges of a job as they become free.

use std::any::Any;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{JoinHandle, Thread, current, park};

use oarlock_backend::Progress;

/// Rounds of waiting before a thread sleeps: some 30 µs.
const SPINS: u32 = 2000;

/// What all threads run: called with the index of the thread and a range of the job's items.
type Job<'a> = dyn Fn(usize, Range<usize>) + Sync + 'a;

/// Bit of [`Shared::entry`]: helpers may enter the current job.
const OPEN: u32 = 1 << 31;

/// The caller and its helpers.
#[derive(Debug)]
pub(crate) struct ThreadPool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// Counts jobs; changes after the job was opened.
    epoch: AtomicU32,
    /// [`OPEN`], and the number of helpers inside the job.
    entry: AtomicU32,
    /// First item that no thread has taken.
    next: AtomicUsize,
    stop: AtomicBool,
    job: UnsafeCell<Option<JobPointer>>,
    /// First panic of the current job.
    panic: Mutex<Option<String>>,
    /// What every range of a job advances.
    progress: OnceLock<Progress>,
}

#[derive(Clone)]
struct JobPointer {
    job: *const Job<'static>,
    items: usize,
    chunk: usize,
    caller: Thread,
}

// SAFETY: `job` is written only by the caller of `run` while the job is closed and nobody is inside, and
// read by helpers that are inside. The job itself is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl ThreadPool {
    /// A pool of `threads`, the caller included.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        assert!(threads > 0, "at least the caller's thread");
        let shared = Arc::new(Shared {
            epoch: AtomicU32::new(0),
            entry: AtomicU32::new(0),
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            progress: OnceLock::new(),
        });
        let mut pool = Self { shared, helpers: Vec::with_capacity(threads - 1) };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let builder = std::thread::Builder::new().name(format!("backend-cpu-{index}"));
            pool.helpers.push(builder.spawn(move || shared.help(index))?);
        }
        Ok(pool)
    }

    /// Threads, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// From now on work advances this; the first call counts.
    pub(crate) fn set_progress(&self, progress: Progress) {
        let _ = self.shared.progress.set(progress);
    }

    /// What work advances, for ranges that take long.
    pub(crate) fn progress(&self) -> Option<Progress> {
        self.shared.progress.get().cloned()
    }

    /// Runs `job(thread, range)` until ranges of at most `chunk` have covered `0..items` once, and waits.
    /// The message of a panic is the error; other ranges still run.
    ///
    /// Which thread takes a range depends on who is free, so that a thread which the machine gave to
    /// somebody else delays one range only. Results must not depend on it.
    pub(crate) fn run(&mut self, items: usize, chunk: usize, job: &Job<'_>) -> Result<(), String> {
        let shared = &*self.shared;
        let chunk = chunk.max(1);
        if self.helpers.is_empty() || items <= chunk {
            let ranges = (0..items).step_by(chunk).map(|first| first..items.min(first + chunk));
            let all = ranges.map(|range| {
                shared.advance();
                job(0, range);
            });
            return catch_unwind(AssertUnwindSafe(|| all.for_each(drop)))
                .map_err(|panic| panic_message(&*panic));
        }
        #[expect(
            clippy::transmute_ptr_to_ptr,
            reason = "a cast cannot lengthen the lifetime of a trait object"
        )]
        // SAFETY: only the lifetime changes. Helpers use the pointer while they are inside the job, and
        // this function does not return before all have left.
        let job: *const Job<'static> = unsafe { std::mem::transmute(std::ptr::from_ref(job)) };
        let pointer = JobPointer { job, items, chunk, caller: current() };
        // SAFETY: the job is closed and nobody is inside; `&mut self` keeps other callers out.
        unsafe { *shared.job.get() = Some(pointer.clone()) };
        shared.next.store(0, Ordering::Relaxed);
        shared.entry.store(OPEN, Ordering::Release);
        shared.epoch.fetch_add(1, Ordering::Release);
        for helper in &self.helpers {
            helper.thread().unpark();
        }
        shared.work(0, &pointer);
        // All ranges are taken: who has not entered need not.
        shared.entry.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while shared.entry.load(Ordering::Acquire) != 0 {
            wait(&mut spins);
        }
        match shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(message) => Err(message),
            None => Ok(()),
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.epoch.fetch_add(1, Ordering::Release);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // A helper catches every panic, so joining cannot fail.
            let _ = helper.join();
        }
    }
}

impl Shared {
    fn help(&self, index: usize) {
        let mut seen = 0;
        loop {
            let mut spins = 0;
            let mut epoch = self.epoch.load(Ordering::Acquire);
            while epoch == seen {
                wait(&mut spins);
                epoch = self.epoch.load(Ordering::Acquire);
            }
            seen = epoch;
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            if !self.enter() {
                continue;
            }
            // SAFETY: this thread is inside the job, so the caller does not write it.
            if let Some(job) = unsafe { (*self.job.get()).clone() } {
                self.work(index, &job);
                // The last one out wakes the caller, if that has closed the job and waits.
                if self.entry.fetch_sub(1, Ordering::AcqRel) == 1 {
                    job.caller.unpark();
                }
            }
        }
    }

    /// Whether this thread is inside the current job now.
    fn enter(&self) -> bool {
        let more = |entry: u32| (entry & OPEN != 0).then_some(entry + 1);
        self.entry.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// A range is about to be done.
    fn advance(&self) {
        if let Some(progress) = self.progress.get() {
            progress.advance();
        }
    }

    /// Takes ranges until there are none.
    fn work(&self, index: usize, job: &JobPointer) {
        loop {
            let first = self.next.fetch_add(job.chunk, Ordering::Relaxed);
            if first >= job.items {
                return;
            }
            let range = first..job.items.min(first + job.chunk);
            self.advance();
            // SAFETY: `run` keeps the job borrowed until all have left it.
            let body = unsafe { &*job.job };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(index, range))) {
                let message = panic_message(&*panic);
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(message);
            }
        }
    }
}

/// Spins for a while, then sleeps until unparked. A stale wake-up only costs one more look.
fn wait(spins: &mut u32) {
    if *spins < SPINS {
        *spins += 1;
        spin_loop();
    } else {
        park();
    }
}

/// The text of a panic.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a thread panicked".to_owned())
}

/// Items of one range, so that each thread takes about four.
pub(crate) fn quarter_share(items: usize, threads: usize) -> usize {
    items.div_ceil(threads * 4).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_runs_once() {
        for threads in 1..=4 {
            let mut pool = ThreadPool::new(threads).unwrap();
            for items in (0..400).chain([5000; 200]) {
                let counts: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
                pool.run(items, items % 7, &|index, range| {
                    assert!(index < threads);
                    for item in range {
                        counts[item].fetch_add(1, Ordering::Relaxed);
                    }
                })
                .unwrap();
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_panic_is_an_error_and_the_pool_goes_on() {
        let mut pool = ThreadPool::new(3).unwrap();
        for bad in 0..30 {
            let result =
                pool.run(30, 1, &|_, range| assert_ne!(range.start, bad, "item {bad} fails"));
            assert!(result.unwrap_err().contains("fails"));
        }
        pool.run(30, 1, &|_, _| {}).unwrap();
    }
}
