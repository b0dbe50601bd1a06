//! The numbers contract, cell by cell: a request gives the same token ids and the same bits of logprobs
//! alone, in company, in chunks, after preemption, from a warm cache, with one plan in flight or two, on
//! any number of ranks and threads, after a rank was killed, and from another run of the server.
//!
//! A cell that fails prints the first operation that differs (`oarlock debug compare`).

mod stream;

use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Instant;

use oarlock_testkit::{PATIENCE, Server, ServerOptions, binary, fixture, wait_until};
use serde_json::{Value, json};

use crate::disturbance::{ON_THEIR_WAY, PATIENT, Stopped, in_its_middle, post_in_company};
use crate::{alone, turn};
use stream::Stream;

/// A model, and what its requests look like.
struct Subject<'a> {
    name: &'a str,
    model: &'a Path,
    /// Tokens of the longest prompt; the others have 5 and 300.
    longest: usize,
    vocabulary: u64,
    max_tokens: u32,
    /// Arguments of every cell.
    arguments: &'a [&'a str],
    /// Tokens of a cache that the longest prompt and its answer just fit into; whole blocks.
    small_cache: usize,
}

/// How a cell sends the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// One after the other.
    Alone,
    /// A second time, so that prompts come from the cache.
    Warm,
    /// All six at once with 26 others, which are there before the first step.
    Crowd,
    /// Each loses its blocks twice to a request of a higher class.
    Preempted,
    /// A rank is killed in the middle of each; the number is added to the rank.
    Killed,
}

