//! Ranks that die or stop: the group is replaced, and no stream loses, repeats or changes a token.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use oarlock_testkit::{PATIENCE, Server, ServerOptions, Signal, fixture, send_signal, wait_until};
use serde_json::{Value, json};

use crate::{alone, turn};

const STREAMS: u64 = 16;
/// Seconds of patience: a machine may be so busy that a good rank is silent for one.
const STALL: u64 = 3;

/// Long enough that all are in their middle for a while.
fn request(index: u64) -> Value {
    let prompt: Vec<u64> = (0..20 + index * 5).map(|at| 3 + (at * 31 + index * 17) % 300).collect();
    let mut request = json!({
        "model": "m", "prompt": prompt, "max_tokens": 150, "temperature": 0, "logprobs": 2,
        "return_token_ids": true, "ignore_eos": true,
    });
    if !index.is_multiple_of(2) {
        request["temperature"] = json!(1);
        request["seed"] = json!(index);
    }
    request
}

/// Token ids, and logprobs written so that they tell every bit.
fn whole(server: &Server, request: &Value) -> (Vec<Value>, Vec<Value>) {
    let body = server.post("/v1/completions", request).ok_json();
    let choice = &body["choices"][0];
    let list = |value: &Value| value.as_array().unwrap().clone();
    (list(&choice["token_ids"]), list(&choice["logprobs"]["token_logprobs"]))
}

fn streamed(server: &Server, request: &Value) -> (Vec<Value>, Vec<Value>) {
    let mut request = request.clone();
    request["stream"] = json!(true);
    let (mut tokens, mut logprobs) = (Vec::new(), Vec::new());
    for event in server.stream("/v1/completions", &request).collect_json() {
        assert!(event.get("error").is_none(), "{event}");
        let choice = &event["choices"][0];
        tokens.extend(choice["token_ids"].as_array().cloned().unwrap_or_default());
        let of_event = choice["logprobs"]["token_logprobs"].as_array();
        logprobs.extend(of_event.cloned().unwrap_or_default());
    }
    (tokens, logprobs)
}

fn serve(arguments: &[&str]) -> Server {
    let stall = STALL.to_string();
    let common = ["--served-name", "m", "--stall-seconds", &stall];
    let options = ServerOptions::new(fixture("tiny/llama")).args(common);
    Server::start(&options.args(arguments.iter().copied())).unwrap()
}

fn restarts(server: &Server) -> f64 {
    server.metric("oarlock_worker_restarts_total")
}

/// Each rank is killed, then each is stopped, under sixteen streams.
fn disturb(ranks: usize, collective: &str) {
    let _turn = alone();
    let degree = ranks.to_string();
    let server = serve(&["--tensor-parallel", &degree, "--collective", collective]);
    let requests: Vec<_> = (0..STREAMS).map(request).collect();
    let undisturbed: Vec<_> = requests.iter().map(|request| whole(&server, request)).collect();
    let faults = [Signal::KILL, Signal::STOP].into_iter();
    for (number, (signal, rank)) in
        faults.flat_map(|signal| (0..ranks).map(move |rank| (signal, rank))).enumerate()
    {
        let workers = server.worker_pids();
        let log_before = server.log().len();
        let restarts_before = restarts(&server);
        let generated = server.metric("oarlock_generation_tokens_total");
        let begin = Instant::now();
        let answers: Vec<_> = thread::scope(|scope| {
            let server = &server;
            let streams: Vec<_> = requests
                .iter()
                .map(|request| scope.spawn(move || streamed(server, request)))
                .collect();
            wait_until("streams are in their middle", PATIENCE, || {
                server.metric("oarlock_generation_tokens_total") > generated + 40.0
            });
            send_signal(workers[rank], signal);
            // One that ends is found at once, one that stands still in about its patience.
            let soon = Duration::from_secs(if signal == Signal::STOP { STALL + 3 } else { 4 });
            wait_until("the loss is found", soon, || restarts(server) > restarts_before);
            streams.into_iter().map(|stream| stream.join().expect("a whole stream")).collect()
        });
        let what = format!("{signal:?} of rank {rank} of {ranks} over {collective}");
        eprintln!("{what}: {:.1} s", begin.elapsed().as_secs_f32());
        assert!(answers == undisturbed, "{what} changed an answer");
        assert_eq!(restarts(&server), number as f64 + 1.0, "{what}: one restart");
        // The group may have gone when all was said.
        wait_until("another group is there", PATIENCE, || {
            server.log()[log_before..].contains("workers lost")
                && server.worker_pids().len() == ranks
        });
        let log = server.log().split_off(log_before);
        let lost = log.lines().find(|line| line.contains("workers lost"));
        let name = format!("rank {rank}");
        assert!(lost.is_some_and(|line| line.contains(&name)), "{what}: the log names it:\n{log}");
        let lives = |pid: &u32| Path::new(&format!("/proc/{pid}")).exists();
        assert!(!workers.iter().any(lives), "{what}: no rank outlives its group");
    }
    // Nothing runs: a rank that is stopped now is found, too, and the next request finds a good group.
    let (before, last) = (restarts(&server), server.worker_pids()[ranks - 1]);
    send_signal(last, Signal::STOP);
    wait_until("the idle group is replaced", Duration::from_secs(20), || {
        restarts(&server) > before && server.get("/ready").status == 200
    });
    assert_eq!(whole(&server, &requests[3]), undisturbed[3]);
}

#[test]
fn streams_survive_the_loss_of_either_rank() {
    disturb(2, "shared-memory");
}

#[test]
fn streams_survive_the_loss_of_any_of_four_ranks_over_tcp() {
    disturb(4, "tcp");
}

