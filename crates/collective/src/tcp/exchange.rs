//! Messages of values between ranks, sent and received at the same time.
//!
//! A message is a header of three little-endian words (operation, its number, bytes of payload) and the
//! payload, little-endian too.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::heartbeat::timespec;
use super::state::{Place, State};
use crate::failure::Watch;
use crate::operation::{self, Operation};
use crate::{CollectiveError, error};

const HEADER_BYTES: usize = 24;
/// A peer that is about to answer is met without sleeping.
const SPIN: Duration = Duration::from_micros(30);
/// A sleeper looks around this often.
const SLICE: Duration = Duration::from_millis(100);
/// What a peer sent before it failed may still be on its way when the failure is known.
const GRACE: Duration = Duration::from_millis(100);
/// A connection of values that ended is explained by the one of beats.
const EXPLANATION: Duration = Duration::from_secs(1);

/// The connections of values, and where the rank is.
pub(super) struct Links {
    pub(super) state: Arc<State>,
    /// By rank; nothing at the own place.
    pub(super) streams: Vec<Option<TcpStream>>,
    pub(super) deadline: Duration,
    place: Place,
}

type Seen = (usize, (u64, u64), usize);

/// A message on its way, in either direction.
struct Transfer<P> {
    peer: usize,
    header: [u8; HEADER_BYTES],
    payload: P,
    num_moved: usize,
}

impl<P: AsRef<[u8]>> Transfer<P> {
    fn is_done(&self) -> bool {
        self.num_moved == HEADER_BYTES + self.payload.as_ref().len()
    }
}

/// What a call of the system moved: some bytes, nothing for now, or the connection has ended.
enum Moved {
    Some(usize),
    Nothing,
    Ended,
}

fn moved(result: io::Result<usize>) -> Moved {
    match result {
        Ok(0) => Moved::Ended,
        Ok(count) => Moved::Some(count),
        Err(error) => match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Moved::Nothing,
            _ => Moved::Ended,
        },
    }
}

impl Links {
    pub(super) fn new(
        state: Arc<State>,
        streams: Vec<Option<TcpStream>>,
        deadline: Duration,
    ) -> Self {
        Self { state, streams, deadline, place: Place::default() }
    }

    /// All ranks begin the same operations in the same order.
    pub(super) fn begin(&mut self, operation: Operation) -> Result<(), CollectiveError> {
        // The connections went with an earlier error.
        if self.streams.is_empty() {
            let rank = self.state.shard.rank;
            return Err(self.state.failure().unwrap_or(CollectiveError::GaveUp { rank }));
        }
        self.place = Place { sequence: self.place.sequence + 1, operation };
        self.state.own().enter(self.place);
        Ok(())
    }

    /// Sends to one peer and receives from one, where given. After an error there are no connections.
    pub(super) fn exchange(
        &mut self,
        to: Option<(usize, &[u8])>,
        from: Option<(usize, &mut [u8])>,
    ) -> Result<(), CollectiveError> {
        let result = self.transfer(to, from);
        self.state.own().set_waiting(None);
        result.map_err(|error| {
            self.state.fail(&error);
            // Peers are told why before they see that the connections of values end.
            self.state.leave();
            self.streams.clear();
            match error {
                CollectiveError::Diverged { .. } | CollectiveError::Io { .. } => error,
                _ => self.state.failure().unwrap_or(error),
            }
        })
    }

