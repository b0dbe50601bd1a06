//! Every limit on a request's fields: its flag is obeyed, to the last one allowed and no further.

use oarlock_testkit::{Server, ServerOptions, TinyModel};
use serde_json::{Value, json};

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
    let blocks = server.metric("oarlock_kv_blocks_in_use");
    assert_eq!(blocks, 0.0, "a refused request leaves nothing behind");
}
