//! Ranks as real processes: the test's own binary again, told what to do over its standard input.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use std::{env, io, thread};

use oarlock_collective::{Segment, SharedMemory, Tcp, TcpRendezvous, Transport};
use oarlock_types::Shard;
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

use super::{PATIENCE, SECRET};

const VARIABLE: &str = "OARLOCK_TEST_RANK";
const EPOCH: u64 = 3;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Over {
    SharedMemory,
    Tcp,
}

/// A rank's process, which is killed with its handle.
pub(crate) struct Rank {
    child: Child,
    lines: mpsc::Receiver<String>,
    /// Operations that it was told to do.
    operations: u64,
}

impl Rank {
    fn spawn(rank: u32, ranks: u32, deadline: Duration, test: &str) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(VARIABLE, format!("{rank} {ranks} {}", deadline.as_millis()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // The rest is the test harness's.
                if let Some((_, line)) = line.split_once("> ") {
                    let _ = sender.send(line.to_owned());
                }
            }
        });
        Self { child, lines, operations: 0 }
    }

    /// Makes the rank do an operation.
    pub(crate) fn tell(&mut self, operation: &str) {
        self.operations += 1;
        self.write(operation);
    }

    fn write(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    pub(crate) fn hear(&mut self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("the rank says something")
    }

    /// The next word that says how an operation ended.
    pub(crate) fn outcome(&mut self) -> String {
        loop {
            let line = self.hear();
            if !line.starts_with("waits") {
                return line;
            }
        }
    }

    /// Returns when the rank is inside of the operation that it was last told to do, and waits there.
    pub(crate) fn await_waiting(&mut self) {
        let expected = format!("waits in {}", self.operations);
        loop {
            let line = self.hear();
            // What it says of an earlier operation may come late.
            assert!(line.starts_with("waits"), "{line}");
            if line == expected {
                return;
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A group of processes that have joined. `test` is the name of the test that calls [`serve`].
pub(crate) fn group(over: Over, ranks: u32, deadline: Duration, test: &str) -> Vec<Rank> {
    let spawn = |rank| Rank::spawn(rank, ranks, deadline, test);
    let mut group: Vec<_> = (0..ranks).map(spawn).collect();
    // Some start later than others, which is not what deadlines under test are for.
    for rank in &mut group {
        assert_eq!(rank.hear(), "ready");
    }
    let segment = Segment::create(Path::new("/dev/shm"), ranks, EPOCH).unwrap();
    match over {
        Over::SharedMemory => {
            let command = format!("shared-memory {}", segment.path().display());
            for rank in &mut group {
                rank.write(&command);
            }
        }
        Over::Tcp => {
            for rank in &mut group {
                rank.write("tcp");
            }
            let addresses: Vec<_> = group.iter_mut().map(Rank::hear).collect();
            for rank in &mut group {
                rank.write(&addresses.join(" "));
            }
        }
    }
    for rank in &mut group {
        assert_eq!(rank.hear(), "joined");
    }
    group
}

/// All `ranks` of the group do `command`, and return how it ended and after how long.
pub(crate) fn all(group: &mut [Rank], ranks: &[usize], command: &str) -> Vec<(String, Duration)> {
    let begun = Instant::now();
    for rank in ranks {
        group[*rank].tell(command);
    }
    ranks.iter().map(|rank| (group[*rank].outcome(), begun.elapsed())).collect()
}

/// As a rank's process: does what it is told until its input ends. Elsewhere: says why it does nothing.
pub(crate) fn serve() {
    let Ok(arguments) = env::var(VARIABLE) else {
        eprintln!("nothing to test by itself: other tests run this one as their ranks");
        return;
    };
    let numbers: Vec<u32> = arguments.split(' ').map(|word| word.parse().unwrap()).collect();
    let shard = Shard { rank: numbers[0], ranks: numbers[1] };
    let deadline = Duration::from_millis(numbers[2].into());
    // Even if the test's runner is killed: some ranks hang on purpose.
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    say("ready");
    let mut input = io::stdin().lines().map(Result::unwrap);
    let transport = connect(&mut input, shard, deadline);
    say("joined");
    let waiting = transport.waiting();
    let mut transport = Some(transport);
    let operations = Arc::new(AtomicU64::new(0));
    let current = Arc::clone(&operations);
    thread::spawn(move || {
        let mut told = 0;
        loop {
            // Read before: a wait belongs to this operation or to a later one, which is told next time.
            let operation = current.load(Ordering::SeqCst);
            if operation != told && waiting().is_some() {
                say(&format!("waits in {operation}"));
                told = operation;
            }
            thread::sleep(Duration::from_millis(1));
        }
    });
    for line in input {
        operations.fetch_add(1, Ordering::SeqCst);
        if line == "leave" {
            drop(transport.take());
            say("left");
        } else {
            let outcome = perform(transport.as_mut().unwrap(), &line);
            say(&outcome);
        }
    }
}

fn connect(
    input: &mut impl Iterator<Item = String>,
    shard: Shard,
    deadline: Duration,
) -> Box<dyn Transport> {
    let line = input.next().unwrap();
    if let Some(path) = line.strip_prefix("shared-memory ") {
        let joined = SharedMemory::join(Path::new(path), shard, EPOCH, PATIENCE, deadline);
        return Box::new(joined.unwrap());
    }
    let rendezvous = TcpRendezvous::bind(Ipv4Addr::LOCALHOST.into()).unwrap();
    say(&rendezvous.addresses()[0]);
    let peers = input.next().unwrap();
    let peers: Vec<_> = peers.split(' ').map(|address| vec![address.to_owned()]).collect();
    let connected = Tcp::connect(rendezvous, shard, &peers, SECRET, EPOCH, PATIENCE, deadline);
    Box::new(connected.unwrap())
}

fn perform(transport: &mut Box<dyn Transport>, command: &str) -> String {
    let rank = transport.shard().rank;
    let (command, argument) = command.split_once(' ').unwrap_or((command, ""));
    let outcome = match command {
        "sum" => {
            let mut values = vec![(1 << rank) as f32; 100];
            transport.all_reduce(&mut values).map(|()| format!("sum {}", values[99]))
        }
        "broadcast" => transport.broadcast(&mut [0; 8]).map(|()| "broadcast".to_owned()),
        // Alive, but neither working nor waiting.
        "hang" => loop {
            thread::park();
        },
        // Slow, but working for so many milliseconds.
        "work" => {
            let lasting = Duration::from_millis(argument.parse().unwrap());
            let begun = Instant::now();
            while begun.elapsed() < lasting {
                transport.progress().advance();
                thread::sleep(Duration::from_millis(5));
            }
            Ok("worked".to_owned())
        }
        _ => panic!("no command: {command}"),
    };
    outcome.unwrap_or_else(|error| format!("{error}"))
}

/// A line that the parent tells from the harness's own.
fn say(line: &str) {
    let mut output = io::stdout().lock();
    writeln!(output, "> {line}").unwrap();
    output.flush().unwrap();
}
