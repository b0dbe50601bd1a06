//! Plain completions, `/tokenize` and `/detokenize`.

use axum::http::StatusCode;
use serde_json::json;

use crate::fake_engine::{CONTEXT, END, bytes, client, frames, script};

#[tokio::test]
async fn a_completion_has_openais_shape() {
    let client = client(script([bytes("cd"), vec![END]].concat()));
    let (status, body) = client.complete(&json!({})).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert!(body["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(body["object"], "text_completion");
    let choice = json!({"index": 0, "text": "cd", "logprobs": null, "finish_reason": "stop"});
    assert_eq!(body["choices"], json!([choice]));
    assert_eq!(body["usage"]["total_tokens"], 5);
    assert_eq!(client.engine.last_request().stop.max_tokens, 16);
}

#[tokio::test]
async fn prompts_are_text_or_tokens() {
    let client = client(script(bytes("c")));
    for prompt in [json!("ab"), json!([97, 98]), json!(["ab"]), json!([[97, 98]])] {
        let (status, body) = client.complete(&json!({"prompt": prompt, "echo": true})).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        assert_eq!(body["choices"][0]["text"], "abc");
        let tokens: Vec<u32> =
            client.engine.last_request().tokens.iter().map(|token| token.0).collect();
        assert_eq!(tokens, [97, 98]);
    }
}

#[tokio::test]
async fn echo_scores_the_prompt() {
    let client = client(script(bytes("c")));
    let fields = json!({"prompt": "aéb", "echo": true, "logprobs": 1, "max_tokens": 0});
    let (status, body) = client.complete(&fields).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let request = client.engine.last_request();
    assert_eq!((request.stop.max_tokens, request.prompt_logprobs), (0, Some(1)));
    let choice = &body["choices"][0];
    assert_eq!(choice["text"], "aéb");
    assert_eq!(choice["finish_reason"], "length");
    let expected = json!({
        "tokens": ["a", "\u{fffd}", "\u{fffd}", "b"],
        "token_logprobs": [null, -19.5, -16.9, -9.8],
        "top_logprobs": [null, {"a": -0.1, "\u{fffd}": -19.5}, {"a": -0.1, "\u{fffd}": -16.9},
            {"a": -0.1, "b": -9.8}],
        "text_offset": [0, 1, 1, 2],
    });
    assert_eq!(choice["logprobs"], expected);
    assert_eq!(body["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn logprobs_go_on_after_the_echo() {
    let client = client(script(bytes("cd")));
    let fields = json!({"echo": true, "logprobs": 0, "return_token_ids": true,
        "return_tokens_as_token_ids": true});
    let (_, body) = client.complete(&fields).await;
    let choice = &body["choices"][0];
    assert_eq!(choice["text"], "abcd");
    assert_eq!(choice["token_ids"], json!([99, 100]));
    assert_eq!(body["choices"][0]["prompt_token_ids"], json!([97, 98]));
    let logprobs = &choice["logprobs"];
    assert_eq!(
        logprobs["tokens"],
        json!(["token_id:97", "token_id:98", "token_id:99", "token_id:100"])
    );
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2, 3]));
    assert_eq!(logprobs["top_logprobs"][3], json!({"token_id:100": -10.0}));
}

#[tokio::test]
async fn a_stream_echoes_first() {
    let client = client(script(bytes("cd")));
    let body = json!({"model": "org/fake", "prompt": "ab", "echo": true, "logprobs": 1, "stream": true,
        "return_token_ids": true});
    let (status, text) = client.post_text("/v1/completions", body.to_string()).await;
    assert_eq!(status, StatusCode::OK);
    let frames = frames(&text);
    assert_eq!(frames[0]["choices"][0]["text"], "ab");
    assert_eq!(frames[0]["choices"][0]["logprobs"]["token_logprobs"], json!([null, -9.8]));
    assert_eq!(frames[0]["choices"][0]["prompt_token_ids"], json!([97, 98]));
    assert_eq!(frames[1]["choices"][0]["text"], "c");
    assert_eq!(frames[1]["choices"][0]["token_ids"], json!([99]));
    assert_eq!(frames.last().unwrap()["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn tokenize_and_detokenize() {
    let client = client(script(vec![]));
    let (status, body) = client.post("/tokenize", &json!({"prompt": "a<|end|>é"})).await;
    assert_eq!(status, StatusCode::OK);
    let expected = json!({"count": 4, "max_model_len": CONTEXT, "tokens": [97, 256, 195, 169],
        "token_strs": null});
    assert_eq!(body, expected);
    let messages = json!([{"role": "user", "content": "x"}]);
    let fields = json!({"model": "org/fake", "messages": messages, "add_generation_prompt": false,
        "return_token_strs": true, "tools": [{"type": "function", "function": {"name": "f"}}]});
    let (status, body) = client.post("/tokenize", &fields).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let strings: Vec<&str> = body["token_strs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|token| token.as_str().unwrap())
        .collect();
    assert_eq!(strings.concat(), "user:x|1 tools|");
    let (status, body) = client.post("/detokenize", &json!({"tokens": [97, 256, 195, 169]})).await;
    assert_eq!((status, body), (StatusCode::OK, json!({"prompt": "a<|end|>é"})));
    for (path, fields, param) in [
        ("/tokenize", json!({}), "messages"),
        ("/tokenize", json!({"prompt": 1}), "prompt"),
        ("/tokenize", json!({"prompt": "a", "foo": 1}), "foo"),
        ("/detokenize", json!({}), "tokens"),
        ("/detokenize", json!({"tokens": [-1]}), "tokens"),
        ("/detokenize", json!({"tokens": [258]}), "tokens"),
    ] {
        let (status, body) = client.post(path, &fields).await;
        assert_eq!(
            (status, body["error"]["param"].as_str()),
            (StatusCode::BAD_REQUEST, Some(param))
        );
    }
}
