//! Every limit on a request's fields: its flag is obeyed, to the last one allowed and no further.

use oarlock_testkit::{PATIENCE, Server, ServerOptions, TinyModel, wait_until};
use serde_json::{Value, json};

use crate::disturbance::{PATIENT, Stopped, wait_for_rest};

const FLAGS: [&str; 24] = [
    "--max-choices",
    "3",
    "--max-prompts",
    "4",
    "--max-request-sequences",
    "5",
    "--max-stop-strings",
    "2",
    "--max-stop-chars",
    "6",
    "--max-stop-token-ids",
    "3",
    "--max-logit-bias",
    "2",
    "--max-allowed-token-ids",
    "4",
    "--max-bad-words",
    "2",
    "--max-bad-word-chars",
    "5",
    "--max-top-logprobs",
    "7",
    "--max-sequence-tokens",
    "96",
];

/// Field, a value at its limit, a value beyond.
fn cases() -> Vec<(&'static str, Value, Value)> {
    vec![
        ("n", json!(3), json!(4)),
        ("best_of", json!(3), json!(4)),
        ("prompt", json!(vec!["a"; 4]), json!(vec!["a"; 5])),
        ("stop", json!(["a", "b"]), json!(["a", "b", "c"])),
        ("stop", json!("é".repeat(6)), json!("é".repeat(7))),
        ("stop_token_ids", json!([1, 2, 3]), json!([1, 2, 3, 4])),
        ("logit_bias", json!({"1": 1, "2": 1}), json!({"1": 1, "2": 1, "3": 1})),
        ("allowed_token_ids", json!([65, 66, 67, 68]), json!([65, 66, 67, 68, 69])),
        ("bad_words", json!(["a", "b"]), json!(["a", "b", "c"])),
        ("bad_words", json!(["abcde"]), json!(["abcdef"])),
        ("logprobs", json!(7), json!(8)),
        ("prompt_logprobs", json!(7), json!(8)),
        ("prompt", json!("a".repeat(94)), json!("a".repeat(95))),
    ]
}

fn complete(server: &Server, name: &str, value: &Value) -> (u16, Value) {
    let mut body = json!({"model": "tiny", "prompt": "ab", "max_tokens": 2});
    body[name] = value.clone();
    let response = server.post("/v1/completions", &body);
    (response.status, response.json())
}

#[test]
fn limits_have_flags() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("tiny.gguf");
    TinyModel::default().write(&model).unwrap();
    let options = ServerOptions::new(&model).args(["--served-name", "tiny", "--threads", "1"]);
    let server = Server::start(&options.args(FLAGS)).unwrap();
    for (name, allowed, beyond) in cases() {
        let (status, body) = complete(&server, name, &allowed);
        assert_eq!(status, 200, "{name} {allowed}: {body}");
        let (status, body) = complete(&server, name, &beyond);
        assert_eq!((status, &body["error"]["param"]), (400, &json!(name)), "{beyond}: {body}");
    }
    // Prompts times choices.
    let body = json!({"model": "tiny", "prompt": ["a", "b", "c"], "n": 2, "max_tokens": 1});
    assert_eq!(server.post("/v1/completions", &body).json()["error"]["param"], "prompt");
    let body = json!({"model": "tiny", "prompt": ["a", "b"], "n": 2, "max_tokens": 1});
    assert_eq!(server.post("/v1/completions", &body).status, 200);
    // At once: who has its answer finds its blocks given back.
    let blocks = server.metric("oarlock_kv_blocks_in_use");
    assert_eq!(blocks, 0.0, "a refused request leaves nothing behind");
}

/// Queues are full in requests and in tokens.
fn full_queues(server: &Server) {
    // More sequences than could ever be taken are the client's error, not the queue's.
    let many = json!({"model": "tiny", "prompt": ["a", "b", "c", "d", "e"], "max_tokens": 1});
    let response = server.post("/v1/completions", &many);
    assert_eq!(response.status, 400, "{}", response.text());
    // With the worker stopped, what runs goes on running, and a stream begins when its request may run.
    let stream = |prompts: Value| {
        let body = json!({"model": "tiny", "prompt": prompts, "max_tokens": 400, "ignore_eos": true,
            "stream": true});
        server.stream("/v1/completions", &body)
    };
    // One runs, three wait: no place for a fifth.
    wait_for_rest(server);
    let stopped = Stopped::all(server);
    let running = stream(json!("a"));
    let one = |prompt: &str| json!({"model": "tiny", "prompt": prompt, "max_tokens": 1});
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| drop(stream(json!(["b", "c", "d"])).next()));
        wait_until("three wait", PATIENCE, || server.metric("oarlock_num_requests_waiting") == 3.0);
        refused_for_now(server, &one("e"), "3 requests");
        drop((running, stopped));
        waiting.join().unwrap();
    });
    // One runs, one of forty tokens waits: no room for another of forty.
    wait_for_rest(server);
    let stopped = Stopped::all(server);
    let running = stream(json!("a"));
    let long = "x".repeat(40);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| server.post("/v1/completions", &one(&long)).status);
        wait_until("forty tokens wait", PATIENCE, || {
            server.metric("oarlock_num_tokens_waiting") == 40.0
        });
        refused_for_now(server, &one(&long), "64 tokens");
        drop((running, stopped));
        assert_eq!(waiting.join().unwrap(), 200);
    });
}

#[test]
fn conversations_and_queues_have_limits_with_flags() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("tiny.gguf");
    TinyModel::default().write(&model).unwrap();
    let options = ServerOptions::new(&model).args(["--served-name", "tiny", "--threads", "1"]);
    let flags = [
        "--max-messages",
        "2",
        "--max-tools",
        "1",
        "--max-top-logprobs",
        "3",
        "--max-seqs",
        "1",
        "--max-queued",
        "3",
        "--max-queued-tokens",
        "64",
        PATIENT,
    ];
    let server = Server::start(&options.args(flags)).unwrap();
    let message = json!({"role": "user", "content": "a"});
    let tool = json!({"type": "function", "function": {"name": "f"}});
    for (name, allowed, beyond) in [
        ("messages", json!([message, message]), json!([message, message, message])),
        ("tools", json!([tool]), json!([tool, tool])),
        ("top_logprobs", json!(3), json!(4)),
    ] {
        let mut body =
            json!({"model": "tiny", "messages": [message], "max_tokens": 1, "logprobs": true});
        body[name] = allowed;
        let response = server.post("/v1/chat/completions", &body);
        assert_eq!(response.status, 200, "{}", response.text());
        body[name] = beyond;
        let response = server.post("/v1/chat/completions", &body);
        assert_eq!(response.status, 400, "{}", response.text());
        assert_eq!(response.json()["error"]["param"], name);
    }
    full_queues(&server);
    wait_for_rest(&server);
    let rejections = server.metrics();
    assert_eq!(rejections.sum("oarlock_admission_rejections_total"), Some(2.0));
}

/// A 429 that names the limit and says when to come again.
fn refused_for_now(server: &Server, request: &Value, limit: &str) {
    let response = server.post("/v1/completions", request);
    assert_eq!(response.status, 429, "{}", response.text());
    let error = &response.json()["error"];
    assert_eq!(error["code"], "queue_full");
    assert!(error["message"].as_str().unwrap().contains(limit), "{error}");
    let seconds: u32 = response.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
}
