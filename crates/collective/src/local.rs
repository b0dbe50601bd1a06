//! Ranks that are threads of one process, for tests.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use oarlock_backend::Progress;
use oarlock_types::Shard;

use crate::operation::{Operation, check};
use crate::tree::{self, MAX_RANKS};
use crate::{CollectiveError, Transport};

/// The transports of a group, by rank. A rank waits for its peers for as long as they take; one that is
/// dropped fails the others.
pub fn local_group(ranks: u32) -> Vec<LocalTransport> {
    tree::assert_size(ranks);
    let slots = (0..ranks).map(|_| Slot::default()).collect();
    let group = Arc::new(Group { slots: Mutex::new(slots), changed: Condvar::new() });
    let transport = |rank| LocalTransport {
        shard: Shard { rank, ranks },
        group: Arc::clone(&group),
        progress: Progress::default(),
        waiting_for: Arc::new(AtomicU32::new(NOBODY)),
    };
    (0..ranks).map(transport).collect()
}

const NOBODY: u32 = u32::MAX;

/// One rank of [`local_group`].
pub struct LocalTransport {
    shard: Shard,
    group: Arc<Group>,
    progress: Progress,
    waiting_for: Arc<AtomicU32>,
}

struct Group {
    slots: Mutex<Vec<Slot>>,
    changed: Condvar,
}

#[derive(Default)]
struct Slot {
    /// Operations begun, and those whose results were taken.
    begun: u64,
    taken: u64,
    has_given_up: bool,
    operation: Option<Operation>,
    values: Vec<f32>,
    words: Vec<u32>,
}

type Slots<'a> = MutexGuard<'a, Vec<Slot>>;

impl LocalTransport {
    fn rank(&self) -> usize {
        self.shard.rank as usize
    }

    /// Waits until `is_there` of every rank.
    fn wait<'a>(
        &self,
        mut slots: Slots<'a>,
        is_there: impl Fn(&Slot) -> bool,
    ) -> Result<Slots<'a>, CollectiveError> {
        while let Some(rank) = slots.iter().position(|slot| !is_there(slot)) {
            if let Some(rank) = slots.iter().position(|slot| slot.has_given_up) {
                return Err(CollectiveError::GaveUp { rank: rank as u32 });
            }
            self.waiting_for.store(rank as u32, Ordering::Relaxed);
            slots = self.group.changed.wait(slots).unwrap_or_else(PoisonError::into_inner);
        }
        self.waiting_for.store(NOBODY, Ordering::Relaxed);
        Ok(slots)
    }

    /// One operation: `give` fills this rank's slot, `take` sees everyone's.
    fn exchange(
        &self,
        operation: Operation,
        give: impl FnOnce(&mut Slot),
        take: impl FnOnce(&[Slot]),
    ) -> Result<(), CollectiveError> {
        let slots = self.group.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let done = slots[self.rank()].begun;
        // Nobody's slot is filled again before all have looked into it.
        let mut slots = self.wait(slots, |slot| slot.taken >= done)?;
        let own = &mut slots[self.rank()];
        own.begun += 1;
        own.operation = Some(operation);
        give(own);
        self.group.changed.notify_all();
        let mut slots = self.wait(slots, |slot| slot.begun > done)?;
        for (rank, slot) in slots.iter().enumerate() {
            check(rank as u32, slot.operation.unwrap_or(operation), operation)?;
        }
        take(&slots);
        slots[self.rank()].taken += 1;
        self.group.changed.notify_all();
        Ok(())
    }
}

impl Drop for LocalTransport {
    fn drop(&mut self) {
        let mut slots = self.group.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots[self.shard.rank as usize].has_given_up = true;
        self.group.changed.notify_all();
    }
}

impl Transport for LocalTransport {
    fn shard(&self) -> Shard {
        self.shard
    }

    fn progress(&self) -> Progress {
        self.progress.clone()
    }

    fn waiting(&self) -> Arc<dyn Fn() -> Option<u32> + Send + Sync> {
        let waiting_for = Arc::clone(&self.waiting_for);
        Arc::new(move || Some(waiting_for.load(Ordering::Relaxed)).filter(|rank| *rank != NOBODY))
    }

    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), CollectiveError> {
        let given = values.to_vec();
        let give = |slot: &mut Slot| slot.values = given;
        self.exchange(Operation::all_reduce(values.len()), give, |slots| {
            let mut parts: [&[f32]; MAX_RANKS] = [&[]; MAX_RANKS];
            for (part, slot) in parts.iter_mut().zip(slots) {
                *part = &slot.values;
            }
            tree::sum(&parts[..slots.len()], values);
        })
    }

    fn gather(
        &mut self,
        own: &[f32],
        lens: &[usize],
        take: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<(), CollectiveError> {
        let is_root = self.shard.rank == 0;
        self.exchange(
            Operation::gather(lens),
            |slot| slot.values = own.to_vec(),
            |slots| {
                for (rank, slot) in slots.iter().enumerate().filter(|_| is_root) {
                    take(rank, 0, &slot.values);
                }
            },
        )
    }

    fn all_gather(
        &mut self,
        own: &[f32],
        lens: &[usize],
        take: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<(), CollectiveError> {
        self.exchange(
            Operation::all_gather(lens),
            |slot| slot.values = own.to_vec(),
            |slots| {
                for (rank, slot) in slots.iter().enumerate() {
                    take(rank, 0, &slot.values);
                }
            },
        )
    }

    fn broadcast(&mut self, values: &mut [u32]) -> Result<(), CollectiveError> {
        let given = values.to_vec();
        self.exchange(
            Operation::broadcast(values.len()),
            |slot| slot.words = given,
            |slots| values.copy_from_slice(&slots[0].words),
        )
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.exchange(Operation::barrier(), |_| {}, |_| {})
    }
}