/// Arguments of a server, and how it is asked, in order.
type Cell = (&'static str, &'static [&'static str], &'static [How]);

const WHOLE: &str = "--step-tokens=1024";

/// What every model must stand.
const CELLS: [Cell; 7] = [
    ("another run, in company", &[WHOLE], &[How::Crowd]),
    (SMALL_CHUNKS, &["--chunk-tokens=7", "--max-plans-in-flight=1", "--threads=1"], &[How::Alone]),
    ("chunks of 64", &["--chunk-tokens=64"], &[How::Alone]),
    (ONE_KILLED, &[WHOLE], &[How::Killed]),
    ("two ranks", &["--tensor-parallel=2"], &[How::Crowd, How::Warm, How::Alone, How::Killed]),
    (
        "two ranks of two threads, one plan in flight",
        &["--tensor-parallel=2", "--threads=4", "--max-plans-in-flight=1"],
        &[How::Crowd],
    ),
    // The demo model's ranks speak TCP between network namespaces (`netns.rs`).
    (TCP, &["--tensor-parallel=2", "--collective=tcp", "--chunk-tokens=64"], &[How::Alone]),
];

const TCP: &str = "two ranks over TCP, chunks of 64";
const SMALL_CHUNKS: &str = "chunks of 7, one plan in flight, one thread";
const ONE_KILLED: &str = "a rank is killed";

/// Cells of models that can be cut into four.
const FOUR: [Cell; 2] = [
    ("four ranks", &["--tensor-parallel=4"], &[How::Crowd, How::Alone, How::Killed]),
    (
        "four ranks over TCP, chunks of 7",
        &["--tensor-parallel=4", "--collective=tcp", "--chunk-tokens=7"],
        &[How::Alone],
    ),
];

/// What must not depend on anything but the request.
#[derive(Clone, Debug, PartialEq)]
struct Answer {
    token_ids: Value,
    /// Written so that the decimal tells every bit.
    logprobs: Value,
    finish_reason: Value,
}

impl Answer {
    fn of(choice: &Value) -> Self {
        let [token_ids, logprobs, finish_reason] =
            ["token_ids", "logprobs", "finish_reason"].map(|name| choice[name].clone());
        Self { token_ids, logprobs, finish_reason }
    }
}

impl Subject<'_> {
    fn prompt(&self, len: usize, salt: u64) -> Vec<u64> {
        let mix =
            |at: usize| (at as u64 + 1 + salt * 7919).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
        (0..len).map(|at| 3 + mix(at) % (self.vocabulary - 3)).collect()
    }

    /// Prompts of three lengths, greedy and drawn.
    fn requests(&self) -> Vec<Value> {
        let mut all = Vec::new();
        for (salt, len) in [5, 300, self.longest].into_iter().enumerate() {
            all.push(request_of(&self.prompt(len, salt as u64), self.max_tokens));
            let mut drawn = request_of(&self.prompt(len, 10 + salt as u64), self.max_tokens);
            drawn["temperature"] = json!(1);
            drawn["top_p"] = json!(0.9);
            drawn["seed"] = json!(100 + salt);
            all.push(drawn);
        }
        all
    }

    fn is_tiny(&self) -> bool {
        self.vocabulary < 1000
    }

    fn serve(&self, arguments: &[&str]) -> Server {
        let has_threads = arguments.iter().any(|word| word.starts_with("--threads"));
        let threads: &[&str] = if has_threads { &[] } else { &["--threads=2"] };
        let parallel = arguments.iter().any(|word| word.starts_with("--tensor-parallel=4"));
        let threads = if parallel { &["--threads=4"] } else { threads };
        let words = [&["--served-name=m", PATIENT], self.arguments, threads, arguments].concat();
        Server::start(&ServerOptions::new(self.model).args(words)).unwrap()
    }

    /// Checks all cells against a plain server.
    fn check(&self, cells: &[Cell]) {
        let _turn = alone();
        let server = self.serve(&[WHOLE]);
        let expected: Vec<_> = self.ask(&server, How::Alone);
        self.compare("warm", &[WHOLE], How::Warm, &expected, &self.ask(&server, How::Warm));
        drop(server);
        let small_cache = format!("--kv-cache-tokens={}", self.small_cache);
        let preempted: [Cell; 2] = [
            ("preempted twice", &[], &[How::Preempted]),
            ("two ranks, preempted twice", &["--tensor-parallel=2"], &[How::Preempted]),
        ];
        // Twice over two ranks is for the models that have the time.
        let preempted = if self.is_tiny() { &preempted[..] } else { &preempted[..1] };
        for (name, arguments, hows) in cells.iter().chain(preempted) {
            let small = [&[WHOLE, &small_cache], *arguments].concat();
            let arguments = if hows == &[How::Preempted] { &small[..] } else { arguments };
            let server = self.serve(arguments);
            for how in *hows {
                let begin = Instant::now();
                let found = self.ask(&server, *how);
                eprintln!("{:.1} s", begin.elapsed().as_secs_f32());
                let expected = &expected[self.asked(*how)];
                self.compare(name, arguments, *how, expected, &found);
            }
        }
    }

    fn compare(
        &self,
        cell: &str,
        arguments: &[&str],
        how: How,
        expected: &[Answer],
        found: &[Answer],
    ) {
        let differs = expected.iter().zip(found).position(|(a, b)| a != b);
        eprintln!("{}: {cell}, {how:?}: {} answers", self.name, found.len());
        assert_eq!(expected.len(), found.len());
        if let Some(index) = differs {
            let (expected, found) = (&expected[index], &found[index]);
            let difference = self.first_difference(arguments, how);
            panic!(
                "{}: {cell}, {how:?}: request {index} differs; a run with --trace says: {difference}\n\
                 expected {expected:?}\nfound    {found:?}",
                self.name
            );
        }
    }

    /// Runs the plain server and the cell once more with checksums, and compares those.
    fn first_difference(&self, arguments: &[&str], how: How) -> String {
        let folder = tempfile::tempdir().unwrap();
        let run = |name: &str, arguments: &[&str], how| {
            let path = folder.path().join(name);
            let trace = format!("--trace={}", path.display());
            let server = self.serve(&[arguments, &[&trace]].concat());
            self.ask(&server, how);
            path
        };
        let plain = run("plain", &[WHOLE], How::Alone);
        let cell = run("cell", arguments, if how == How::Warm { How::Alone } else { how });
        let output = Command::new(binary()).args(["debug", "compare"]).args([plain, cell]).output();
        String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
    }

    /// Which requests are asked so: each preemption computes a long prompt twice more, which a model that is
    /// not tiny takes its time for.
    fn asked(&self, how: How) -> Range<usize> {
        if how == How::Preempted && !self.is_tiny() { 2..4 } else { 0..6 }
    }

    fn ask(&self, server: &Server, how: How) -> Vec<Answer> {
        let requests = self.requests()[self.asked(how)].to_vec();
        let post = |request: &Value| server.post("/v1/completions", request).ok_json();
        match how {
            How::Alone => requests.iter().map(|r| Answer::of(&post(r)["choices"][0])).collect(),
            How::Warm => {
                let warm = |request: &Value| {
                    let body = post(request);
                    let cached = &body["usage"]["prompt_tokens_details"]["cached_tokens"];
                    let is_long = request["prompt"].as_array().unwrap().len() > 16;
                    assert_eq!(cached.as_u64().unwrap() > 0, is_long, "{}", body["usage"]);
                    Answer::of(&body["choices"][0])
                };
                requests.iter().map(warm).collect()
            }
            How::Crowd => self.crowd(server, &requests),
            How::Preempted => requests.iter().map(|r| self.preempted(server, r)).collect(),
            How::Killed => {
                let killed = requests.iter().enumerate();
                killed.map(|(index, request)| self::killed(server, request, index)).collect()
            }
        }
    }

    /// All requests and others at once.
    fn crowd(&self, server: &Server, requests: &[Value]) -> Vec<Answer> {
        let other = |other: u64| {
            let prompt = self.prompt(3 + other as usize * 7 % 20, 1000 + other);
            request_of(&prompt, self.max_tokens)
        };
        let others: Vec<Value> = (0..26).map(other).collect();
        let bodies = post_in_company(server, requests, &others);
        bodies.iter().map(|body| Answer::of(&body["choices"][0])).collect()
    }

    /// Twice takes all blocks away from a request that runs.
    fn preempted(&self, server: &Server, request: &Value) -> Answer {
        let metric = |name| server.metric(&format!("oarlock_{name}_total"));
        in_its_middle(|| {
            let before = ["num_preemptions", "generation_tokens"].map(metric);
            let mut stream = Stream::start(server, request);
            stream.next();
            let mut is_late = false;
            for round in 0..2 {
                // The last round's other request gave one token.
                let tokens = self.intrude(server, round, before[1] + f64::from(round));
                is_late |= tokens + ON_THEIR_WAY >= self.max_tokens as usize;
                // It begins again, since there is nothing else to do.
                stream.read(tokens + ON_THEIR_WAY);
            }
            let answer = stream.finish();
            let preemptions = metric("num_preemptions") - before[0];
            if preemptions >= 2.0 {
                return Ok(answer);
            }
            assert!(is_late, "{preemptions} preemptions of a request in its middle");
            Err(format!("{preemptions} preemptions"))
        })
    }

    /// Has another request take all blocks from the one that runs, and gives how many tokens that had given, of
    /// all which are counted after `before`.
    fn intrude(&self, server: &Server, round: u32, before: f64) -> usize {
        let tokens = || server.metric("oarlock_generation_tokens_total") - before;
        // While the workers stand still the answer cannot end before the other request is there.
        let stopped = Stopped::all(server);
        let prompt = self.prompt(self.small_cache - 15, 2000 + u64::from(round));
        let mut intruder = request_of(&prompt, 1);
        intruder["priority"] = json!(-4);
        thread::scope(|scope| {
            let intruding = scope.spawn(|| server.post("/v1/completions", &intruder).ok_json());
            wait_until("the intruder waits", PATIENCE, || {
                server.metric("oarlock_num_requests_waiting") > 0.0
                    || tokens() >= f64::from(self.max_tokens)
            });
            let so_far = tokens() as usize;
            drop(stopped);
            intruding.join().unwrap();
            so_far
        })
    }
}

