//! What ranks tell each other beside their values: that they live, work, wait or have failed.
//!
//! One thread per rank sends a beat to each peer every tenth of the deadline. A beat is five
//! little-endian words: whom the rank waits for (plus one), its progress, the number of its operation,
//! the operation, and a failure if it knows of one, which is the last beat then.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use oarlock_backend::Progress;
use oarlock_types::Shard;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::failure;
use crate::tree::MAX_RANKS;
use crate::{CollectiveError, error};

/// Beats in a deadline.
const BEATS: u32 = 10;
const BEAT_BYTES: usize = 40;

/// What is known of a rank: by itself of its own, by beats of the others.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Plus one; zero while it waits for nobody.
    pub(super) waiting_for: AtomicU64,
    pub(super) sequence: AtomicU64,
    pub(super) operation: AtomicU64,
    progress: AtomicU64,
    /// Beats of ours since its last one.
    silence: AtomicU32,
    has_begun: AtomicBool,
    has_ended: AtomicBool,
}

impl Known {
    pub(super) fn waits_for(&self) -> Option<usize> {
        (self.waiting_for.load(Ordering::Relaxed) as usize).checked_sub(1)
    }

    pub(super) fn state(&self) -> (u64, u64) {
        (self.progress.load(Ordering::Relaxed), self.sequence.load(Ordering::Relaxed))
    }

    /// Has it sent a beat?
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Acquire)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }
}

/// What the rank's own thread and the one of its beats share.
#[derive(Debug)]
pub(super) struct State {
    pub(super) shard: Shard,
    pub(super) known: [Known; MAX_RANKS],
    pub(super) progress: Progress,
    failure: AtomicU64,
    is_leaving: AtomicBool,
    interval: Duration,
    /// Wakes the rank's thread at a failure.
    pub(super) alarm: OwnedFd,
    /// Wakes the thread of beats when the rank leaves.
    leave: OwnedFd,
}

impl State {
    pub(super) fn new(shard: Shard, deadline: Duration) -> io::Result<Self> {
        let event = || {
            let flags =
                rustix::event::EventfdFlags::NONBLOCK | rustix::event::EventfdFlags::CLOEXEC;
            rustix::event::eventfd(0, flags)
        };
        Ok(Self {
            shard,
            known: Default::default(),
            progress: Progress::default(),
            failure: AtomicU64::new(0),
            is_leaving: AtomicBool::new(false),
            interval: (deadline / BEATS).max(Duration::from_millis(1)),
            alarm: event()?,
            leave: event()?,
        })
    }

    pub(super) fn own(&self) -> &Known {
        &self.known[self.shard.rank as usize]
    }

    /// For how long nothing was heard of `rank`, if that is too long.
    pub(super) fn silence(&self, rank: usize) -> Option<Duration> {
        let beats = self.known[rank].silence.load(Ordering::Relaxed);
        (beats > BEATS).then(|| self.interval * beats)
    }

    pub(super) fn failure(&self) -> Option<CollectiveError> {
        failure::from_word(self.failure.load(Ordering::Acquire), self.shard.ranks)
    }

    /// Of several failures the first counts.
    pub(super) fn fail(&self, error: &CollectiveError) {
        self.fail_with(failure::to_word(error, self.shard.rank));
    }

    fn fail_with(&self, word: u64) {
        let first = self.failure.compare_exchange(0, word, Ordering::AcqRel, Ordering::Acquire);
        if first.is_ok() {
            signal(&self.alarm);
        }
    }

    /// Asks the thread of beats for a last one.
    pub(super) fn leave(&self) {
        self.is_leaving.store(true, Ordering::Release);
        signal(&self.leave);
    }

