//! The backend's threads: helpers that wait for a job, run their share of it, and wait again.
//!
//! Waiting spins briefly, since the next operation of a step follows within microseconds, and then
//! sleeps, since the machine may be shared. The share of a thread depends on its index only.

use std::any::Any;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread, current, park};

/// Rounds of waiting before a thread sleeps: some 30 µs.
const SPINS: u32 = 2000;

/// What all threads run: called with the index of the thread.
type Job<'a> = dyn Fn(usize) + Sync + 'a;

/// The caller and its helpers.
#[derive(Debug)]
pub(crate) struct ThreadPool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// Counts jobs; changes after `job` was written.
    epoch: AtomicU32,
    /// Helpers that have not finished the current job.
    running: AtomicUsize,
    stop: AtomicBool,
    job: UnsafeCell<Option<JobPointer>>,
    /// First panic of the current job.
    panic: Mutex<Option<String>>,
}

#[derive(Clone)]
struct JobPointer {
    job: *const Job<'static>,
    caller: Thread,
}

// SAFETY: `job` is written only by the caller of `run` while no helper runs (`running` is 0), and read
// by helpers after they saw the new epoch. The job itself is `Sync`.
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
            running: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
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

    /// Runs `job(index)` on every thread and waits for all. The message of a panic is the error.
    pub(crate) fn run(&mut self, job: &Job<'_>) -> Result<(), String> {
        let shared = &*self.shared;
        if self.helpers.is_empty() {
            return catch_unwind(AssertUnwindSafe(|| job(0)))
                .map_err(|panic| panic_message(&*panic));
        }
        #[expect(
            clippy::transmute_ptr_to_ptr,
            reason = "a cast cannot lengthen the lifetime of a trait object"
        )]
        // SAFETY: only the lifetime changes. Helpers use the pointer while `running` is not 0, and this
        // function does not return before.
        let job_pointer: *const Job<'static> =
            unsafe { std::mem::transmute(std::ptr::from_ref(job)) };
        // SAFETY: `running` is 0, so no helper reads it, and `&mut self` keeps other callers out.
        unsafe { *shared.job.get() = Some(JobPointer { job: job_pointer, caller: current() }) };
        shared.running.store(self.helpers.len(), Ordering::Relaxed);
        shared.epoch.fetch_add(1, Ordering::Release);
        for helper in &self.helpers {
            helper.thread().unpark();
        }
        let own = catch_unwind(AssertUnwindSafe(|| job(0)));
        let mut spins = 0;
        while shared.running.load(Ordering::Acquire) != 0 {
            wait(&mut spins);
        }
        let helpers_panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        match (own, helpers_panic) {
            (Err(panic), _) => Err(panic_message(&*panic)),
            (Ok(()), Some(message)) => Err(message),
            (Ok(()), None) => Ok(()),
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
            // SAFETY: written before the epoch changed, and not again before `running` is 0.
            let Some(JobPointer { job, caller }) = (unsafe { (*self.job.get()).clone() }) else {
                continue;
            };
            // SAFETY: `run` keeps the job borrowed until `running` is 0.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| unsafe { (*job)(index) })) {
                let message = panic_message(&*panic);
                self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(message);
            }
            if self.running.fetch_sub(1, Ordering::AcqRel) == 1 {
                caller.unpark();
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

/// The share of thread `index` of `threads` in `0..len`: consecutive, in order, nearly equal.
pub(crate) fn share(len: usize, index: usize, threads: usize) -> Range<usize> {
    len * index / threads..len * (index + 1) / threads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_runs_every_job() {
        for threads in 1..=4 {
            let mut pool = ThreadPool::new(threads).unwrap();
            let counts: Vec<AtomicUsize> = (0..threads).map(|_| AtomicUsize::new(0)).collect();
            for _ in 0..2000 {
                pool.run(&|index| {
                    counts[index].fetch_add(1, Ordering::Relaxed);
                })
                .unwrap();
            }
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 2000));
        }
    }

    #[test]
    fn a_panic_is_an_error_and_the_pool_goes_on() {
        let mut pool = ThreadPool::new(3).unwrap();
        for bad in 0..3 {
            let result = pool.run(&|index| assert_ne!(index, bad, "thread {bad} fails"));
            assert!(result.unwrap_err().contains("fails"));
        }
        pool.run(&|_| {}).unwrap();
    }

    #[test]
    fn shares_cover_everything_once() {
        for (len, threads) in [(0, 3), (1, 4), (10, 3), (16, 16), (1000, 7)] {
            let covered: Vec<usize> =
                (0..threads).flat_map(|index| share(len, index, threads)).collect();
            assert_eq!(covered, (0..len).collect::<Vec<_>>());
        }
    }
}
