//! Who is let into a group, and who is not.

#![expect(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use oarlock_collective::{
    CollectiveError, Segment, SharedMemory, Tcp, TcpRendezvous, Transport as _, local_group,
};
use oarlock_types::Shard;
use support::{PATIENCE, SECRET, as_ranks, shards};

const MEMORY: &str = "/dev/shm";
const SHORT: Duration = Duration::from_millis(300);
const FIRST: Shard = Shard { rank: 0, ranks: 2 };
const SECOND: Shard = Shard { rank: 1, ranks: 2 };

fn message<T>(result: Result<T, CollectiveError>) -> String {
    let Err(error) = result else { panic!("this should have failed") };
    error.to_string()
}

fn bind() -> TcpRendezvous {
    TcpRendezvous::bind(Ipv4Addr::LOCALHOST.into()).unwrap()
}

#[test]
fn a_segment_is_private_and_leaves_no_name() {
    let segment = Segment::create(Path::new(MEMORY), 2, 1).unwrap();
    let other = Segment::create(Path::new(MEMORY), 2, 1).unwrap();
    assert_ne!(segment.path(), other.path());
    let metadata = fs::metadata(segment.path()).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o600);
    assert_eq!(metadata.len(), SharedMemory::segment_bytes(2));
    // All of it is reserved.
    assert!(metadata.blocks() * 512 >= metadata.len());
    let path = segment.path().to_owned();
    drop(segment);
    assert!(!path.exists());
}

#[test]
fn ranks_go_on_when_the_name_is_gone() {
    let segment = Segment::create(Path::new(MEMORY), 2, 1).unwrap();
    let join = |shard| SharedMemory::join(segment.path(), shard, 1, PATIENCE, PATIENCE).unwrap();
    let group = as_ranks(vec_of_local(2), |rank, _| join(Shard { rank: rank as u32, ranks: 2 }));
    drop(segment);
    let progress = group[0].progress();
    let sums = as_ranks(group, |rank, transport| {
        let mut values = [rank as f32 + 1.0; 3];
        transport.all_reduce(&mut values).unwrap();
        values
    });
    assert_eq!(sums, [[3.0; 3]; 2]);
    // The counter outlives the transport.
    progress.advance();
    assert_eq!(progress.get(), 1);
}

/// Something to run on as many threads.
fn vec_of_local(ranks: u32) -> Vec<impl oarlock_collective::Transport> {
    local_group(ranks)
}

#[test]
fn other_files_and_other_groups_are_no_segment() {
    let segment = Segment::create(Path::new(MEMORY), 2, 5).unwrap();
    let join =
        |shard, epoch| message(SharedMemory::join(segment.path(), shard, epoch, SHORT, PATIENCE));
    assert!(join(FIRST, 6).contains("epoch 5"), "{}", join(FIRST, 6));
    assert!(join(Shard { rank: 0, ranks: 4 }, 5).contains("not a segment of 4 ranks"));

    let path = segment.path().with_extension("other");
    fs::write(&path, vec![0; SharedMemory::segment_bytes(2) as usize]).unwrap();
    let error = message(SharedMemory::join(&path, FIRST, 5, SHORT, PATIENCE));
    assert!(error.contains("no segment of this version"), "{error}");
    fs::remove_file(&path).unwrap();
    symlink(segment.path(), &path).unwrap();
    message(SharedMemory::join(&path, FIRST, 5, SHORT, PATIENCE));
    fs::remove_file(&path).unwrap();
}

#[test]
fn nobody_is_a_rank_that_is_taken() {
    let segment = Segment::create(Path::new(MEMORY), 2, 5).unwrap();
    let join = |shard| SharedMemory::join(segment.path(), shard, 5, PATIENCE, PATIENCE);
    thread::scope(|scope| {
        let first = scope.spawn(|| join(FIRST));
        let second = join(SECOND).unwrap();
        let again = message(join(SECOND));
        assert!(again.contains("someone else is this rank"), "{again}");
        // Those who are refused do not disturb the group.
        let mut first = first.join().unwrap().unwrap();
        drop(second);
        let again = message(join(SECOND));
        assert!(again.contains("was here before"), "{again}");
        assert_eq!(message(first.barrier()), "rank 1 gave up");
    });
}

