//! How a rank calls those below it: each on all its addresses in turn, and on none of them for so long
//! that the others have no time left.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::handshake::{self, CHANNELS, Hello, Key};
use super::rendezvous::{Meeting, Opened, SLICE};
use crate::CollectiveError;

/// An address that answers does so within this time, on a busy machine too: whoever has many addresses
/// to try and little time need not be quicker.
const BRIEFEST: Duration = Duration::from_millis(50);
/// Whoever has few addresses and much time comes back rather than wait: the system repeats a lost first
/// packet after a second, then ever more seldom.
const LONGEST: Duration = Duration::from_secs(1);

impl Meeting<'_> {
    /// Opens both channels to every rank below.
    pub(super) fn call_all(&self, key: &Key) -> Result<Vec<Opened>, CollectiveError> {
        let (ranks, caller) = (self.shard.ranks, self.shard.rank);
        (0..caller)
            .map(|listener| {
                let mut opened: Opened = [None, None];
                // The address that answered on the first channel is tried first for the second.
                let mut first = 0;
                for (place, channel) in opened.iter_mut().zip(CHANNELS) {
                    let hello = Hello { epoch: self.epoch, ranks, caller, listener, channel };
                    let (stream, address) = self.call(hello, first, key)?;
                    *place = Some(stream);
                    first = address;
                }
                Ok(opened)
            })
            .collect()
    }

    /// Tries the listener's addresses again and again, beginning with the one at `first`; returns which
    /// one answered, too.
    fn call(
        &self,
        hello: Hello,
        first: usize,
        key: &Key,
    ) -> Result<(TcpStream, usize), CollectiveError> {
        let (caller, rank) = (hello.caller, hello.listener);
        let addresses = &self.peers[rank as usize];
        // This one, and those that come after it.
        let calls = CHANNELS.len() * (caller - rank) as usize - hello.channel as usize;
        let left = || self.until.saturating_duration_since(Instant::now());
        let mut last: Option<io::Error> = None;
        while !addresses.is_empty() && !left().is_zero() {
            for turn in 0..addresses.len() {
                let left = left();
                if left.is_zero() {
                    break;
                }
                let place = (first + turn) % addresses.len();
                let share = left / (2 * addresses.len() * calls) as u32;
                let patience = share.clamp(BRIEFEST, LONGEST).min(left);
                match call_once(&addresses[place], hello, key, patience, self.until) {
                    Ok(stream) => return Ok((stream, place)),
                    // Silence says less than what another address, or the same one before, has said.
                    Err(error) if is_silence(&error) && last.is_some() => {}
                    Err(error) => last = Some(error),
                }
            }
            std::thread::sleep(SLICE.min(left()));
        }
        let source = match last {
            Some(error) if !is_silence(&error) => error,
            None if addresses.is_empty() => {
                io::Error::new(io::ErrorKind::InvalidInput, "it has no address")
            }
            _ => return Err(self.missing(rank)),
        };
        let what = format!("rank {caller} cannot reach rank {rank} at {}", addresses.join(", "));
        Err(CollectiveError::Io { what, source })
    }
}

fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

/// Waits for the listener's first words for as long as `patience`, and never longer than `until`.
fn call_once(
    address: &str,
    hello: Hello,
    key: &Key,
    patience: Duration,
    until: Instant,
) -> io::Result<TcpStream> {
    let address: SocketAddr = address.parse().map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("no address: {address}"))
    })?;
    let begun = Instant::now();
    let stream = TcpStream::connect_timeout(&address, patience)?;
    let mut bounded = Bounded { stream: &stream, until: begun + patience };
    let challenge = handshake::hear(&mut bounded)?;
    // Whoever sends a challenge is waiting for calls. It may take this connection for ours as soon as it
    // has read the hello, so that we should not leave it then because of the share of others.
    bounded.until = until.min(Instant::now() + LONGEST);
    handshake::call(&mut bounded, hello, &challenge, key)?;
    Ok(stream)
}

/// A blocking connection on which nothing lasts longer than `until`, however few bytes come at a time.
struct Bounded<'a> {
    stream: &'a TcpStream,
    until: Instant,
}

impl Bounded<'_> {
    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        // The system takes a time-out of zero for none.
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Read for Bounded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut stream = self.stream;
        stream.set_read_timeout(Some(self.left()?))?;
        stream.read(buffer)
    }
}

impl Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut stream = self.stream;
        stream.set_write_timeout(Some(self.left()?))?;
        stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