fn request_of(prompt: &[u64], max_tokens: u32) -> Value {
    json!({
        "model": "m", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0,
        "logprobs": 5, "return_token_ids": true, "ignore_eos": true, "priority": 4,
    })
}

/// Kills a rank in the middle of a request.
fn killed(server: &Server, request: &Value, index: usize) -> Answer {
    let restarts = || server.metric("oarlock_worker_restarts_total");
    let generated = || server.metric("oarlock_generation_tokens_total");
    in_its_middle(|| {
        let (restarts_before, generated_before) = (restarts(), generated());
        let mut stream = Stream::start(server, request);
        stream.next();
        let stopped = Stopped::all(server);
        let given = (generated() - generated_before) as u64;
        if given + ON_THEIR_WAY as u64 >= request["max_tokens"].as_u64().unwrap() {
            return Err(format!("{given} tokens were given"));
        }
        stopped.kill(index);
        let answer = stream.finish();
        assert_eq!(restarts() - restarts_before, 1.0, "one death is one restart");
        Ok(answer)
    })
}

fn tiny(name: &str, arguments: &[&str]) {
    let model = fixture(&format!("tiny/{name}"));
    let subject = Subject {
        name,
        model: &model,
        longest: 450,
        vocabulary: 320,
        max_tokens: 40,
        arguments,
        small_cache: 496,
    };
    subject.check(&[&CELLS[..], &FOUR].concat());
}

