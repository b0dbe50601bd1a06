//! Thousands of clients that send a byte a second, say nothing, or never read what they asked for, do
//! not delay the others.

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use oarlock_testkit::{Client, Server, ServerOptions, TinyModel, resident_bytes, wait_until};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use crate::disturbance::wait_for_rest;

/// Clients that only connect, that drip a head, and that drip a body.
const SILENT: usize = 600;
const DRIPPING_HEADS: usize = 600;
const DRIPPING_BODIES: usize = 600;
/// Clients that ask for a stream and never read it.
const NEVER_READING: usize = 200;
/// Of these, those whose answers are larger than every buffer on the way.
const LONG_ANSWERS: usize = 8;
const SLOW: usize = SILENT + DRIPPING_HEADS + DRIPPING_BODIES + NEVER_READING;
/// Those that stay until the end. (A few files more or less are open for other reasons.)
const STEADY: usize = SLOW - LONG_ANSWERS - 8;
/// Requests by which the others are measured.
const PROBES: usize = 60;
/// How often they are, with the slow clients there.
const ROUNDS: usize = 3;
/// Memory of the server for each slow client at most.
const BYTES_PER_CLIENT: u64 = 64 << 10;

/// How long single requests took, sorted.
struct Latencies(Vec<Duration>);

impl Latencies {
    /// Asks a few short things, one after the other.
    fn measure(client: Client) -> Self {
        let body = json!({"model": "tiny", "prompt": "hello", "max_tokens": 8, "ignore_eos": true});
        let mut taken: Vec<_> = (0..PROBES)
            .map(|_| {
                let begin = Instant::now();
                client.post("/v1/completions", &body).unwrap().ok_json();
                begin.elapsed()
            })
            .collect();
        taken.sort();
        Self(taken)
    }

    fn median(&self) -> Duration {
        self.0[self.0.len() / 2]
    }

    fn worst(&self) -> Duration {
        *self.0.last().unwrap()
    }
}

fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn post(body: &serde_json::Value) -> String {
    let body = body.to_string();
    format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The bytes with which each slow client begins.
fn beginnings() -> Vec<String> {
    let stream = json!({
        "model": "tiny", "prompt": "hi", "max_tokens": 4, "stream": true, "ignore_eos": true,
    });
    let mut long = stream.clone();
    long["max_tokens"] = json!(1000);
    long["logprobs"] = json!(20);
    let body = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{";
    [
        vec![String::new(); SILENT],
        vec!["POST /v1/comp".to_owned(); DRIPPING_HEADS],
        vec![body.to_owned(); DRIPPING_BODIES],
        vec![post(&stream); NEVER_READING - LONG_ANSWERS],
        vec![post(&long); LONG_ANSWERS],
    ]
    .concat()
}

/// Sends one byte a second on each connection that drips, until told to stop.
fn drip(connections: &[TcpStream], stop: &AtomicBool) {
    let dripping = &connections[SILENT..SILENT + DRIPPING_HEADS + DRIPPING_BODIES];
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        if Instant::now() >= next {
            next += Duration::from_secs(1);
            for mut connection in dripping {
                connection.write_all(b" ").unwrap();
            }
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

#[test]
fn two_thousand_slow_clients_delay_nobody() {
    let _turn = crate::alone();
    let limit = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit }).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("tiny.gguf");
    TinyModel::default().write(&model).unwrap();
    let options = ServerOptions::new(&model).args(["--served-name", "tiny", "--threads", "1"]);
    // Those that drip are to stay.
    let timeouts = ["--write-timeout", "2", "--header-timeout", "600", "--body-timeout", "600"];
    let server = Server::start(&options.args(timeouts)).unwrap();
    let client = server.client();
    Latencies::measure(client);
    let before = Latencies::measure(client);
    let (memory, files) = (resident_bytes(server.pid()).unwrap(), open_files(server.pid()));

    let connections: Vec<TcpStream> =
        beginnings().iter().map(|begin| client.open(begin.as_bytes()).unwrap()).collect();
    assert_eq!(connections.len(), SLOW);
    wait_until("all are accepted", Duration::from_secs(10), || {
        open_files(server.pid()) >= files + STEADY
    });
    // What they asked for is computed, or given up, although nobody reads it.
    wait_for_rest(&server);
    let cut_off = Duration::from_secs(10);
    wait_until("those with the long answers are cut off", cut_off, || {
        open_files(server.pid()) <= files + SLOW - LONG_ANSWERS + 2
    });
    let stop = AtomicBool::new(false);
    let during = std::thread::scope(|scope| {
        let dripping = scope.spawn(|| drip(&connections, &stop));
        let during = [(); ROUNDS].map(|()| Latencies::measure(client));
        stop.store(true, Ordering::Relaxed);
        dripping.join().unwrap();
        during
    });
    let grown = resident_bytes(server.pid()).unwrap().saturating_sub(memory);
    let open = open_files(server.pid());
    assert!(open >= files + STEADY, "{open} files: the slow clients were not there");
    assert!(grown < BYTES_PER_CLIENT * SLOW as u64, "{grown} bytes");
    drop(connections);
    wait_until("their connections are gone", Duration::from_secs(10), || {
        open_files(server.pid()) <= files + 2
    });
    // Other tests run beside this one: what counts is the worse of the two times without them.
    let after = Latencies::measure(client);
    eprintln!("{} KiB for each slow client", (grown >> 10) / SLOW as u64);
    let median = 4 * before.median().max(after.median()) + Duration::from_millis(50);
    let worst = 10 * before.worst().max(after.worst()) + Duration::from_millis(250);
    for round in &during {
        eprintln!(
            "median {:?} of {median:?}, worst {:?} of {worst:?}",
            round.median(),
            round.worst()
        );
    }
    assert!(during.iter().all(|round| round.median() < median), "slow clients delay the others");
    // A busy machine has a bad moment in one of them; who lets slow clients hold up others has more.
    let undelayed = during.iter().filter(|round| round.worst() < worst).count();
    assert!(2 * undelayed > ROUNDS, "slow clients delay some of the others");
}