#[test]
fn a_rank_that_does_not_come_is_named() {
    let segment = Segment::create(Path::new(MEMORY), 2, 5).unwrap();
    let error = message(SharedMemory::join(segment.path(), FIRST, 5, SHORT, PATIENCE));
    assert!(error.starts_with("rank 1 made no progress"), "{error}");
    // When it comes after all, the group is lost already.
    let error = message(SharedMemory::join(segment.path(), SECOND, 5, PATIENCE, PATIENCE));
    assert!(error.starts_with("rank 1 made no progress"), "{error}");

    let (first, second) = (bind(), bind());
    let peers = [first.addresses().to_vec(), second.addresses().to_vec()];
    let error = message(Tcp::connect(first, FIRST, &peers, SECRET, 5, SHORT, PATIENCE));
    assert!(error.starts_with("rank 1 made no progress"), "{error}");
    // Rank 0 has failed and does not listen any more.
    let error = message(Tcp::connect(second, SECOND, &peers, SECRET, 5, SHORT, PATIENCE));
    assert!(error.contains("rank 1 cannot reach rank 0"), "{error}");
}

#[test]
fn all_have_the_same_time_to_come() {
    const MEETING: Duration = Duration::from_secs(3);
    let segment = Segment::create(Path::new(MEMORY), 4, 5).unwrap();
    let join = |rank| {
        let shard = Shard { rank, ranks: 4 };
        message(SharedMemory::join(segment.path(), shard, 5, MEETING, PATIENCE))
    };
    let begun = Instant::now();
    thread::scope(|scope| {
        let first = scope.spawn(|| (join(0), begun.elapsed()));
        // One more comes, and those who are still missing have no more time for it.
        thread::sleep(MEETING * 8 / 10);
        join(1);
        let (error, elapsed) = first.join().unwrap();
        assert!(error.contains("made no progress"), "{error}");
        // Time that began anew would last until eighteen tenths at least.
        assert!(elapsed < MEETING * 16 / 10, "{elapsed:?}");
    });
}