/// A server is not ready while a group is replaced.
#[test]
fn readiness_says_that_a_rank_is_stuck() {
    let _turn = alone();
    let folder = tempfile::tempdir().unwrap();
    // A start that takes long enough to be seen.
    let slow = folder.path().join("slow");
    std::fs::write(&slow, "sleep 2\nexec \"$@\"\n").unwrap();
    let launcher = format!("sh {}", slow.display());
    let server = serve(&["--tensor-parallel", "2", "--worker-launcher", &launcher]);
    send_signal(server.worker_pids()[0], Signal::STOP);
    wait_until("it is not ready", Duration::from_secs(10), || server.get("/ready").status == 503);
    wait_until("it is ready again", Duration::from_secs(20), || server.get("/ready").status == 200);
    server.wait_for_log("rank 0 gave no sign of life");
}

/// A prompt that takes many times the patience is no stall, since it makes progress.
#[test]
fn a_long_prompt_on_a_slow_machine_is_no_stall() {
    let Some((_turn, model)) = turn() else { return };
    let slow = ["--instruction-set", "portable", "--stall-seconds", "1", "--step-tokens", "1024"];
    let ranks = ["--served-name", "demo", "--tensor-parallel", "2", "--threads", "2"];
    let server = Server::start(&ServerOptions::new(model).args(ranks).args(slow)).unwrap();
    // On a fast machine it takes more of a prompt.
    let seconds = [40, 160, 640].into_iter().map(|len| {
        let prompt: Vec<u64> = (0..len).map(|at| 1000 + at * 7).collect();
        let begin = Instant::now();
        let body = json!({"model": "demo", "prompt": prompt, "max_tokens": 1});
        server.post("/v1/completions", &body).ok_json();
        begin.elapsed().as_secs_f32()
    });
    let seconds = seconds.into_iter().find(|seconds| *seconds > 3.0);
    eprintln!("a step of {seconds:?} s");
    assert!(seconds.is_some(), "no prompt was slow enough to tell");
    assert_eq!(restarts(&server), 0.0, "{}", server.log());
}

/// What the model does not allow is refused with what it does.
#[test]
fn a_degree_that_cannot_be_is_refused_with_those_that_can() {
    let start = |model: &str, degree: &str| {
        let output = std::process::Command::new(oarlock_testkit::binary())
            .args(["serve", "--port", "0", "--device", "cpu", "--model", model])
            .args(["--tensor-parallel", degree])
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let tiny = fixture("tiny/llama");
    let message = start(tiny.to_str().unwrap(), "8");
    assert!(message.contains("--tensor-parallel 8") && message.contains("1, 2, 4"), "{message}");
    assert!(start(tiny.to_str().unwrap(), "3").contains("1, 2, 4 or 8"));
}

/// A rank that dies before it looks at a plan, in a sum that the other waits for, or after its result.
#[test]
fn streams_survive_a_death_at_any_moment() {
    let _turn = alone();
    let requests: Vec<_> = (0..6).map(request).collect();
    let undisturbed = serve(&["--tensor-parallel", "2"]);
    let expected: Vec<_> = requests.iter().map(|request| whole(&undisturbed, request)).collect();
    drop(undisturbed);
    for fault in
        ["0:20:before", "1:20:before", "0:20:inside", "1:20:inside", "0:20:after", "1:1:after"]
    {
        let options = ServerOptions::new(fixture("tiny/llama"))
            .args(["--served-name", "m", "--tensor-parallel", "2"])
            .env("OARLOCK_FAULT_STEP", fault);
        let server = Server::start(&options).unwrap();
        let answers: Vec<_> = thread::scope(|scope| {
            let server = &server;
            let asking = requests.iter().map(|one| scope.spawn(move || streamed(server, one)));
            let asking: Vec<_> = asking.collect();
            asking.into_iter().map(|one| one.join().expect("a whole stream")).collect()
        });
        assert!(answers == expected, "{fault} changed an answer");
        assert_eq!(restarts(&server), 1.0, "{fault}: {}", server.log());
    }
}

/// A request that ends its workers is found and fails alone.
#[test]
fn a_request_that_kills_its_workers_fails_alone() {
    fails_alone("310");
}

#[test]
fn a_request_that_kills_one_rank_fails_alone() {
    fails_alone("310@1");
}

fn fails_alone(fault: &str) {
    const FATAL: u64 = 310;
    let _turn = alone();
    let options = ServerOptions::new(fixture("tiny/llama"))
        .args(["--served-name", "m", "--tensor-parallel", "2"])
        .env("OARLOCK_FAULT_TOKEN", fault);
    let server = Server::start(&options).unwrap();
    // Nobody may sample the fatal token.
    let harmless = |index: u64| {
        let mut request = request(index);
        request["logit_bias"] = json!({ (FATAL.to_string()): -100 });
        request
    };
    let expected: Vec<_> = (0..8).map(|index| whole(&server, &harmless(index))).collect();
    let mut fatal = harmless(99);
    fatal["prompt"] = json!([5, 6, 7, FATAL, 8, 9]);
    thread::scope(|scope| {
        let server = &server;
        let asking: Vec<_> =
            (0..8).map(|index| scope.spawn(move || streamed(server, &harmless(index)))).collect();
        let failed = server.post("/v1/completions", &fatal);
        assert_eq!(failed.status, 500, "{}", failed.text());
        assert_eq!(failed.json()["error"]["code"], "request_kills_workers", "{}", failed.text());
        for (asking, expected) in asking.into_iter().zip(&expected) {
            assert_eq!(asking.join().expect("a whole stream"), *expected);
        }
    });
    let deaths = restarts(&server);
    assert!((2.0..=3.0).contains(&deaths), "{deaths} deaths");
}
