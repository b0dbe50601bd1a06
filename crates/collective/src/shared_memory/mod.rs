//! Ranks of one host: values go through memory that they share, in chunks.

mod group;
mod lock;
mod mapping;
mod segment;
mod wait;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use oarlock_backend::Progress;
use oarlock_types::Shard;

pub use self::segment::Segment;

use self::group::Group;
use self::mapping::CHUNK;
use crate::operation::Operation;
use crate::tree::{self, MAX_RANKS};
use crate::{CollectiveError, Transport};

/// A rank's place in a [`Segment`].
#[derive(Debug)]
pub struct SharedMemory {
    group: Group,
}

/// Is given parts of ranks' values.
type Take<'a> = &'a mut dyn FnMut(usize, usize, &[f32]);

impl SharedMemory {
    /// Bytes of a segment, all of them in memory for as long as the group lives.
    pub fn segment_bytes(ranks: u32) -> u64 {
        mapping::segment_bytes(ranks as usize) as u64
    }

    /// Opens the segment at `path`, checks that it was made for this group and epoch, and waits until
    /// all ranks have done so; one that does not come within `meeting` is an error. From then on a rank
    /// that neither works nor waits for as long as `deadline` is one too.
    pub fn join(
        path: &Path,
        shard: Shard,
        epoch: u64,
        meeting: Duration,
        deadline: Duration,
    ) -> Result<Self, CollectiveError> {
        tree::assert_size(shard.ranks);
        assert!(shard.rank < shard.ranks, "a rank of its group");
        Ok(Self { group: Group::join(path, shard, epoch, meeting, deadline)? })
    }

    fn ranks(&self) -> usize {
        self.group.shard.ranks as usize
    }

    fn rank(&self) -> usize {
        self.group.shard.rank as usize
    }

    /// Every rank reads all others' values: one wait.
    fn reduce_whole(
        &mut self,
        operation: Operation,
        values: &mut [f32],
    ) -> Result<(), CollectiveError> {
        self.group.begin(operation, values.len())?.copy_from_slice(values);
        self.group.publish();
        self.group.await_all()?;
        self.sum(0..values.len(), values.len(), values);
        Ok(())
    }

    /// Every rank adds a part and hands out the sums: two waits, less to read where ranks are many.
    fn reduce_parts(
        &mut self,
        operation: Operation,
        values: &mut [f32],
    ) -> Result<(), CollectiveError> {
        let (len, ranks) = (values.len(), self.ranks());
        let part = |rank: usize| len * rank / ranks..len * (rank + 1) / ranks;
        self.group.begin(operation, len)?.copy_from_slice(values);
        self.group.publish();
        self.group.await_all()?;
        let rank = self.rank();
        let own = part(rank);
        self.sum(own.clone(), len, &mut values[own.clone()]);
        self.group.begin(operation, len)?[own.clone()].copy_from_slice(&values[own]);
        self.group.publish();
        for peer in (0..ranks).filter(|peer| *peer != rank) {
            self.group.await_rank(peer)?;
            values[part(peer)].copy_from_slice(&self.group.given(peer, len)[part(peer)]);
        }
        Ok(())
    }

    /// Adds `range` of what all ranks gave.
    fn sum(&self, range: Range<usize>, len: usize, sum: &mut [f32]) {
        let mut parts: [&[f32]; MAX_RANKS] = [&[]; MAX_RANKS];
        for (rank, part) in parts[..self.ranks()].iter_mut().enumerate() {
            *part = &self.group.given(rank, len)[range.clone()];
        }
        tree::sum(&parts[..self.ranks()], sum);
    }

    fn gather_chunks(
        &mut self,
        operation: Operation,
        own: &[f32],
        lens: &[usize],
        take: Option<Take<'_>>,
    ) -> Result<(), CollectiveError> {
        assert_eq!(lens.len(), self.ranks(), "a length of every rank");
        assert_eq!(own.len(), lens[self.rank()], "this rank's length");
        let longest = lens.iter().copied().max().unwrap_or(0);
        let mut take = take;
        for offset in (0..longest).step_by(CHUNK) {
            let chunk = |len: usize| len.saturating_sub(offset).min(CHUNK);
            let now = chunk(own.len());
            let values = &own[offset.min(own.len())..][..now];
            self.group.begin(operation, now)?.copy_from_slice(values);
            self.group.publish();
            let Some(take) = &mut take else { continue };
            for (rank, len) in lens.iter().enumerate().filter(|(_, len)| **len > offset) {
                self.group.await_rank(rank)?;
                take(rank, offset, self.group.given(rank, chunk(*len)));
            }
        }
        Ok(())
    }
}

/// From so many values on ranks add parts, if they are more than two.
const WHOLE_AT_MOST: usize = 4 * 1024;

impl Transport for SharedMemory {
    fn shard(&self) -> Shard {
        self.group.shard
    }

    fn progress(&self) -> Progress {
        mapping::progress(&self.group.mapping, self.rank())
    }

    fn waiting(&self) -> Arc<dyn Fn() -> Option<u32> + Send + Sync> {
        let (mapping, rank, ranks) = (Arc::clone(&self.group.mapping), self.rank(), self.ranks());
        Arc::new(move || group::waits_for(&mapping, rank, ranks).map(|peer| peer as u32))
    }

    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), CollectiveError> {
        let operation = Operation::all_reduce(values.len());
        let in_parts = self.ranks() > 2 && values.len() > WHOLE_AT_MOST;
        for chunk in values.chunks_mut(CHUNK) {
            if in_parts {
                self.reduce_parts(operation, chunk)?;
            } else {
                self.reduce_whole(operation, chunk)?;
            }
        }
        Ok(())
    }

    fn gather(
        &mut self,
        own: &[f32],
        lens: &[usize],
        take: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<(), CollectiveError> {
        let take = (self.rank() == 0).then_some(take);
        self.gather_chunks(Operation::gather(lens), own, lens, take)
    }

    fn all_gather(
        &mut self,
        own: &[f32],
        lens: &[usize],
        take: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<(), CollectiveError> {
        self.gather_chunks(Operation::all_gather(lens), own, lens, Some(take))
    }

    fn broadcast(&mut self, values: &mut [u32]) -> Result<(), CollectiveError> {
        let operation = Operation::broadcast(values.len());
        for chunk in values.chunks_mut(CHUNK) {
            let is_root = self.rank() == 0;
            let given = self.group.begin(operation, if is_root { chunk.len() } else { 0 })?;
            if is_root {
                bytemuck::cast_slice_mut(given).copy_from_slice(chunk);
            }
            self.group.publish();
            if !is_root {
                self.group.await_rank(0)?;
                chunk.copy_from_slice(bytemuck::cast_slice(self.group.given(0, chunk.len())));
            }
        }
        Ok(())
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.group.begin(Operation::barrier(), 0)?;
        self.group.publish();
        self.group.await_all()
    }
}
