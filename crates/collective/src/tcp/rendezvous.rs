//! How ranks find each other: every rank listens, and calls all those below it.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use oarlock_types::Shard;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::handshake::{self, CALL_BYTES, CHALLENGE_BYTES, Hello, Key};
use crate::{CollectiveError, error};

/// Callers who may be silent at one time; one more, and the one who was silent for longest must go.
/// Our own say all they have to say at once.
const MAX_PENDING: usize = 64;
/// Between two looks at the clock.
pub(super) const SLICE: Duration = Duration::from_millis(20);

/// A rank that listens for those above it.
#[derive(Debug)]
pub struct TcpRendezvous {
    listener: TcpListener,
    addresses: Vec<String>,
}

impl TcpRendezvous {
    /// Listens on `ip`, at a port of the system's choice; on all interfaces if it is the unspecified
    /// address.
    pub fn bind(ip: IpAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((ip, 0))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let ips = if ip.is_unspecified() { own_addresses(ip)? } else { vec![ip] };
        let addresses = ips.into_iter().map(|ip| SocketAddr::new(ip, port).to_string()).collect();
        Ok(Self { listener, addresses })
    }

    /// Where peers may reach this rank, for them to try in order.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }
}

/// Addresses of this host's interfaces; of the loopback only if there is nothing else.
fn own_addresses(ip: IpAddr) -> io::Result<Vec<IpAddr>> {
    let is_usable = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_link_local(),
        // A link-local address says nothing without its interface.
        IpAddr::V6(v6) => !v6.is_unicast_link_local(),
    };
    let mut ips: Vec<_> = if_addrs::get_if_addrs()?.into_iter().map(|one| one.ip()).collect();
    ips.retain(|one| is_usable(one) && (ip.is_ipv6() || one.is_ipv4()));
    if ips.iter().any(|one| !one.is_loopback()) {
        ips.retain(|one| !one.is_loopback());
    }
    Ok(ips)
}

/// The connections to one peer.
pub(super) struct Connections {
    pub(super) values: TcpStream,
    pub(super) heartbeats: TcpStream,
}

/// What was opened of both channels, in their order.
pub(super) type Opened = [Option<TcpStream>; 2];

/// What both sides of the rendezvous know.
pub(super) struct Meeting<'a> {
    pub(super) shard: Shard,
    pub(super) peers: &'a [Vec<String>],
    pub(super) secret: [u8; 16],
    pub(super) epoch: u64,
    /// How long it may last, and when that is over.
    pub(super) patience: Duration,
    pub(super) until: Instant,
}