/// Two ranks that differ in secret or epoch, or do not.
fn meet(secret: [u8; 16], epoch: u64, meeting: Duration) -> Vec<Result<Tcp, CollectiveError>> {
    let rendezvous = [bind(), bind()];
    let peers: Vec<_> = rendezvous.iter().map(|one| one.addresses().to_vec()).collect();
    let peers = &peers;
    thread::scope(|scope| {
        let sides = [(SECRET, 5), (secret, epoch)];
        let threads: Vec<_> = rendezvous
            .into_iter()
            .zip(shards(2))
            .zip(sides)
            .map(|((rendezvous, shard), (secret, epoch))| {
                scope.spawn(move || {
                    Tcp::connect(rendezvous, shard, peers, secret, epoch, meeting, PATIENCE)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn a_wrong_secret_or_epoch_is_refused() {
    for side in meet(SECRET, 5, PATIENCE) {
        side.unwrap();
    }
    for (secret, epoch) in [([0; 16], 5), (SECRET, 6)] {
        let mut sides = meet(secret, epoch, SHORT).into_iter().map(message);
        let first = sides.next().unwrap();
        assert!(first.starts_with("rank 1 made no progress"), "{first}");
        let second = sides.next().unwrap();
        assert!(second.contains("rank 0"), "{second}");
    }
}

/// All ranks of a group, which differ in nothing.
fn connect(
    rendezvous: Vec<TcpRendezvous>,
    peers: &[Vec<String>],
    meeting: Duration,
    deadline: Duration,
) -> Vec<Tcp> {
    let shards = shards(rendezvous.len() as u32);
    thread::scope(|scope| {
        let connect = |(rendezvous, shard)| {
            scope.spawn(move || {
                Tcp::connect(rendezvous, shard, peers, SECRET, 5, meeting, deadline).unwrap()
            })
        };
        let threads: Vec<_> = rendezvous.into_iter().zip(shards).map(connect).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Takes connections and says nothing, as an address may do that leads elsewhere.
fn silent() -> (TcpListener, String) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

#[test]
fn silent_addresses_leave_time_for_others() {
    let (_listener, silent) = silent();
    let rendezvous: Vec<_> = (0..4).map(|_| bind()).collect();
    let all = |one: &TcpRendezvous| [vec![silent.clone()], one.addresses().to_vec()].concat();
    let peers: Vec<_> = rendezvous.iter().map(all).collect();
    // Each gives a silent address a second. The first to have met everyone, after one, waits for the
    // last, which calls three in turn, for longer than the deadline of steps, which is no failure.
    let (meeting, deadline) = (Duration::from_secs(24), Duration::from_millis(1500));
    let begun = Instant::now();
    let group = connect(rendezvous, &peers, meeting, deadline);
    assert!(begun.elapsed() < meeting / 2, "{:?}", begun.elapsed());
    as_ranks(group, |_, transport| {
        transport.barrier().unwrap();
    });
}

#[test]
fn a_peer_that_drips_gets_no_more_time() {
    let (dripping, address) = silent();
    thread::spawn(move || {
        for stream in dripping.incoming() {
            let mut stream = stream.unwrap();
            // A challenge at once, and then a proof for which nobody has the time.
            let mut written = stream.write_all(&[7; 16]);
            while written.is_ok() {
                thread::sleep(SHORT / 4);
                written = stream.write_all(&[7]);
            }
        }
    });
    let begun = Instant::now();
    let peers = [vec![address], vec![]];
    let error = message(Tcp::connect(bind(), SECOND, &peers, SECRET, 5, SHORT, PATIENCE));
    assert!(error.contains("rank 0"), "{error}");
    // All of the proof would take eight times as long.
    assert!(begun.elapsed() < 5 * SHORT, "{:?}", begun.elapsed());
}

#[test]
fn whoever_comes_late_but_in_time_is_awaited() {
    let segment = Segment::create(Path::new(MEMORY), 2, 5).unwrap();
    let rendezvous = [bind(), bind()];
    let peers: Vec<_> = rendezvous.iter().map(|one| one.addresses().to_vec()).collect();
    let (segment, peers) = (&segment, &peers);
    thread::scope(|scope| {
        let meet = |(rendezvous, shard): (TcpRendezvous, Shard)| {
            scope.spawn(move || {
                // For longer than the deadline of steps.
                let tarry = || thread::sleep(2 * SHORT * shard.rank);
                tarry();
                let joined = SharedMemory::join(segment.path(), shard, 5, PATIENCE, SHORT);
                tarry();
                let connected = Tcp::connect(rendezvous, shard, peers, SECRET, 5, PATIENCE, SHORT);
                (joined.unwrap(), connected.unwrap())
            })
        };
        let threads: Vec<_> = rendezvous.into_iter().zip(shards(2)).map(meet).collect();
        let group: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_eq!(group.len(), 2);
    });
}

#[test]
fn strangers_do_no_harm() {
    let rendezvous = [bind(), bind()];
    let peers: Vec<_> = rendezvous.iter().map(|one| one.addresses().to_vec()).collect();
    let (address, peers) = (&peers[0][0], &peers);
    // More silent callers than are kept, talkers of rubbish, and one that goes at once.
    let silent: Vec<_> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut rubbish = TcpStream::connect(address).unwrap();
    rubbish.write_all(&[7; 500]).unwrap();
    drop(TcpStream::connect(address).unwrap());
    let begun = Instant::now();
    as_ranks(connect(rendezvous.into(), peers, PATIENCE, PATIENCE), |_, transport| {
        transport.barrier().unwrap();
    });
    assert!(begun.elapsed() < PATIENCE / 2, "strangers held up the group");
    drop(silent);
    rubbish.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = vec![];
    // A challenge, perhaps, and then the end, however it comes.
    let _ = rubbish.read_to_end(&mut answer);
    assert!(answer.len() <= 16, "a stranger learned something: {answer:?}");
}

#[test]
fn every_interface_has_an_address() {
    let rendezvous = TcpRendezvous::bind(Ipv4Addr::UNSPECIFIED.into()).unwrap();
    assert!(!rendezvous.addresses().is_empty());
    for address in rendezvous.addresses() {
        TcpStream::connect(address).unwrap();
    }
}
