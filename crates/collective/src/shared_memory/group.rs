//! Steps in which ranks give values and wait for each other, and how a rank learns that a peer is lost.
//!
//! Each rank counts the steps that it has published. Waiting for a peer is waiting for its counter, so
//! nobody resets anything, and whoever waits has published more steps than the one it waits for: ranks
//! cannot wait in a circle, and the end of any chain of waiting ranks is the one to blame.
//!
//! Step `n` uses buffer `n mod 2`. A rank fills it once all peers have published step `n - 1`, which
//! each does only when it no longer reads step `n - 2`.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use oarlock_types::Shard;

use super::lock;
use super::mapping::{Control, Mapping};
use super::segment::{self, FIRST_STEP};
use super::wait::{self, has_reached, spin, wake_all};
use crate::CollectiveError;
use crate::failure::{self, Watch};
use crate::operation::{self, Operation};

/// A peer that is about to arrive is met without the system's help.
const SPIN: Duration = Duration::from_micros(20);
/// A sleeper looks around this often.
const SLICE: Duration = Duration::from_millis(100);

/// This rank's view of its group.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) mapping: Arc<Mapping>,
    file: File,
    pub(super) shard: Shard,
    deadline: Duration,
    /// For how long to look before others get this core.
    spin: Duration,
    /// Steps that this rank has published.
    step: u32,
    /// All ranks are known to have published this step.
    settled: u32,
    operations: [Operation; 2],
    is_broken: bool,
}

/// Whom `rank` waits for, if it does and need not just wake up.
pub(super) fn waits_for(mapping: &Mapping, rank: usize, ranks: usize) -> Option<usize> {
    let control = mapping.control(rank);
    let peer = (control.status.waiting_for.load(Ordering::Acquire) as usize).checked_sub(1)?;
    if peer >= ranks {
        return None;
    }
    let counter = mapping.control(peer).arrival.counter.load(Ordering::Acquire);
    (!has_reached(counter, control.arrival.counter.load(Ordering::Acquire))).then_some(peer)
}

impl Group {
    /// Joins, and waits for the others for as long as `meeting`.
    pub(super) fn join(
        path: &Path,
        shard: Shard,
        epoch: u64,
        meeting: Duration,
        deadline: Duration,
    ) -> Result<Self, CollectiveError> {
        let failed = |source| {
            let what = format!("rank {} cannot join {}", shard.rank, path.display());
            CollectiveError::Io { what, source }
        };
        let (file, mapping) = segment::map(path, shard.ranks, epoch).map_err(failed)?;
        if !lock::try_lock(&file, shard.rank).map_err(failed)? {
            let source = io::Error::new(io::ErrorKind::AddrInUse, "someone else is this rank");
            return Err(failed(source));
        }
        let mapping = Arc::new(mapping);
        let status = &mapping.control(shard.rank as usize).status;
        if status.has_joined.swap(1, Ordering::AcqRel) != 0 {
            // Its peers saw it die; a second life would confuse them.
            let source = io::Error::new(io::ErrorKind::AddrInUse, "this rank was here before");
            return Err(failed(source));
        }
        wake_all(&status.has_joined);
        let (step, operations) = (FIRST_STEP, [Operation::NONE; 2]);
        let (settled, is_broken) = (step, false);
        // Where ranks share cores, the one that is waited for may need ours.
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let spin = if cores < shard.ranks as usize { Duration::ZERO } else { SPIN };
        let mut group =
            Self { mapping, file, shard, deadline, spin, step, settled, operations, is_broken };
        group.meet(meeting).map_err(|error| group.fail(error))?;
        Ok(group)
    }

    fn ranks(&self) -> usize {
        self.shard.ranks as usize
    }

    fn own(&self) -> &Control {
        self.mapping.control(self.shard.rank as usize)
    }

