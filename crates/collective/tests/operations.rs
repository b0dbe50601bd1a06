//! Every transport computes what the definitions say, to the bit, over random traces of operations.

#![expect(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use support::{Boxed, Kind, PATIENCE, as_ranks, bits, mix, tree, values};

#[derive(Clone, Copy, Debug)]
enum Operation {
    AllReduce(usize),
    Gather(usize),
    AllGather(usize),
    Broadcast(usize),
    Barrier,
}

fn operation() -> impl Strategy<Value = Operation> {
    // Mostly short, and some that need several chunks and end anywhere.
    let len = prop_oneof![4 => 1usize..300, 1 => Just(16 * 1024), 2 => 4000usize..40_000];
    prop_oneof![
        4 => len.clone().prop_map(Operation::AllReduce),
        2 => len.clone().prop_map(Operation::Gather),
        2 => len.clone().prop_map(Operation::AllGather),
        2 => len.prop_map(Operation::Broadcast),
        1 => Just(Operation::Barrier),
    ]
}

/// Lengths by rank, some of them zero.
fn lens(seed: u64, ranks: usize, longest: usize) -> Vec<usize> {
    (0..ranks).map(|rank| mix(seed ^ rank as u64) as usize % (longest + 1)).collect()
}

fn run(trace: &[Operation], seed: u64, ranks: usize, rank: usize, transport: &mut Boxed) {
    assert_eq!(transport.shard().rank as usize, rank);
    for (number, operation) in trace.iter().enumerate() {
        let seed = mix(seed ^ number as u64);
        match *operation {
            Operation::AllReduce(len) => {
                let mut sum = values(seed, rank, len);
                transport.all_reduce(&mut sum).unwrap();
                let all: Vec<_> = (0..ranks).map(|rank| values(seed, rank, len)).collect();
                let column = |i| all.iter().map(|one| one[i]).collect::<Vec<_>>();
                let expected: Vec<_> = (0..len).map(|i| tree(&column(i))).collect();
                assert!(bits(&sum) == bits(&expected), "operation {number}: another sum");
            }
            Operation::Gather(longest) | Operation::AllGather(longest) => {
                let lens = lens(seed, ranks, longest);
                let mut all: Vec<Vec<f32>> = vec![vec![]; ranks];
                let own = values(seed, rank, lens[rank]);
                let mut take = |rank: usize, offset: usize, part: &[f32]| {
                    assert_eq!(offset, all[rank].len(), "consecutive parts");
                    all[rank].extend_from_slice(part);
                };
                let is_for_all = matches!(operation, Operation::AllGather(_));
                if is_for_all {
                    transport.all_gather(&own, &lens, &mut take).unwrap();
                } else {
                    transport.gather(&own, &lens, &mut take).unwrap();
                }
                for (peer, all) in all.iter().enumerate() {
                    let is_mine = is_for_all || rank == 0;
                    let expected = if is_mine { values(seed, peer, lens[peer]) } else { vec![] };
                    assert!(bits(all) == bits(&expected), "operation {number}: rank {peer}'s part");
                }
            }
            Operation::Broadcast(len) => {
                let of = |rank| (0..len as u64).map(move |i| mix(seed ^ (rank << 40) ^ i) as u32);
                let mut words: Vec<u32> = of(rank as u64).collect();
                transport.broadcast(&mut words).unwrap();
                assert!(words.into_iter().eq(of(0)), "operation {number}: other words");
            }
            Operation::Barrier => transport.barrier().unwrap(),
        }
    }
    transport.barrier().unwrap();
    assert_eq!((transport.waiting())(), None);
}

fn check(kind: Kind, trace: &[Operation], seed: u64, ranks: u32) {
    let group = kind.group(ranks, PATIENCE);
    as_ranks(group, |rank, transport| run(trace, seed, ranks as usize, rank, transport));
}

fn ranks() -> impl Strategy<Value = u32> {
    prop_oneof![Just(1), Just(2), Just(4), Just(8)]
}

/// All who sleep are woken at once, not one of them, nor when they next look around.
#[test]
fn sleepers_wake_together() {
    const ROUNDS: u32 = 30;
    for kind in [Kind::SharedMemory, Kind::Tcp] {
        let group = kind.group(4, PATIENCE);
        let waiting: Vec<_> = group[..3].iter().map(|rank| rank.waiting()).collect();
        let times = as_ranks(group, |rank, transport| {
            let mut longest = vec![];
            for _ in 0..ROUNDS {
                if rank == 3 {
                    // Until all others wait, in the end for this one, and sleep.
                    let begun = Instant::now();
                    while waiting.iter().any(|waiting| waiting().is_none()) {
                        assert!(begun.elapsed() < PATIENCE, "the others do not wait");
                        thread::yield_now();
                    }
                    thread::sleep(Duration::from_millis(1));
                }
                let begun = Instant::now();
                transport.barrier().unwrap();
                longest.push(begun.elapsed());
                // Nobody counts as waiting for the round before.
                transport.barrier().unwrap();
            }
            longest.sort();
            longest[longest.len() / 2]
        });
        assert!(times.iter().all(|time| *time < Duration::from_millis(80)), "{kind:?}: {times:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn local(trace in prop::collection::vec(operation(), 1..30), seed: u64, ranks in ranks()) {
        check(Kind::Local, &trace, seed, ranks);
    }

    #[test]
    fn shared_memory(trace in prop::collection::vec(operation(), 1..30), seed: u64, ranks in ranks()) {
        check(Kind::SharedMemory, &trace, seed, ranks);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn tcp(trace in prop::collection::vec(operation(), 1..30), seed: u64, ranks in ranks()) {
        check(Kind::Tcp, &trace, seed, ranks);
    }
}
