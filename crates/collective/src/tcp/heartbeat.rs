//! What ranks tell each other beside their values: that they live, work, wait or have failed.
//!
//! One thread per rank sends a beat to each peer every tenth of the deadline.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::state::{BEAT_BYTES, State};
use crate::tree::MAX_RANKS;
use crate::{CollectiveError, error};

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
        state.end(self.rank);
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
        if state.is_leaving() {
            break;
        }
        // What has come is heard before anyone is called silent, and beats that we missed because we
        // were stopped ourselves are not made up for.
        if Instant::now() >= next {
            next = Instant::now() + state.interval;
            for line in lines.iter_mut().filter(|line| line.is_open) {
                state.count_silence(line.rank);
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
    let leave = || PollFd::new(&state.farewell, PollFlags::IN);
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
