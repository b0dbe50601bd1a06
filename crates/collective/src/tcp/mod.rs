//! Ranks of several hosts: every pair has a connection for values and one for heartbeats.

mod calling;
mod exchange;
mod handshake;
mod heartbeat;
mod rendezvous;
mod state;

use std::fmt;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use oarlock_backend::Progress;
use oarlock_types::Shard;

pub use self::rendezvous::TcpRendezvous;

use self::exchange::Links;
use self::rendezvous::{Connections, Meeting};
use self::state::State;
use crate::operation::Operation;
use crate::tree;
use crate::{CollectiveError, Transport, error};

/// Values in a message.
const CHUNK: usize = 256 * 1024;
/// Between two looks for those who are still calling others.
const GLANCE: Duration = Duration::from_millis(1);

// Values go over the wire as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"), "the wire format is little-endian");

/// A rank that is connected with every other.
pub struct Tcp {
    links: Links,
    beats: Option<JoinHandle<()>>,
    received: Vec<f32>,
}

impl Tcp {
    /// Meets the other ranks of the group: calls those below, answers those above. `peers` are everyone's
    /// addresses by rank, the own ones unused; `secret` is the epoch's. Returns when all have met all; a
    /// peer that has not within `meeting` is an error. From then on one that neither works nor waits for
    /// as long as `deadline` is one too.
    pub fn connect(
        rendezvous: TcpRendezvous,
        shard: Shard,
        peers: &[Vec<String>],
        secret: [u8; 16],
        epoch: u64,
        meeting: Duration,
        deadline: Duration,
    ) -> Result<Self, CollectiveError> {
        tree::assert_size(shard.ranks);
        assert!(shard.rank < shard.ranks, "a rank of its group");
        assert_eq!(peers.len(), shard.ranks as usize, "addresses of every rank");
        let until = Instant::now() + meeting;
        let meeting = Meeting { shard, peers, secret, epoch, patience: meeting, until };
        let connections = meeting.hold(&rendezvous)?;
        drop(rendezvous);
        let state = State::new(shard, deadline);
        let state = Arc::new(state.map_err(|source| error::io("cannot watch peers", source))?);
        let mut streams = vec![];
        let mut lines = vec![];
        for (rank, connections) in connections.into_iter().enumerate() {
            streams.push(connections.map(|Connections { values, heartbeats }| {
                lines.push((rank, heartbeats));
                values
            }));
        }
        let beats = Some(heartbeat::start(Arc::clone(&state), lines.into_iter())?);
        let received = vec![0.0; CHUNK];
        let tcp = Self { links: Links::new(state, streams, deadline), beats, received };
        tcp.await_peers(&meeting)?;
        Ok(tcp)
    }

    /// Waits until every peer beats, which it does once it has met all others itself. One that still
    /// calls somebody must not count as silent.
    fn await_peers(&self, meeting: &Meeting<'_>) -> Result<(), CollectiveError> {
        let state = &self.links.state;
        let is_missing = |rank: &usize| *rank != self.rank() && !state.known[*rank].has_begun();
        while let Some(rank) = (0..self.ranks()).find(is_missing) {
            let is_late = Instant::now() >= meeting.until;
            let late = is_late.then(|| meeting.missing(rank as u32));
            if let Some(error) = state.failure().or(late) {
                state.fail(&error);
                return Err(error);
            }
            thread::sleep(GLANCE);
        }
        Ok(())
    }

    fn rank(&self) -> usize {
        self.shard().rank as usize
    }

    fn ranks(&self) -> usize {
        self.shard().ranks as usize
    }

    /// Receives `len` values of `peer` while `own` go to it.
    fn swap(&mut self, peer: usize, own: &[f32], len: usize) -> Result<(), CollectiveError> {
        let received = bytemuck::cast_slice_mut(&mut self.received[..len]);
        let to = (!own.is_empty()).then_some((peer, bytemuck::cast_slice(own)));
        let from = (len > 0).then_some((peer, received));
        self.links.exchange(to, from)
    }

