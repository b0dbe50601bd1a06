//! A storm on the tiny model: many requests of all kinds, a third of them dropped, a cache so small
//! that preemption happens all the time, and the worker killed again and again. Every answer that
//! finishes is the one that the same request gets alone.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use oarlock_testkit::{Server, ServerOptions, Signal, TinyModel, send_signal, wait_until};
use serde_json::{Value, json};

const REQUESTS: usize = 150;
const CLIENTS: usize = 12;

/// Request number `index`: length, sampling and scoring all differ.
fn request(index: usize) -> Value {
    let text = "round and round the little wheel goes ".repeat(1 + index % 5);
    let mut request = json!({
        "model": "tiny", "prompt": &text[..10 + index * 7 % (text.len() - 10)],
        "max_tokens": 1 + index * 13 % 60, "seed": index, "temperature": if index.is_multiple_of(3) { 0.0 } else { 1.0 },
        "top_p": 0.9, "return_token_ids": true, "ignore_eos": index.is_multiple_of(2),
    });
    if index.is_multiple_of(4) {
        request["logprobs"] = json!(3);
    }
    if index.is_multiple_of(8) {
        request["echo"] = json!(true);
    }
    request
}

/// The part of an answer that the request decides.
fn choice(body: &Value) -> Value {
    let mut choice = body["choices"][0].clone();
    choice["usage"] = body["usage"]["completion_tokens"].clone();
    choice
}

#[test]
fn a_storm_changes_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("tiny.gguf");
    TinyModel::default().write(&model).unwrap();
    let options = ServerOptions::new(&model).args(["--served-name", "tiny", "--threads", "1"]);
    let calm = Server::start(&options).unwrap();
    let expected: Vec<_> = (0..REQUESTS)
        .map(|index| choice(&calm.post("/v1/completions", &request(index)).ok_json()))
        .collect();
    drop(calm);

    let tight = ["--kv-cache-tokens", "320", "--step-tokens", "48", "--max-seqs", "8"];
    let server = Server::start(&options.args(tight)).unwrap();
    let next = AtomicUsize::new(0);
    let finished = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while let index = next.fetch_add(1, Ordering::Relaxed)
                    && index < REQUESTS
                {
                    if index % 3 == 1 {
                        drop_after(&server, index);
                    } else {
                        let body = server.post("/v1/completions", &request(index)).ok_json();
                        assert_eq!(choice(&body), expected[index], "{}", request(index));
                        finished.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        for deaths in 1..=3 {
            let enough = REQUESTS / 6 * deaths;
            wait_until("some requests are done", Duration::from_mins(1), || {
                finished.load(Ordering::Relaxed) >= enough && server.worker_pids().len() == 1
            });
            send_signal(server.worker_pids()[0], Signal::KILL);
        }
    });
    assert_eq!(finished.load(Ordering::Relaxed), REQUESTS - REQUESTS / 3);
    assert_eq!(server.metric("oarlock_worker_restarts_total"), 3.0);
    assert!(server.metric("oarlock_num_preemptions_total") > 0.0, "the cache was not small enough");
    wait_until("everything is given back", Duration::from_secs(10), || {
        let metrics = server.metrics();
        ["oarlock_kv_blocks_in_use", "oarlock_num_requests_running", "oarlock_num_requests_waiting"]
            .iter()
            .all(|name| metrics.sum(name) == Some(0.0))
    });
}

/// A stream that its client leaves after a few events.
fn drop_after(server: &Server, index: usize) {
    let mut request = request(index);
    request["stream"] = json!(true);
    let stream = server.stream("/v1/completions", &request);
    for event in stream.take(index % 7) {
        event.expect("an event");
    }
}

/// A token that makes the tiny model's logits NaN.
const POISON: u32 = 255;

#[test]
fn a_poisoned_request_fails_alone() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("poisoned.gguf");
    TinyModel { poison: Some(POISON), ..TinyModel::default() }.write(&model).unwrap();
    let options = ServerOptions::new(&model).args(["--served-name", "tiny", "--threads", "1"]);
    let server = Server::start(&options).unwrap();
    let healthy = json!({
        "model": "tiny", "prompt": "hello", "max_tokens": 3, "temperature": 0, "logprobs": 1,
    });
    let alone = choice(&server.post("/v1/completions", &healthy).ok_json());
    let poisoned = json!({"model": "tiny", "prompt": [1, 2, POISON, 3], "max_tokens": 4});
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let failed = server.post("/v1/completions", &poisoned);
                assert_eq!(failed.status, 500, "{}", failed.text());
                assert!(failed.json()["error"]["message"].is_string(), "{}", failed.text());
                let beside = server.post("/v1/completions", &healthy).ok_json();
                assert_eq!(choice(&beside), alone);
            });
        }
    });
    assert_eq!(server.metric("oarlock_worker_restarts_total"), 0.0);
    let metrics = server.get("/metrics");
    assert!(metrics.text().contains(r#"finished_reason="error"} 4"#), "{}", metrics.text());
}
