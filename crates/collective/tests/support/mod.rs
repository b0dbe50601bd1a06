//! What the tests of transports share: groups of either kind, random traces, sums as they are defined.

#![allow(dead_code, reason = "every test uses some of it")]

pub(crate) mod processes;

use std::net::Ipv4Addr;
use std::path::Path;
use std::thread;
use std::time::Duration;

use oarlock_collective::{Segment, SharedMemory, Tcp, TcpRendezvous, Transport, local_group};
use oarlock_types::Shard;

/// Longer than any stall of a test that should pass, on any machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) type Boxed = Box<dyn Transport>;

/// Runs `work` as every rank of a group, each on a thread, and returns what they return by rank. Nobody
/// leaves before all are through: whoever has passed a barrier knows that all have come to it, and not
/// that all have passed it, and those who have not would hear of a peer that gave up. A rank that
/// panics leaves at once, which frees those who wait for it.
pub(crate) fn as_ranks<T: Transport, R: Send>(
    transports: Vec<T>,
    work: impl Fn(usize, &mut T) -> R + Sync,
) -> Vec<R> {
    thread::scope(|scope| {
        let work = &work;
        let spawn = |(rank, mut transport): (usize, T)| {
            scope.spawn(move || {
                let result = work(rank, &mut transport);
                (result, transport)
            })
        };
        let threads: Vec<_> = transports.into_iter().enumerate().map(spawn).collect();
        let through: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        through.into_iter().map(|(result, _)| result).collect()
    })
}

pub(crate) fn shards(ranks: u32) -> impl Iterator<Item = Shard> {
    (0..ranks).map(move |rank| Shard { rank, ranks })
}

/// A kind of transport whose ranks are all in this process.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Local,
    SharedMemory,
    Tcp,
}

impl Kind {
    pub(crate) fn group(self, ranks: u32, deadline: Duration) -> Vec<Boxed> {
        match self {
            Self::Local => {
                local_group(ranks).into_iter().map(|one| Box::new(one) as Boxed).collect()
            }
            Self::SharedMemory => shared_memory(ranks, deadline),
            Self::Tcp => tcp(ranks, deadline),
        }
    }
}

fn shared_memory(ranks: u32, deadline: Duration) -> Vec<Boxed> {
    let segment = Segment::create(Path::new("/dev/shm"), ranks, 7).unwrap();
    let join = |shard| SharedMemory::join(segment.path(), shard, 7, PATIENCE, deadline).unwrap();
    let join = &join;
    thread::scope(|scope| {
        let threads: Vec<_> = shards(ranks)
            .map(|shard| scope.spawn(move || Box::new(join(shard)) as Boxed))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

pub(crate) const SECRET: [u8; 16] = *b"sixteen secrets!";

fn tcp(ranks: u32, deadline: Duration) -> Vec<Boxed> {
    let bind = |_| TcpRendezvous::bind(Ipv4Addr::LOCALHOST.into()).unwrap();
    let rendezvous: Vec<_> = (0..ranks).map(bind).collect();
    let peers: Vec<_> = rendezvous.iter().map(|one| one.addresses().to_vec()).collect();
    let peers = &peers;
    thread::scope(|scope| {
        let connect = |(shard, rendezvous)| {
            scope.spawn(move || {
                let connected =
                    Tcp::connect(rendezvous, shard, peers, SECRET, 7, PATIENCE, deadline);
                Box::new(connected.unwrap()) as Boxed
            })
        };
        let threads: Vec<_> = shards(ranks).zip(rendezvous).map(connect).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// The sum as the contract defines it.
pub(crate) fn tree(values: &[f32]) -> f32 {
    if let [value] = values {
        return *value;
    }
    let (left, right) = values.split_at(values.len() / 2);
    tree(left) + tree(right)
}

/// Floats of all kinds, the same for the same seed, rank and index: large and small, zeros of either
/// sign, infinities and NaNs.
pub(crate) fn value(seed: u64, rank: usize, index: usize) -> f32 {
    let word = mix(seed ^ mix(rank as u64 ^ mix(index as u64)));
    match word % 64 {
        0 => -0.0,
        1 => 0.0,
        2 => f32::INFINITY,
        3 => f32::NEG_INFINITY,
        4 => f32::NAN,
        5 => f32::MIN_POSITIVE / 4.0,
        // Zero of the same sign in many ranks at once, so that sums of zeros come up.
        6..16 if mix(index as u64 ^ seed).is_multiple_of(4) => -0.0,
        _ => {
            let magnitude = 2f32.powi((word >> 8) as i32 % 24 - 12);
            ((word >> 40) as f32 / 8_388_608.0 - 1.0) * magnitude
        }
    }
}

pub(crate) fn values(seed: u64, rank: usize, len: usize) -> Vec<f32> {
    (0..len).map(|index| value(seed, rank, index)).collect()
}

/// SplitMix64's finalizer.
pub(crate) fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Bits, with one for all NaNs: which operand's payload survives is the compiler's choice.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    let bits = |value: &f32| if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() };
    values.iter().map(bits).collect()
}
