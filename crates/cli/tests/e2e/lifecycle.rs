//! Death, memory, signals and start-up: tests that need a server of their own.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use oarlock_testkit::{
    PATIENCE, Server, ServerOptions, Signal, TinyModel, binary, resident_bytes, send_signal,
    wait_until,
};
use serde_json::{Value, json};

use crate::api::merge;
use crate::requests::{ask, sixteen};
use crate::turn;

/// Eight streaming requests long enough to be in the middle when the worker dies.
fn eight_streams() -> Vec<Value> {
    let mut requests: Vec<_> = sixteen().into_iter().step_by(2).collect();
    for (index, request) in requests.iter_mut().enumerate() {
        request["max_tokens"] = json!(40);
        request["ignore_eos"] = json!(true);
        if index % 2 == 1 {
            request["temperature"] = json!(0.8);
            request["seed"] = json!(index);
        }
    }
    requests
}

#[test]
fn streams_survive_the_death_of_the_worker() {
    let Some((_turn, model)) = turn() else { return };
    let server = Server::start(&ServerOptions::new(model).args(["--served-name", "demo"])).unwrap();
    let requests = eight_streams();
    let undisturbed: Vec<_> = requests.iter().map(|request| ask(&server, request)).collect();
    let victim = server.worker_pids()[0];
    let generated = server.metric("oarlock_generation_tokens_total");
    let survived: Vec<_> = std::thread::scope(|scope| {
        let server = &server;
        let streams: Vec<_> = requests
            .iter()
            .map(|request| scope.spawn(move || read_stream(server, request)))
            .collect();
        wait_until("all eight streams are in their middle", PATIENCE, || {
            server.metric("oarlock_generation_tokens_total") > generated + 80.0
        });
        send_signal(victim, Signal::KILL);
        streams.into_iter().map(|stream| stream.join().expect("a whole stream")).collect()
    });
    assert_eq!(survived, undisturbed);
    wait_until("another worker is ready", PATIENCE, || {
        server.metric("oarlock_worker_restarts_total") > 0.0 && server.get("/ready").status == 200
    });
    assert_eq!(server.metric("oarlock_worker_restarts_total"), 1.0);
    assert_ne!(server.worker_pids(), [victim]);
}

fn read_stream(server: &Server, request: &Value) -> crate::requests::Answer {
    let mut request = request.clone();
    request["stream"] = json!(true);
    merge(&server.stream("/v1/chat/completions", &request).collect_json())
}

#[test]
fn the_worker_stays_under_a_gibibyte_and_ends_with_its_engine() {
    let Some((_turn, model)) = turn() else { return };
    let options =
        ServerOptions::new(model).args(["--served-name", "demo", "--kv-cache-tokens", "4096"]);
    let mut server = Server::start(&options).unwrap();
    for request in &sixteen() {
        ask(&server, request);
    }
    let worker = server.worker_pids()[0];
    let resident = resident_bytes(worker).expect("the worker runs");
    eprintln!("resident memory of the worker: {} MiB", resident >> 20);
    assert!(resident < 1 << 30, "{resident} bytes");

    server.signal(Signal::KILL);
    server.wait_for_exit(Duration::from_secs(5)).expect("killed");
    let gone = || !fs::exists(format!("/proc/{worker}")).expect("procfs") || is_zombie(worker);
    wait_until("the worker ended with its engine", Duration::from_secs(5), gone);
}

