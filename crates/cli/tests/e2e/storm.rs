//! A storm on the tiny model: many requests of all kinds, a third of them dropped, a cache so small
//! that preemption happens all the time, and the worker killed again and again. Every answer that
//! finishes is the one that the same request gets alone.

use std::sync::atomic::{AtomicUsize, Ordering};

use oarlock_testkit::{
    PATIENCE, Server, ServerOptions, Signal, TinyModel, resident_bytes, send_signal, wait_until,
};
use serde_json::{Value, json};

use crate::disturbance::wait_for_rest;

const REQUESTS: usize = 500;
const CLIENTS: usize = 24;
/// Requests that are computed before memory is measured for the first time.
const WARM_UP: usize = 60;
/// What processes may have grown by after the storm: allocators keep some of what they got.
const MEMORY_SLACK: u64 = 48 << 20;
/// The same for one worker, which allocates nothing once warm.
const WORKER_SLACK: u64 = 4 << 20;

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
    if is_chat(index) {
        let messages = json!([{"role": "user", "content": prompt}]);
        request["messages"] = messages;
        request.as_object_mut().unwrap().remove("prompt");
        match mix(index, 7) % 4 {
            0 => request["n"] = json!(2),
            1 => {
                request["logprobs"] = json!(true);
                request["top_logprobs"] = json!(2);
            }
            2 => request["frequency_penalty"] = json!(0.7),
            _ => request["continue_final_message"] = json!(true),
        }
        return request;
    }
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

fn is_chat(index: usize) -> bool {
    mix(index, 9).is_multiple_of(4)
}

fn path(index: usize) -> &'static str {
    if is_chat(index) { "/v1/chat/completions" } else { "/v1/completions" }
}

/// Whether the request is sent as a stream, and all of it is read.
fn is_streamed(index: usize) -> bool {
    let request = request(index);
    mix(index, 10).is_multiple_of(3)
        && request.get("best_of").is_none()
        && request.get("prompt_logprobs").is_none()
}

/// Texts and token ids of a stream's choices, as the same of a whole answer.
fn texts(events: &[Value]) -> Vec<(String, Vec<Value>)> {
    let mut texts: Vec<(String, Vec<Value>)> = Vec::new();
    for choice in events.iter().filter_map(|event| event["choices"].get(0)) {
        let index = choice["index"].as_u64().unwrap() as usize;
        texts.resize(texts.len().max(index + 1), Default::default());
        let text = choice["text"].as_str().or(choice["delta"]["content"].as_str());
        texts[index].0.push_str(text.unwrap_or(""));
        texts[index].1.extend(choice["token_ids"].as_array().cloned().unwrap_or_default());
    }
    texts
}

/// The same of a whole answer.
fn whole_texts(body: &Value) -> Vec<(String, Vec<Value>)> {
    let text = |choice: &Value| {
        choice["text"].as_str().or(choice["message"]["content"].as_str()).unwrap().to_owned()
    };
    let choices = body["choices"].as_array().unwrap().iter();
    choices.map(|c| (text(c), c["token_ids"].as_array().unwrap().clone())).collect()
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
                    } else if is_streamed(index) {
                        let mut request = request(index);
                        request["stream"] = json!(true);
                        let events = server.stream(path(index), &request).collect_json();
                        assert_eq!(texts(&events), whole_texts(&expected[index]), "{request}");
                        finished.fetch_add(1, Ordering::Relaxed);
                    } else {
                        let body = server.post(path(index), &request(index)).ok_json();
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
        .map(|index| choice(&calm.post(path(index), &request(index)).ok_json()))
        .collect();
    drop(calm);

    let tight = ["--kv-cache-tokens", "320", "--step-tokens", "48", "--max-seqs", "8"];
    let server = Server::start(&options.args(tight)).unwrap();
    let finished = AtomicUsize::new(0);
    rage(&server, &expected[..WARM_UP], &finished);
    let before = memory(&server);
    finished.store(0, Ordering::Relaxed);
    let stayed = (0..REQUESTS).filter(|index| index % 3 != 1).count();
    std::thread::scope(|scope| {
        scope.spawn(|| rage(&server, &expected, &finished));
        let mut enough = 0;
        for deaths in 1..=3 {
            // Not soon after another: requests that die with two groups in a row are suspected of it.
            enough = (REQUESTS / 6 * deaths).max(enough).min(stayed);
            wait_until("some requests are done", PATIENCE, || {
                finished.load(Ordering::Relaxed) >= enough && server.worker_pids().len() == 1
            });
            send_signal(server.worker_pids()[0], Signal::KILL);
            wait_until("the death is found", PATIENCE, || {
                server.metric("oarlock_worker_restarts_total") >= deaths as f64
            });
            enough = finished.load(Ordering::Relaxed) + CLIENTS;
        }
    });
    assert_eq!(finished.load(Ordering::Relaxed), stayed);
    assert_eq!(server.metric("oarlock_worker_restarts_total"), 3.0);
    let preemptions = server.metric("oarlock_num_preemptions_total");
    eprintln!("{preemptions} preemptions");
    assert!(preemptions > REQUESTS as f64 / 10.0, "the cache was not small enough: {preemptions}");
    wait_for_rest(&server);
    wait_until("the last worker is there", PATIENCE, || server.worker_pids().len() == 1);
    let after = memory(&server);
    assert!(after <= before + MEMORY_SLACK, "memory grew from {before} to {after} bytes");
    // And of one worker: what it has after all of them once more is what it had after the first ones.
    let worker = server.worker_pids()[0];
    rage(&server, &expected[..WARM_UP], &finished);
    let before = resident_bytes(worker).expect("the worker runs");
    rage(&server, &expected, &finished);
    let after = resident_bytes(worker).expect("the same worker runs");
    assert!(after <= before + WORKER_SLACK, "the worker grew from {before} to {after} bytes");
}

/// A stream that its client leaves after a few events.
fn drop_after(server: &Server, index: usize) {
    let mut request = request(index);
    request["stream"] = json!(true);
    // What goes with whole answers only.
    for name in ["best_of", "prompt_logprobs"] {
        request.as_object_mut().unwrap().remove(name);
    }
    let stream = server.stream(path(index), &request);
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