#[test]
fn the_tiny_llama() {
    tiny("llama", &[]);
}

#[test]
fn the_tiny_llama_in_float32() {
    tiny("llama", &["--dtype=float32"]);
}

#[test]
fn the_tiny_qwen2() {
    tiny("qwen2", &["--dtype=bfloat16"]);
}

#[test]
fn the_tiny_qwen3_with_experts() {
    tiny("qwen3-moe", &[]);
}

#[test]
fn the_tiny_llama_with_one_key_head() {
    tiny("llama-tied-mqa", &[]);
}

#[test]
fn the_demo_model() {
    let Some((turn, model)) = turn() else { return };
    drop(turn);
    let subject = Subject {
        name: "demo",
        model: &model,
        longest: 700,
        vocabulary: 150_000,
        max_tokens: 12,
        arguments: &[],
        small_cache: 720,
    };
    // What tiny models stand, and costs minutes here.
    let left_out = [TCP, SMALL_CHUNKS, ONE_KILLED];
    let cells: Vec<_> = CELLS.into_iter().filter(|(name, ..)| !left_out.contains(name)).collect();
    subject.check(&cells);
}

/// The tool that a failing cell calls finds a difference where there is one.
#[test]
fn traces_tell_where_two_runs_differ() {
    let folder = tempfile::tempdir().unwrap();
    let model = fixture("tiny/llama");
    let trace = |name: &str, arguments: &[&str]| {
        let keep = folder.path().join(name);
        let output = Command::new(binary())
            .args([
                "debug",
                "trace",
                "--device",
                "cpu",
                "--tokens",
                "5,6,7,8,9,10,11",
                "--max-tokens",
                "3",
                "--model",
            ])
            .args([model.as_os_str(), "--keep".as_ref(), keep.as_os_str()])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.lines().count() > 100, "{text}");
        keep
    };
    let compare = |a: &Path, b: &Path| {
        let output =
            Command::new(binary()).args(["debug", "compare"]).args([a, b]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let one = trace("one", &[]);
    let two = trace("two", &["--tensor-parallel", "2", "--chunk-tokens", "3"]);
    let (code, text) = compare(&one, &two);
    assert!(code == Some(0) && text.contains("agree"), "{text}");
    let exact = trace("exact", &["--dtype", "float32"]);
    let (code, text) = compare(&one, &exact);
    // Embedding and norm are the same; the first linear layer is not.
    assert!(code == Some(1) && text.contains("position 0, layer 0, qkv"), "{text}");
}