impl Meeting<'_> {
    /// Connects to every peer. By rank; nothing at its own place.
    pub(super) fn hold(
        &self,
        rendezvous: &TcpRendezvous,
    ) -> Result<Vec<Option<Connections>>, CollectiveError> {
        let key = &Key::new(self.secret);
        let has_failed = &AtomicBool::new(false);
        // Those above must not wait until those below have answered.
        let (called, answered) = std::thread::scope(|scope| {
            let listener = &rendezvous.listener;
            let answering = scope.spawn(move || self.answer_all(listener, key, has_failed));
            let called = self.call_all(key);
            has_failed.store(called.is_err(), Ordering::Relaxed);
            let answered = match answering.join() {
                Ok(answered) => answered,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            (called, answered)
        });
        let opened = called?.into_iter().chain([[None, None]]).chain(answered?);
        let connections = opened.map(|opened| match opened {
            [Some(values), Some(heartbeats)] => {
                for stream in [&values, &heartbeats] {
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                }
                Ok(Some(Connections { values, heartbeats }))
            }
            _ => Ok(None),
        });
        connections.collect::<io::Result<_>>().map_err(|source| CollectiveError::Io {
            what: format!("connections of rank {}", self.shard.rank),
            source,
        })
    }

    /// `rank` has not come.
    pub(super) fn missing(&self, rank: u32) -> CollectiveError {
        CollectiveError::Stalled { rank, seconds: self.patience.as_secs_f64() }
    }

    /// Answers until all above have called on both channels.
    fn answer_all(
        &self,
        listener: &TcpListener,
        key: &Key,
        has_failed: &AtomicBool,
    ) -> Result<Vec<Opened>, CollectiveError> {
        let first = self.shard.rank + 1;
        let mut opened: Vec<Opened> = (first..self.shard.ranks).map(|_| [None, None]).collect();
        let mut pending: Vec<Pending> = vec![];
        while let Some(rank) = opened.iter().position(|one| one.iter().any(Option::is_none)) {
            if has_failed.load(Ordering::Relaxed) || Instant::now() >= self.until {
                return Err(self.missing(first + rank as u32));
            }
            wait(listener, &pending);
            accept(listener, &mut pending).map_err(|source| {
                error::io(format!("rank {} cannot be called", self.shard.rank), source)
            })?;
            pending.retain_mut(|one| match one.read() {
                Ok(false) => true,
                Ok(true) => {
                    if let Some((hello, stream)) = self.admit(one, key) {
                        let place = &mut opened[(hello.caller - first) as usize];
                        place[hello.channel as usize] = Some(stream);
                    }
                    false
                }
                Err(_) => false,
            });
        }
        Ok(opened)
    }

    /// A caller of this group and epoch that this rank expects.
    fn admit(&self, pending: &mut Pending, key: &Key) -> Option<(Hello, TcpStream)> {
        let (hello, proof) = handshake::answer(&pending.call, &pending.challenge, key)?;
        let callers = self.shard.rank + 1..self.shard.ranks;
        let is_ours = hello.epoch == self.epoch
            && hello.ranks == self.shard.ranks
            && hello.listener == self.shard.rank
            && callers.contains(&hello.caller);
        if !is_ours {
            return None;
        }
        // So few bytes fit into the buffer of a new connection.
        pending.stream.write_all(&proof).ok()?;
        Some((hello, pending.stream.try_clone().ok()?))
    }
}

impl fmt::Debug for Meeting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the secret.
        write!(f, "Meeting({:?}, epoch {})", self.shard, self.epoch)
    }
}

/// A caller that has not said all yet.
struct Pending {
    stream: TcpStream,
    challenge: [u8; CHALLENGE_BYTES],
    call: [u8; CALL_BYTES],
    filled: usize,
}

impl Pending {
    fn new(mut stream: TcpStream) -> Option<Self> {
        let challenge = handshake::nonce().ok()?;
        stream.set_nonblocking(true).ok()?;
        stream.write_all(&challenge).ok()?;
        Some(Self { stream, challenge, call: [0; CALL_BYTES], filled: 0 })
    }

    /// Whether all is said.
    fn read(&mut self) -> io::Result<bool> {
        while self.filled < CALL_BYTES {
            match self.stream.read(&mut self.call[self.filled..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.filled += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// Takes in those who have called, but not more than fit: they are heard before more come.
fn accept(listener: &TcpListener, pending: &mut Vec<Pending>) -> io::Result<()> {
    for _ in 0..MAX_PENDING {
        match listener.accept() {
            Ok((stream, _)) => {
                if pending.len() == MAX_PENDING {
                    pending.remove(0);
                }
                pending.extend(Pending::new(stream));
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => break,
                // One who called has gone again.
                io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                // A lack of descriptors, for one, would be met again at once, and at every look.
                _ => return Err(error),
            },
        }
    }
    Ok(())
}

/// Waits for a slice at most until someone calls or speaks.
fn wait(listener: &TcpListener, pending: &[Pending]) {
    let streams = pending.iter().map(|one| PollFd::new(&one.stream, PollFlags::IN));
    let mut events: Vec<_> =
        [PollFd::new(listener, PollFlags::IN)].into_iter().chain(streams).collect();
    let timeout = Timespec { tv_sec: 0, tv_nsec: SLICE.subsec_nanos().into() };
    // An interruption or a lack of memory is no more than an early look.
    let _ = poll(&mut events, Some(&timeout));
}