    fn header(&self, bytes: usize) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        let words = [self.place.operation.to_word(), self.place.sequence, bytes as u64];
        for (place, word) in header.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        header
    }

    fn transfer(
        &self,
        to: Option<(usize, &[u8])>,
        from: Option<(usize, &mut [u8])>,
    ) -> Result<(), CollectiveError> {
        let mut sending = to.map(|(peer, payload)| Transfer {
            peer,
            header: self.header(payload.len()),
            payload,
            num_moved: 0,
        });
        let mut receiving = from.map(|(peer, payload)| Transfer {
            peer,
            header: [0; HEADER_BYTES],
            payload,
            num_moved: 0,
        });
        let mut watch = Watch::new(2 * self.slice());
        let mut idle: Option<Instant> = None;
        let mut failing: Option<Instant> = None;
        loop {
            let sent = sending.as_mut().map_or(Ok(false), |sending| self.send(sending))?;
            let received = receiving.as_mut().map_or(Ok(false), |one| self.receive(one))?;
            if sent || received {
                self.state.count_moved();
            }
            sending.take_if(|sending| sending.is_done());
            receiving.take_if(|receiving| receiving.is_done());
            let to = sending.as_ref().map(|sending| sending.peer);
            let from = receiving.as_ref().map(|receiving| receiving.peer);
            let Some(peer) = from.or(to) else { return Ok(()) };
            if sent || received {
                idle = None;
                continue;
            }
            let since = *idle.get_or_insert_with(Instant::now);
            if since.elapsed() < SPIN {
                std::hint::spin_loop();
                continue;
            }
            self.state.own().set_waiting(Some(peer));
            if let Some(error) = self.state.failure()
                && failing.get_or_insert_with(Instant::now).elapsed() > GRACE
            {
                return Err(error);
            }
            let num_moved = receiving.as_ref().map_or(0, |receiving| receiving.num_moved)
                + sending.as_ref().map_or(0, |sending| sending.num_moved);
            self.look_for_the_stuck(peer, num_moved, &mut watch)?;
            self.sleep(to, from, failing.is_some())?;
        }
    }

    fn stream(&self, peer: usize) -> &TcpStream {
        self.streams[peer].as_ref().expect("a connection with every peer")
    }

    fn send(&self, sending: &mut Transfer<&[u8]>) -> Result<bool, CollectiveError> {
        let header = &sending.header[sending.num_moved.min(HEADER_BYTES)..];
        let payload = &sending.payload[sending.num_moved.saturating_sub(HEADER_BYTES)..];
        let parts = [IoSlice::new(header), IoSlice::new(payload)];
        let count = match moved(self.stream(sending.peer).write_vectored(&parts)) {
            Moved::Some(count) => count,
            Moved::Nothing => 0,
            Moved::Ended => return Err(self.explain(sending.peer)),
        };
        sending.num_moved += count;
        Ok(count > 0)
    }

    fn receive(&self, receiving: &mut Transfer<&mut [u8]>) -> Result<bool, CollectiveError> {
        let before = receiving.num_moved;
        let expected = self.header(receiving.payload.len());
        let header = &mut receiving.header[before.min(HEADER_BYTES)..];
        let payload = &mut receiving.payload[before.saturating_sub(HEADER_BYTES)..];
        let mut parts = [IoSliceMut::new(header), IoSliceMut::new(payload)];
        let count = match moved(self.stream(receiving.peer).read_vectored(&mut parts)) {
            Moved::Some(count) => count,
            Moved::Nothing => 0,
            Moved::Ended => return Err(self.explain(receiving.peer)),
        };
        receiving.num_moved += count;
        if before < HEADER_BYTES
            && receiving.num_moved >= HEADER_BYTES
            && receiving.header != expected
        {
            return Err(self.diverged(receiving.peer, &receiving.header));
        }
        Ok(count > 0)
    }

    fn diverged(&self, peer: usize, header: &[u8; HEADER_BYTES]) -> CollectiveError {
        let word = |place: usize| {
            let bytes = header.iter().skip(place * 8).take(8).rev();
            bytes.fold(0, |word, byte| word << 8 | u64::from(*byte))
        };
        let detail = format!(
            "{} (number {}, {} bytes), where this rank is at {} (number {})",
            Operation::from_word(word(0)),
            word(1),
            word(2),
            self.place.operation,
            self.place.sequence
        );
        CollectiveError::Diverged { rank: peer as u32, detail }
    }

    /// Why the connection with `peer` has ended.
    fn explain(&self, peer: usize) -> CollectiveError {
        let begun = Instant::now();
        while begun.elapsed() < EXPLANATION {
            if let Some(error) = self.state.failure() {
                return error;
            }
            if self.state.known[peer].has_ended() {
                break;
            }
            let mut events = [PollFd::new(&self.state.alarm, PollFlags::IN)];
            let _ = poll(&mut events, Some(&timespec(Duration::from_millis(10))));
        }
        CollectiveError::Gone { rank: peer as u32 }
    }

    /// Looks whether the one that keeps `peer` from answering, which may be itself, neither works nor
    /// waits, or is not heard of any more.
    fn look_for_the_stuck(
        &self,
        peer: usize,
        num_moved: usize,
        watch: &mut Watch<Seen>,
    ) -> Result<(), CollectiveError> {
        let stalled = |rank: usize, still: Duration| {
            let seconds = still.as_secs_f64();
            Err(CollectiveError::Stalled { rank: rank as u32, seconds })
        };
        // Ranks that are at different operations may wait for each other.
        let theirs = self.state.known[peer].place();
        if theirs.sequence == self.place.sequence {
            operation::check(peer as u32, theirs.operation, self.place.operation)?;
        }
        let rank = self.state.blocking(peer);
        if let Some(silence) = self.state.silence(rank) {
            return stalled(rank, silence);
        }
        let still = watch.look((rank, self.state.known[rank].state(), num_moved));
        if still > self.deadline { stalled(rank, still) } else { Ok(()) }
    }

    fn slice(&self) -> Duration {
        SLICE.min(self.deadline / 8)
    }

    /// Sleeps for a slice at most, until a connection is ready or a failure is known.
    fn sleep(
        &self,
        to: Option<usize>,
        from: Option<usize>,
        is_failing: bool,
    ) -> Result<(), CollectiveError> {
        let alarm = if is_failing { PollFlags::empty() } else { PollFlags::IN };
        let alarm = || PollFd::new(&self.state.alarm, alarm);
        let wish = |peer: Option<usize>, flags| {
            peer.map_or_else(alarm, |peer| PollFd::new(self.stream(peer), flags))
        };
        let mut events = [alarm(), wish(to, PollFlags::OUT), wish(from, PollFlags::IN)];
        match poll(&mut events, Some(&timespec(self.slice()))) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(source) => Err(error::io("cannot wait for peers", source)),
        }
    }
}