    /// Doubles the ranks whose sum each has, until it is everyone's: the tree, from its leaves.
    fn reduce(&mut self, values: &mut [f32]) -> Result<(), CollectiveError> {
        let (rank, ranks) = (self.rank(), self.ranks());
        let mut distance = 1;
        while distance < ranks {
            let peer = rank ^ distance;
            self.swap(peer, values, values.len())?;
            // The lower rank's comes first only on paper: a sum of two has the same bits either way.
            for (value, received) in values.iter_mut().zip(&self.received) {
                *value += received;
            }
            distance *= 2;
        }
        Ok(())
    }

    fn assert_lens(&self, own: &[f32], lens: &[usize]) {
        assert_eq!(lens.len(), self.ranks(), "a length of every rank");
        assert_eq!(own.len(), lens[self.rank()], "this rank's length");
    }
}

impl fmt::Debug for Tcp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tcp({:?})", self.shard())
    }
}

impl Drop for Tcp {
    fn drop(&mut self) {
        let state = &self.links.state;
        state.fail(&CollectiveError::GaveUp { rank: state.shard.rank });
        state.leave();
        if let Some(beats) = self.beats.take() {
            // A thread that panicked has said so, and its connections are closed.
            let _ = beats.join();
        }
    }
}

impl Transport for Tcp {
    fn shard(&self) -> Shard {
        self.links.state.shard
    }

    fn progress(&self) -> Progress {
        self.links.state.progress.clone()
    }

    fn waiting(&self) -> Arc<dyn Fn() -> Option<u32> + Send + Sync> {
        let state = Arc::clone(&self.links.state);
        Arc::new(move || state.own().waits_for().map(|rank| rank as u32))
    }

    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), CollectiveError> {
        self.links.begin(Operation::all_reduce(values.len()))?;
        values.chunks_mut(CHUNK).try_for_each(|chunk| self.reduce(chunk))
    }

    fn gather(
        &mut self,
        own: &[f32],
        lens: &[usize],
        take: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<(), CollectiveError> {
        self.assert_lens(own, lens);
        self.links.begin(Operation::gather(lens))?;
        if self.rank() != 0 {
            return own.chunks(CHUNK).try_for_each(|chunk| self.swap(0, chunk, 0));
        }
        take(0, 0, own);
        for (peer, len) in lens.iter().enumerate().skip(1) {
            for offset in (0..*len).step_by(CHUNK) {
                let now = CHUNK.min(len - offset);
                self.swap(peer, &[], now)?;
                take(peer, offset, &self.received[..now]);
            }
        }
        Ok(())
    }

    fn all_gather(
        &mut self,
        own: &[f32],
        lens: &[usize],
        take: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<(), CollectiveError> {
        self.assert_lens(own, lens);
        self.links.begin(Operation::all_gather(lens))?;
        take(self.rank(), 0, own);
        // In every round the ranks are pairs.
        for distance in 1..self.ranks() {
            let peer = self.rank() ^ distance;
            let chunk = |len: usize, offset: usize| offset.min(len)..(offset + CHUNK).min(len);
            for offset in (0..own.len().max(lens[peer])).step_by(CHUNK) {
                let now = chunk(lens[peer], offset).len();
                self.swap(peer, &own[chunk(own.len(), offset)], now)?;
                if now > 0 {
                    take(peer, offset, &self.received[..now]);
                }
            }
        }
        Ok(())
    }

    fn broadcast(&mut self, values: &mut [u32]) -> Result<(), CollectiveError> {
        self.links.begin(Operation::broadcast(values.len()))?;
        if self.rank() != 0 {
            let from = Some((0, bytemuck::cast_slice_mut(values)));
            return self.links.exchange(None, from);
        }
        let bytes: &[u8] = bytemuck::cast_slice(values);
        (1..self.ranks()).try_for_each(|peer| self.links.exchange(Some((peer, bytes)), None))
    }

    fn barrier(&mut self) -> Result<(), CollectiveError> {
        self.links.begin(Operation::barrier())?;
        let (rank, ranks) = (self.rank(), self.ranks());
        let mut distance = 1;
        while distance < ranks {
            let peer = rank ^ distance;
            self.links.exchange(Some((peer, &[])), Some((peer, &mut [])))?;
            distance *= 2;
        }
        Ok(())
    }
}
