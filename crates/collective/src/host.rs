//! Collectives over a backend's tensors, and the two that need no device: none at all, and host memory.

use std::ops::Range;

use oarlock_backend::{Backend, HostBackend};
use oarlock_types::Shard;

use crate::{CollectiveError, Transport};

/// What a model asks of its group. A device's implementation enqueues; an error may show later, at the
/// end of the step.
pub trait Collective<B: Backend>: Send {
    /// Which rank this is, and of how many.
    fn shard(&self) -> Shard;

    /// Every rank's `tensor` becomes the sum over ranks of the step's rows, by the fixed tree of
    /// neighbours: `((r0 + r1) + (r2 + r3)) + ...` in float32.
    fn all_reduce(
        &mut self,
        backend: &mut B,
        tensor: &mut B::Tensor,
    ) -> Result<(), CollectiveError>;

    /// Rank 0's `whole` becomes the ranks' columns side by side: `columns` says by rank which of them
    /// its `own` holds. Other ranks need none.
    fn gather_columns(
        &mut self,
        backend: &mut B,
        whole: Option<&mut B::Tensor>,
        own: &B::Tensor,
        columns: &[Range<usize>],
    ) -> Result<(), CollectiveError>;

    /// Every rank gets rank 0's values.
    fn broadcast(&mut self, values: &mut [u32]) -> Result<(), CollectiveError>;
}

/// The group of one rank.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl<B: Backend> Collective<B> for Alone {
    fn shard(&self) -> Shard {
        Shard::WHOLE
    }

    fn all_reduce(&mut self, _: &mut B, _: &mut B::Tensor) -> Result<(), CollectiveError> {
        Ok(())
    }

    fn gather_columns(
        &mut self,
        _: &mut B,
        _: Option<&mut B::Tensor>,
        _: &B::Tensor,
        _: &[Range<usize>],
    ) -> Result<(), CollectiveError> {
        unreachable!("a model that is whole samples from its own logits")
    }

    fn broadcast(&mut self, _: &mut [u32]) -> Result<(), CollectiveError> {
        Ok(())
    }
}

/// A group whose tensors lie in host memory.
#[derive(Debug)]
pub struct HostCollective<T> {
    transport: T,
    lens: Vec<usize>,
}

impl<T: Transport> HostCollective<T> {
    /// Over a transport that is connected.
    pub fn new(transport: T) -> Self {
        Self { transport, lens: Vec::new() }
    }
}

impl<B: HostBackend, T: Transport> Collective<B> for HostCollective<T> {
    fn shard(&self) -> Shard {
        self.transport.shard()
    }

    fn all_reduce(
        &mut self,
        backend: &mut B,
        tensor: &mut B::Tensor,
    ) -> Result<(), CollectiveError> {
        self.transport.all_reduce(backend.host_rows_mut(tensor))
    }

    fn gather_columns(
        &mut self,
        backend: &mut B,
        whole: Option<&mut B::Tensor>,
        own: &B::Tensor,
        columns: &[Range<usize>],
    ) -> Result<(), CollectiveError> {
        let width = columns.iter().map(|range| range.end).max().unwrap_or(0);
        let own = backend.host_rows(own);
        let rows = own.len() / columns[self.transport.shard().rank as usize].len();
        self.lens.clear();
        self.lens.extend(columns.iter().map(|range| rows * range.len()));
        let mut whole = whole.map(|whole| backend.host_rows_mut(whole));
        assert_eq!(whole.is_some(), self.transport.shard().rank == 0, "rank 0 gathers");
        self.transport.gather(own, &self.lens, &mut |rank, mut offset, mut part| {
            // A part may begin and end anywhere in the rank's rows.
            let range = &columns[rank];
            let Some(whole) = whole.as_mut() else { return };
            while !part.is_empty() {
                let (row, column) = (offset / range.len(), offset % range.len());
                let (now, later) = part.split_at(part.len().min(range.len() - column));
                whole[row * width + range.start + column..][..now.len()].copy_from_slice(now);
                offset += now.len();
                part = later;
            }
        })
    }

    fn broadcast(&mut self, values: &mut [u32]) -> Result<(), CollectiveError> {
        self.transport.broadcast(values)
    }
}
