//! How long ranks of one host take to add: processes of their own, over shared memory and over TCP.
//!
//! `cargo bench -p oarlock-collective` or, for other groups, `... -- RANKS`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, io};

use anyhow::Context as _;
use oarlock_collective::{Segment, SharedMemory, Tcp, TcpRendezvous, Transport};
use oarlock_types::Shard;

const SIZES: [(&str, usize, usize); 5] = [
    ("4 KiB", 1 << 10, 20_000),
    ("16 KiB", 1 << 12, 10_000),
    ("64 KiB", 1 << 14, 5_000),
    ("256 KiB", 1 << 16, 2_000),
    ("2 MiB", 1 << 19, 300),
];
const DEADLINE: Duration = Duration::from_secs(10);
const SECRET: [u8; 16] = [7; 16];

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).filter(|word| word != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["rank", rank, ranks, transport] => {
            be_rank(Shard { rank: rank.parse()?, ranks: ranks.parse()? }, transport)
        }
        [] => measure(2),
        [ranks] => measure(ranks.parse().context("RANKS is 1, 2, 4 or 8")?),
        _ => anyhow::bail!("usage: all_reduce [RANKS]"),
    }
}

/// Starts the ranks of both groups; rank 0 prints.
fn measure(ranks: u32) -> anyhow::Result<()> {
    for transport in ["shared-memory", "tcp"] {
        let spawn = |rank: u32| {
            let words = ["rank".to_owned(), rank.to_string(), ranks.to_string(), transport.into()];
            Command::new(env::current_exe()?)
                .args(words)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
        };
        let mut children = (0..ranks).map(spawn).collect::<io::Result<Vec<Child>>>()?;
        let segment = Segment::create(Path::new("/dev/shm"), ranks, 1)?;
        let mut outputs = vec![];
        let mut words = vec![segment.path().display().to_string()];
        for child in &mut children {
            let mut output = BufReader::new(child.stdout.take().context("its output")?);
            let mut address = String::new();
            output.read_line(&mut address)?;
            words.push(address.trim().to_owned());
            outputs.push(output);
        }
        for child in &mut children {
            writeln!(child.stdin.as_mut().context("its input")?, "{}", words.join(" "))?;
        }
        let mut terminal = io::stdout();
        writeln!(terminal, "{ranks} ranks, {transport}")?;
        io::copy(&mut outputs[0], &mut terminal)?;
        for mut child in children {
            anyhow::ensure!(child.wait()?.success(), "a rank failed");
        }
    }
    Ok(())
}

fn be_rank(shard: Shard, transport: &str) -> anyhow::Result<()> {
    let rendezvous = TcpRendezvous::bind(Ipv4Addr::LOCALHOST.into())?;
    let mut output = io::stdout();
    writeln!(output, "{}", rendezvous.addresses()[0])?;
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let path = words.next().context("a path")?;
    let peers: Vec<_> = words.map(|address| vec![address.to_owned()]).collect();
    let mut transport: Box<dyn Transport> = if transport == "tcp" {
        Box::new(Tcp::connect(rendezvous, shard, &peers, SECRET, 1, DEADLINE, DEADLINE)?)
    } else {
        Box::new(SharedMemory::join(Path::new(path), shard, 1, DEADLINE, DEADLINE)?)
    };
    for (name, len, rounds) in SIZES {
        let mut values = vec![0.0; len];
        let mut times = vec![];
        for round in 0..rounds + rounds / 10 {
            // Back to back: a barrier in between would let one rank begin when its peers are done.
            let begun = Instant::now();
            transport.all_reduce(&mut values)?;
            if round >= rounds / 10 {
                times.push(begun.elapsed().as_secs_f64() * 1e6);
            }
        }
        times.sort_by(f64::total_cmp);
        if shard.rank == 0 {
            let (median, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
            writeln!(output, "  {name:>8}: median {median:8.1} us, p99 {p99:8.1} us")?;
        }
    }
    Ok(())
}