    /// Waits until all have joined, and sees that none of them is lost again.
    fn meet(&self, meeting: Duration) -> Result<(), CollectiveError> {
        // One for all: time spent on one rank is not given to the next once more.
        let mut watch = Watch::new(2 * self.slice());
        for rank in 0..self.ranks() {
            let has_joined = &self.mapping.control(rank).status.has_joined;
            while has_joined.load(Ordering::Acquire) == 0 {
                let still = watch.look(());
                if still > meeting {
                    return Err(stalled(rank, still));
                }
                self.look_for_the_dead()?;
                self.sleep(has_joined, 0)?;
            }
        }
        // Whoever comes last need not wait for anyone, and may be too late all the same.
        self.look_for_the_dead()
    }

    /// Begins a step, and returns where this rank's `len` values go. All ranks may be waited for.
    #[expect(unsafe_code, reason = "the turns in which buffers are used are kept here")]
    pub(super) fn begin(
        &mut self,
        operation: Operation,
        len: usize,
    ) -> Result<&mut [f32], CollectiveError> {
        if self.is_broken {
            return Err(self
                .reported()
                .unwrap_or(CollectiveError::GaveUp { rank: self.shard.rank }));
        }
        self.await_all()?;
        let step = self.step.wrapping_add(1);
        self.operations[step as usize % 2] = operation;
        // SAFETY: all ranks have published `self.step`, so none still reads what this rank gave in the
        // step before; they look here again once `step` is published, for which the slice must be gone.
        Ok(unsafe { self.mapping.to_give(self.shard.rank as usize, step as usize % 2, len) })
    }

    /// Hands out what was given since [`Group::begin`].
    pub(super) fn publish(&mut self) {
        self.step = self.step.wrapping_add(1);
        let parity = self.step as usize % 2;
        let own = self.own();
        own.arrival.operations[parity].store(self.operations[parity].to_word(), Ordering::Relaxed);
        // Either this rank sees a sleeper, or the sleeper sees the step: both sides write first and look
        // then, in one order for all.
        own.arrival.counter.store(self.step, Ordering::SeqCst);
        if own.status.sleepers.load(Ordering::SeqCst) != 0 {
            wake_all(&own.arrival.counter);
        }
        if self.ranks() == 1 {
            self.settled = self.step;
        }
    }

    /// Waits until every rank has published this rank's last step.
    pub(super) fn await_all(&mut self) -> Result<(), CollectiveError> {
        if self.settled == self.step {
            return Ok(());
        }
        for rank in 0..self.ranks() {
            self.await_rank(rank)?;
        }
        self.settled = self.step;
        Ok(())
    }

    /// Waits until `rank` has published this rank's last step.
    pub(super) fn await_rank(&mut self, rank: usize) -> Result<(), CollectiveError> {
        if rank == self.shard.rank as usize {
            return Ok(());
        }
        let arrival = &self.mapping.control(rank).arrival;
        if !has_reached(arrival.counter.load(Ordering::Acquire), self.step)
            && !spin(&arrival.counter, self.step, self.spin)
        {
            self.await_asleep(rank).map_err(|error| self.fail(error))?;
        }
        let parity = self.step as usize % 2;
        let arrival = &self.mapping.control(rank).arrival;
        let theirs = Operation::from_word(arrival.operations[parity].load(Ordering::Relaxed));
        operation::check(rank as u32, theirs, self.operations[parity])
            .map_err(|error| self.fail(error))
    }

    /// What `rank` gave in this step, after waiting for it.
    #[expect(unsafe_code, reason = "the turns in which buffers are used are kept here")]
    pub(super) fn given(&self, rank: usize, len: usize) -> &[f32] {
        let counter = self.mapping.control(rank).arrival.counter.load(Ordering::Acquire);
        assert!(has_reached(counter, self.step), "read before it is there");
        // SAFETY: `rank` has published this step, which the load above has seen, and fills the buffer
        // again only when this rank has published the next, for which the slice must be gone.
        unsafe { self.mapping.given(rank, self.step as usize % 2, len) }
    }