    fn beat(&self) -> [u8; BEAT_BYTES] {
        let own = self.own();
        let words = [
            own.waiting_for.load(Ordering::Relaxed),
            self.progress.get(),
            own.sequence.load(Ordering::Relaxed),
            own.operation.load(Ordering::Relaxed),
            if self.is_leaving.load(Ordering::Acquire) {
                self.failure.load(Ordering::Acquire)
            } else {
                0
            },
        ];
        let mut bytes = [0; BEAT_BYTES];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn hear(&self, rank: usize, beat: &[u8; BEAT_BYTES]) {
        let word = |place: usize| {
            let bytes = beat.iter().skip(place * 8).take(8).rev();
            bytes.fold(0, |word, byte| word << 8 | u64::from(*byte))
        };
        let known = &self.known[rank];
        known.waiting_for.store(word(0).min(u64::from(self.shard.ranks)), Ordering::Relaxed);
        known.progress.store(word(1), Ordering::Relaxed);
        known.operation.store(word(3), Ordering::Relaxed);
        known.sequence.store(word(2), Ordering::Release);
        known.silence.store(0, Ordering::Relaxed);
        known.has_begun.store(true, Ordering::Release);
        if word(4) != 0 {
            self.fail_with(word(4));
        }
    }
}

fn signal(event: &OwnedFd) {
    // It can only be full, and then it is signalled.
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

/// The connection of beats with one peer.
struct Line {
    rank: usize,
    stream: TcpStream,
    heard: [u8; BEAT_BYTES],
    num_heard: usize,
    said: [u8; BEAT_BYTES],
    num_said: usize,
    is_open: bool,
}

impl Line {
    fn new(rank: usize, stream: TcpStream) -> Self {
        let (heard, said) = ([0; BEAT_BYTES], [0; BEAT_BYTES]);
        Self { rank, stream, heard, num_heard: 0, said, num_said: BEAT_BYTES, is_open: true }
    }

    /// Sends what the connection takes. A peer that reads nothing gets no more than the beat begun.
    fn say(&mut self, beat: [u8; BEAT_BYTES]) {
        for is_new in [false, true] {
            if is_new {
                (self.said, self.num_said) = (beat, 0);
            }
            while self.num_said < BEAT_BYTES {
                match self.stream.write(&self.said[self.num_said..]) {
                    Ok(count) => self.num_said += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // That it is broken shows when reading.
                    Err(_) => return,
                }
            }
        }
    }

    fn listen(&mut self, state: &State) {
        while self.is_open {
            match self.stream.read(&mut self.heard[self.num_heard..]) {
                Ok(0) => self.is_open = false,
                Ok(count) => self.num_heard += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.is_open = false,
            }
            if self.num_heard == BEAT_BYTES {
                self.num_heard = 0;
                state.hear(self.rank, &self.heard);
            }
        }
        // One that leaves on purpose has said so.
        state.fail(&CollectiveError::Gone { rank: self.rank as u32 });
        state.known[self.rank].has_ended.store(true, Ordering::Release);
        signal(&state.alarm);
    }
}

/// Starts the thread, which ends when the rank leaves.
pub(super) fn start(
    state: Arc<State>,
    streams: impl Iterator<Item = (usize, TcpStream)>,
) -> Result<std::thread::JoinHandle<()>, CollectiveError> {
    let lines: Vec<_> = streams.map(|(rank, stream)| Line::new(rank, stream)).collect();
    let name = format!("beats-{}", state.shard.rank);
    let thread = std::thread::Builder::new().name(name).spawn(move || run(&state, lines));
    thread.map_err(|source| error::io("cannot start the thread of heartbeats", source))
}

fn run(state: &State, mut lines: Vec<Line>) {
    let mut next = Instant::now();
    loop {
        wait(state, &lines, next.saturating_duration_since(Instant::now()));
        for line in lines.iter_mut().filter(|line| line.is_open) {
            line.listen(state);
        }
        if state.is_leaving.load(Ordering::Acquire) {
            break;
        }
        // What has come is heard before anyone is called silent, and beats that we missed because we
        // were stopped ourselves are not made up for.
        if Instant::now() >= next {
            next = Instant::now() + state.interval;
            for line in lines.iter_mut().filter(|line| line.is_open) {
                state.known[line.rank].silence.fetch_add(1, Ordering::Relaxed);
                line.say(state.beat());
            }
        }
    }
    for line in &mut lines {
        line.say(state.beat());
        let _ = line.stream.shutdown(Shutdown::Write);
    }
}

fn wait(state: &State, lines: &[Line], patience: Duration) {
    let leave = || PollFd::new(&state.leave, PollFlags::IN);
    let mut open = lines.iter().filter(|line| line.is_open);
    let mut events: [PollFd<'_>; MAX_RANKS] = std::array::from_fn(|place| match place {
        0 => leave(),
        // Places left over ask the same again.
        _ => open.next().map_or_else(leave, |line| PollFd::new(&line.stream, PollFlags::IN)),
    });
    let _ = poll(&mut events, Some(&timespec(patience)));
}

pub(super) fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs() as i64, tv_nsec: duration.subsec_nanos().into() }
}