/// A second start takes the weights' hash from the cache: one that is changed there is believed.
#[test]
fn hashes_of_weights_are_kept() {
    let Some((_turn, model)) = turn() else { return };
    let cache = tempfile::tempdir().unwrap();
    let info = fs::metadata(&model).unwrap();
    let size = info.len().to_string();
    // What was just fetched is too young for it.
    let changed = UNIX_EPOCH + Duration::from_secs(info.ctime().try_into().unwrap());
    let young = Duration::from_secs(65).saturating_sub(changed.elapsed().unwrap_or_default());
    thread::sleep(young);
    let options = ServerOptions::new(model)
        .args(["--served-name", "demo", "--kv-cache-tokens", "512", "--cache"])
        .args([cache.path().to_str().unwrap()]);
    let fingerprint = || {
        let request = json!({ "model": "demo", "prompt": "a", "max_tokens": 1 });
        let server = Server::start(&options).unwrap();
        let body = server.post("/v1/completions", &request).ok_json();
        body["system_fingerprint"].as_str().unwrap().to_owned()
    };
    let first = fingerprint();
    let entries = fs::read_dir(cache.path().join("hashes")).unwrap();
    let entries = entries.map(|entry| entry.unwrap().path());
    let line = |path: &Path| fs::read_to_string(path).unwrap();
    let entry = entries.into_iter().find(|path| line(path).starts_with(&size)).unwrap();
    let known = line(&entry);
    assert_eq!(fingerprint(), first);
    let (state, _) = known.rsplit_once(' ').unwrap();
    fs::write(&entry, format!("{state} {}\n", "0".repeat(64))).unwrap();
    assert_ne!(fingerprint(), first);
}

fn is_zombie(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

#[test]
fn sigterm_lets_running_requests_finish() {
    let Some((_turn, model)) = turn() else { return };
    let mut server =
        Server::start(&ServerOptions::new(model).args(["--served-name", "demo"])).unwrap();
    let request = &eight_streams()[0];
    let expected = ask(&server, request);
    let mut streamed = request.clone();
    streamed["stream"] = json!(true);
    let mut stream = server.stream("/v1/chat/completions", &streamed);
    let mut events = vec![stream.next_json().expect("a first event")];
    server.signal(Signal::TERM);
    events.extend(stream.collect_json());
    assert_eq!(merge(&events), expected);
    let status = server.wait_for_exit(Duration::from_secs(10)).expect("it ends once drained");
    assert!(status.success(), "{status}");
}

/// Runs `oarlock serve` with arguments that cannot work; returns what it says.
fn failed_start(arguments: &[&str]) -> String {
    let output = Command::new(binary()).arg("serve").args(arguments).output().unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    let errors: Vec<_> = text.lines().filter(|line| line.contains("error")).collect();
    assert_eq!(errors.len(), 1, "one clear message, not: {text}");
    assert!(!text.contains("panicked") && !text.contains("stack backtrace"), "{text}");
    errors[0].to_owned()
}

#[test]
fn a_start_that_cannot_work_says_why_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.gguf");
    fs::write(&broken, b"GGUF\x03\x00\x00\x00").unwrap();
    let broken = broken.to_str().unwrap();
    let message = failed_start(&["--port", "0", "--model", broken]);
    assert!(message.contains(broken) && message.contains("truncated"), "{message}");
    let message = failed_start(&["--port", "0", "--model", "/no/such/model.gguf"]);
    assert!(
        message.contains("/no/such/model.gguf") && message.contains("No such file"),
        "{message}"
    );
    let tiny = folder.path().join("tiny.gguf");
    TinyModel::default().write(&tiny).unwrap();
    let huge =
        ["--kv-cache-tokens", "4000000000", "--port", "0", "--model", tiny.to_str().unwrap()];
    let message = failed_start(&huge);
    assert!(message.contains("--kv-cache-tokens") && message.contains("MiB"), "{message}");
    let strange = folder.path().join("strange.gguf");
    TinyModel { pre_tokenizer: "strange", ..TinyModel::default() }.write(&strange).unwrap();
    let message = failed_start(&["--port", "0", "--model", strange.to_str().unwrap()]);
    assert!(message.contains("strange") && message.contains("qwen2"), "{message}");
    let message = failed_start(&["--model", broken, "--instruction-set", "sse1"]);
    assert!(message.contains("--instruction-set"), "{message}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let message = failed_start(&["--model", broken, "--port", &port]);
    assert!(message.contains("--port") && message.contains(&port), "{message}");
}