    fn await_asleep(&self, rank: usize) -> Result<(), CollectiveError> {
        let waiting_for = &self.own().status.waiting_for;
        waiting_for.store(rank as u32 + 1, Ordering::Release);
        let peer = self.mapping.control(rank);
        let mut watch = Watch::new(2 * self.slice());
        loop {
            peer.status.sleepers.fetch_add(1, Ordering::SeqCst);
            let counter = peer.arrival.counter.load(Ordering::SeqCst);
            let is_there = has_reached(counter, self.step);
            let outcome = match self.reported() {
                _ if is_there => Ok(()),
                Some(error) => Err(error),
                None => self.sleep(&peer.arrival.counter, counter),
            };
            peer.status.sleepers.fetch_sub(1, Ordering::SeqCst);
            outcome?;
            if is_there || has_reached(peer.arrival.counter.load(Ordering::Acquire), self.step) {
                waiting_for.store(0, Ordering::Release);
                return Ok(());
            }
            self.look_for_the_dead()?;
            self.look_for_the_stuck(rank, &mut watch)?;
        }
    }

    fn slice(&self) -> Duration {
        SLICE.min(self.deadline / 8)
    }

    /// Sleeps for a slice at most, unless `word` is not `value`.
    fn sleep(&self, word: &AtomicU32, value: u32) -> Result<(), CollectiveError> {
        wait::sleep(word, value, self.slice()).map_err(|source| {
            let what = format!("rank {} cannot sleep", self.shard.rank);
            CollectiveError::Io { what, source }
        })
    }

    fn look_for_the_dead(&self) -> Result<(), CollectiveError> {
        for rank in (0..self.ranks()).filter(|rank| *rank != self.shard.rank as usize) {
            let has_joined = self.mapping.control(rank).status.has_joined.load(Ordering::Acquire);
            let is_held = lock::is_held(&self.file, rank as u32).map_err(|source| {
                let what = format!("rank {} cannot look for rank {rank}", self.shard.rank);
                CollectiveError::Io { what, source }
            })?;
            // One that leaves on purpose says so before it drops its lock.
            if let Some(error) = self.reported() {
                return Err(error);
            }
            if has_joined != 0 && !is_held {
                return Err(CollectiveError::Gone { rank: rank as u32 });
            }
        }
        Ok(())
    }

    /// Follows who waits for whom, from `rank` on, to the one that neither waits nor works.
    fn look_for_the_stuck(
        &self,
        mut rank: usize,
        watch: &mut Watch<(usize, u32, u64)>,
    ) -> Result<(), CollectiveError> {
        for _ in 0..self.ranks() {
            let Some(peer) = waits_for(&self.mapping, rank, self.ranks()) else { break };
            rank = peer;
        }
        let control = self.mapping.control(rank);
        let counter = control.arrival.counter.load(Ordering::Relaxed);
        let still = watch.look((rank, counter, control.work.0.load(Ordering::Relaxed)));
        if still > self.deadline { Err(stalled(rank, still)) } else { Ok(()) }
    }

    fn reported(&self) -> Option<CollectiveError> {
        let word = self.mapping.header().failure.load(Ordering::SeqCst);
        failure::from_word(word, self.shard.ranks)
    }

    /// Tells the others; of several failures all report the first.
    fn fail(&mut self, error: CollectiveError) -> CollectiveError {
        self.is_broken = true;
        self.tell(&error);
        // What this rank saw with its own eyes is better told by itself.
        match error {
            CollectiveError::Diverged { .. } | CollectiveError::Io { .. } => error,
            _ => self.reported().unwrap_or(error),
        }
    }

    fn tell(&self, error: &CollectiveError) {
        let word = failure::to_word(error, self.shard.rank);
        let failure = &self.mapping.header().failure;
        if failure.compare_exchange(0, word, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            for rank in 0..self.ranks() {
                let control = self.mapping.control(rank);
                for word in [&control.arrival.counter, &control.status.has_joined] {
                    wake_all(word);
                }
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.tell(&CollectiveError::GaveUp { rank: self.shard.rank });
    }
}

fn stalled(rank: usize, still: Duration) -> CollectiveError {
    CollectiveError::Stalled { rank: rank as u32, seconds: still.as_secs_f64() }
}
