//! Operations that were done once before allocate nothing.

#![expect(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use std::hint::black_box;

use support::{Kind, PATIENCE, as_ranks};

/// What every rank allocates, its other threads apart, in rounds that are warm and in a cold one.
fn allocations(kind: Kind) -> Vec<(u64, u64)> {
    as_ranks(kind.group(4, PATIENCE), |rank, transport| {
        let mut values = vec![1.0; 40_000];
        let mut words = [0; 100];
        let lens = [300, 0, 20_000, 1];
        let mut round = || {
            for len in [1, 1000, 40_000] {
                transport.all_reduce(&mut values[..len]).unwrap();
            }
            let own = &values[..lens[rank]];
            let mut take = |_: usize, _: usize, part: &[f32]| {
                black_box(part);
            };
            transport.gather(own, &lens, &mut take).unwrap();
            transport.all_gather(own, &lens, &mut take).unwrap();
            transport.broadcast(&mut words).unwrap();
            transport.barrier().unwrap();
        };
        round();
        let warm = allocation_counter::measure(|| (0..20).for_each(|_| round()));
        let control = allocation_counter::measure(|| drop(black_box(vec![0u8; 100])));
        (warm.count_total, control.count_total)
    })
}

#[test]
fn shared_memory() {
    assert_eq!(allocations(Kind::SharedMemory), [(0, 1); 4]);
}

#[test]
fn tcp() {
    assert_eq!(allocations(Kind::Tcp), [(0, 1); 4]);
}
