//! A storm on the tiny model: many requests of all kinds, a third of them dropped, a cache so small
//! that preemption happens all the time, and the worker killed again and again. Every answer that
//! finishes is the one that the same request gets alone.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use oarlock_testkit::{
    Server, ServerOptions, Signal, TinyModel, resident_bytes, send_signal, wait_until,
};
use serde_json::{Value, json};

const REQUESTS: usize = 500;
const CLIENTS: usize = 24;
/// Requests that are computed before memory is measured for the first time.
const WARM_UP: usize = 60;
/// What processes may have grown by after the storm: allocators keep some of what they got.
const MEMORY_SLACK: u64 = 48 << 20;

/// A mix of the request's number, so that its properties do not go in step with each other.
fn mix(index: usize, salt: u64) -> usize {
    let mut bits = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt;
    bits = (bits ^ (bits >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (bits >> 33) as usize
}

/// Request number `index`: kind, length, sampling, rules and scoring all differ.
fn request(index: usize) -> Value {
    let text = "round and round the little wheel goes ".repeat(1 + mix(index, 1) % 5);
    let prompt = &text[..10 + mix(index, 2) % (text.len() - 10)];
    let mut request = json!({
        "model": "tiny", "prompt": prompt, "max_tokens": 1 + mix(index, 3) % 60, "seed": index,
        "temperature": if mix(index, 4).is_multiple_of(3) { 0.0 } else { 1.0 },
        "top_p": 0.9, "return_token_ids": true, "ignore_eos": mix(index, 5).is_multiple_of(2),
        "priority": mix(index, 6) as i64 % 3 - 1,
    });
    match mix(index, 7) % 12 {
        0 => request["n"] = json!(2 + mix(index, 8) % 3),
        1 => request["best_of"] = json!(3),
        2 => request["prompt"] = json!([prompt, "another prompt", &text[..5]]),
        3 => {
            request["logprobs"] = json!(3);
            request["echo"] = json!(true);
        }
        4 => request["prompt_logprobs"] = json!(2),
        5 => request["stop"] = json!(["e", "zz"]),
        6 => {
            request["presence_penalty"] = json!(1.5);
            request["repetition_penalty"] = json!(1.2);
        }
        7 => {
            request["allowed_token_ids"] = json!([97, 98, 99]);
            request["bad_words"] = json!(["ab", "ca"]);
        }
        8 => {
            request["min_tokens"] = json!(1);
            request["stop_token_ids"] = json!([120, 121]);
        }
        9 => request["truncate_prompt_tokens"] = json!(7),
        10 => request["logit_bias"] = json!({"97": 3, "98": -100}),
        _ => request["logprobs"] = json!(1),
    }
    request
}

/// The part of an answer that the request decides.
fn choice(body: &Value) -> Value {
    json!({"choices": body["choices"], "tokens": body["usage"]["completion_tokens"]})
}

/// Resident memory of the server and of its worker.
fn memory(server: &Server) -> u64 {
    let pids = server.worker_pids().into_iter().chain([server.pid()]);
    pids.map(|pid| resident_bytes(pid).expect("the process runs")).sum()
}

/// Sends all requests; those whose number says so are left by their client.
fn rage(server: &Server, expected: &[Value], finished: &AtomicUsize) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while let index = next.fetch_add(1, Ordering::Relaxed)
                    && index < expected.len()
                {
                    if index % 3 == 1 {
                        drop_after(server, index);
                    } else {
                        let body = server.post("/v1/completions", &request(index)).ok_json();
                        assert_eq!(choice(&body), expected[index], "{}", request(index));
                        finished.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
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
    let finished = AtomicUsize::new(0);
    rage(&server, &expected[..WARM_UP], &finished);
    let before = memory(&server);
    finished.store(0, Ordering::Relaxed);
    std::thread::scope(|scope| {
        scope.spawn(|| rage(&server, &expected, &finished));
        for deaths in 1..=3 {
            let enough = REQUESTS / 6 * deaths;
            wait_until("some requests are done", Duration::from_mins(1), || {
                finished.load(Ordering::Relaxed) >= enough && server.worker_pids().len() == 1
            });
            send_signal(server.worker_pids()[0], Signal::KILL);
        }
    });
    let stayed = (0..REQUESTS).filter(|index| index % 3 != 1).count();
    assert_eq!(finished.load(Ordering::Relaxed), stayed);
    assert_eq!(server.metric("oarlock_worker_restarts_total"), 3.0);
    let preemptions = server.metric("oarlock_num_preemptions_total");
    assert!(preemptions > REQUESTS as f64 / 10.0, "the cache was not small enough: {preemptions}");
    wait_until("everything is given back", Duration::from_secs(10), || {
        let metrics = server.metrics();
        ["oarlock_kv_blocks_in_use", "oarlock_num_requests_running", "oarlock_num_requests_waiting"]
            .iter()
            .all(|name| metrics.sum(name) == Some(0.0))
            && server.worker_pids().len() == 1
    });
    let after = memory(&server);
    assert!(after <= before + MEMORY_SLACK, "memory grew from {before} to {after} bytes");
}

/// A stream that its client leaves after a few events.
fn drop_after(server: &Server, index: usize) {
    let mut request = request(index);
    request["stream"] = json!(true);
    // What goes with whole answers only.
    for name in ["best_of", "prompt_logprobs"] {
        request.as_object_mut().unwrap().remove(name);
    }
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
