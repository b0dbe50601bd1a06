//! Moving numbers between ranks, in host memory.

use oarlock_backend::Progress;
use oarlock_types::Shard;

use crate::CollectiveError;

/// How ranks reach each other. All ranks call the same operations in the same order, with the same
/// lengths; each returns when this rank may go on. After an error the transport is of no more use.
pub trait Transport: Send {
    /// Which rank this is, and of how many.
    fn shard(&self) -> Shard;

    /// What this rank's work advances, and its peers watch: a rank that computes is not stuck.
    fn progress(&self) -> Progress;

    /// The rank that this one waits for now, to be asked by other threads.
    fn waiting(&self) -> std::sync::Arc<dyn Fn() -> Option<u32> + Send + Sync>;

    /// Every rank gets the sum over ranks, element by element, by the fixed tree of neighbours:
    /// `((r0 + r1) + (r2 + r3)) + ...` in float32.
    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), CollectiveError>;

    /// Rank 0 is given every rank's values: `take(rank, offset, part)` is called with consecutive parts
    /// of each, its own included. `lens` are the lengths by rank. Never called on other ranks.
    fn gather(
        &mut self,
        own: &[f32],
        lens: &[usize],
        take: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<(), CollectiveError>;

    /// As [`Transport::gather`], on every rank.
    fn all_gather(
        &mut self,
        own: &[f32],
        lens: &[usize],
        take: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<(), CollectiveError>;

    /// Every rank gets what rank 0 has.
    fn broadcast(&mut self, values: &mut [u32]) -> Result<(), CollectiveError>;

    /// Returns when every rank has called it.
    fn barrier(&mut self) -> Result<(), CollectiveError>;
}

impl<T: Transport + ?Sized> Transport for Box<T> {
    fn shard(&self) -> Shard {
        (**self).shard()
    }

    fn progress(&self) -> Progress {
        (**self).progress()
    }

    fn waiting(&self) -> std::sync::Arc<dyn Fn() -> Option<u32> + Send + Sync> {
        (**self).waiting()
    }

    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), CollectiveError> {
        (**self).all_reduce(values)
    }

    fn gather(
        &mut self,
        own: &[f32],
        lens: &[usize],
        take: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<(), CollectiveError> {
        (**self).gather(own, lens, take)
    }

    fn all_gather(
        &mut self,
        own: &[f32],
        lens: &[usize],
        take: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<(), CollectiveError> {
        (**self).all_gather(own, lens, take)
    }

    fn broadcast(&mut self, values: &mut [u32]) -> Result<(), CollectiveError> {
        (**self).broadcast(values)
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        (**self).barrier()
    }
}
