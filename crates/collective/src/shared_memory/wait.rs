//! Waiting for a word that another process changes: by looking at it for a while, then asleep.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::thread::futex;

/// Whoever has looked for so long sleeps.
const YIELD: Duration = Duration::from_micros(100);

/// `counter` says that `step` is published. Counters wrap around.
pub(super) fn has_reached(counter: u32, step: u32) -> bool {
    counter.wrapping_sub(step) as i32 >= 0
}

/// Looks for a while whether `counter` reaches `step`; after `patience`, whoever else wants this core
/// gets it.
pub(super) fn spin(counter: &AtomicU32, step: u32, patience: Duration) -> bool {
    let begun = Instant::now();
    loop {
        for _ in 0..16 {
            if has_reached(counter.load(Ordering::Acquire), step) {
                return true;
            }
            std::hint::spin_loop();
        }
        match begun.elapsed() {
            elapsed if elapsed > YIELD => return false,
            elapsed if elapsed > patience => std::thread::yield_now(),
            _ => {}
        }
    }
}

/// Sleeps for a `slice` at most, unless `word` is not `value`.
pub(super) fn sleep(word: &AtomicU32, value: u32, slice: Duration) -> io::Result<()> {
    let timeout =
        futex::Timespec { tv_sec: slice.as_secs() as i64, tv_nsec: slice.subsec_nanos().into() };
    // Not the private kind: the word is in other processes too.
    match futex::wait(word, futex::Flags::empty(), value, Some(&timeout)) {
        Ok(()) | Err(Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Wakes whoever sleeps on `word`.
pub(super) fn wake_all(word: &AtomicU32) {
    // The system reads the number as a signed one, and would take more for less than one.
    const ALL: u32 = i32::MAX as u32;
    let _ = futex::wake(word, futex::Flags::empty(), ALL);
}
