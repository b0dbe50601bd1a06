//! Server-sent events.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use futures::StreamExt;
use serde_json::{Value, json};

use crate::fake_engine::{
    END, Then, bytes, chat_body, client, completion_body, frames, redact, script,
};

async fn stream_of(client: &crate::fake_engine::Client, path: &str, body: &Value) -> String {
    let (status, text) = client.post_text(path, body.to_string()).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    text
}

#[tokio::test]
async fn chat_events_are_openais() {
    let client = client(script([bytes("aé"), vec![END]].concat()));
    let body = chat_body(&json!({"stream": true, "stream_options": {"include_usage": true}}));
    let text = stream_of(&client, "/v1/chat/completions", &body).await;
    insta::assert_snapshot!(redact(&text), @r#"
    data: {chat.completion.chunk "choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}

    data: {chat.completion.chunk "choices":[{"index":0,"delta":{"content":"a"},"logprobs":null,"finish_reason":null}],"usage":null}

    data: {chat.completion.chunk "choices":[{"index":0,"delta":{"content":"é"},"logprobs":null,"finish_reason":null}],"usage":null}

    data: {chat.completion.chunk "choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}

    data: {chat.completion.chunk "choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"total_tokens":13,"prompt_tokens_details":{"cached_tokens":0}}}

    data: [DONE]
    "#);
}

#[tokio::test]
async fn chat_events_with_details() {
    let client = client(script([bytes("é"), vec![END]].concat()));
    let body = chat_body(
        &json!({"stream": true, "logprobs": true, "return_token_ids": true, "return_tokens_as_token_ids": true,
        "messages": [{"role": "user", "content": ""}]}),
    );
    let text = stream_of(&client, "/v1/chat/completions", &body).await;
    insta::assert_snapshot!(redact(&text), @r#"
    data: {chat.completion.chunk "choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"prompt_token_ids":[117,115,101,114,58,124,62]}

    data: {chat.completion.chunk "choices":[{"index":0,"delta":{"content":"é"},"logprobs":{"content":[{"token":"token_id:195","logprob":-19.5,"bytes":[195],"top_logprobs":[]},{"token":"token_id:169","logprob":-16.9,"bytes":[169],"top_logprobs":[]}]},"finish_reason":null,"token_ids":[195,169]}]}

    data: {chat.completion.chunk "choices":[{"index":0,"delta":{"content":""},"logprobs":{"content":[{"token":"token_id:256","logprob":-25.6,"bytes":[60,124,101,110,100,124,62],"top_logprobs":[]}]},"finish_reason":null,"token_ids":[256]}]}

    data: {chat.completion.chunk "choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}

    data: [DONE]
    "#);
}

#[tokio::test]
async fn completion_events_are_openais() {
    let client = client(script(bytes("xy")));
    let body = completion_body(
        &json!({"stream": true, "logprobs": 1, "stream_options": {"include_usage": true}}),
    );
    let text = stream_of(&client, "/v1/completions", &body).await;
    insta::assert_snapshot!(redact(&text), @r#"
    data: {text_completion "choices":[{"index":0,"text":"x","logprobs":{"tokens":["x"],"token_logprobs":[-12.0],"top_logprobs":[{"a":-0.1,"x":-12.0}],"text_offset":[0]},"finish_reason":null}],"usage":null}

    data: {text_completion "choices":[{"index":0,"text":"y","logprobs":{"tokens":["y"],"token_logprobs":[-12.1],"top_logprobs":[{"a":-0.1,"y":-12.1}],"text_offset":[1]},"finish_reason":null}],"usage":null}

    data: {text_completion "choices":[{"index":0,"text":"","logprobs":{"tokens":[],"token_logprobs":[],"top_logprobs":[],"text_offset":[]},"finish_reason":"length"}],"usage":null}

    data: {text_completion "choices":[],"usage":{"prompt_tokens":2,"completion_tokens":2,"total_tokens":4,"prompt_tokens_details":{"cached_tokens":0}}}

    data: [DONE]
    "#);
}

/// Joins the events of a stream to what the one-body answer holds.
fn join(frames: &[Value], path: &str) -> Value {
    let mut text = String::new();
    let mut logprobs: Vec<Value> = Vec::new();
    let mut ids: Vec<Value> = Vec::new();
    let mut finish = Value::Null;
    for choice in frames.iter().flat_map(|frame| frame["choices"].as_array().unwrap()) {
        let piece =
            if path.contains("chat") { &choice["delta"]["content"] } else { &choice["text"] };
        text.push_str(piece.as_str().unwrap_or(""));
        let field = if path.contains("chat") { "content" } else { "token_logprobs" };
        logprobs.extend(choice["logprobs"][field].as_array().cloned().unwrap_or_default());
        ids.extend(choice["token_ids"].as_array().cloned().unwrap_or_default());
        assert!(finish.is_null(), "nothing follows the finish");
        finish = choice["finish_reason"].clone();
    }
    json!({"text": text, "logprobs": logprobs, "ids": ids, "finish": finish})
}

#[tokio::test]
async fn streams_and_bodies_say_the_same() {
    let answers = [
        [bytes("Hello. World"), vec![END]].concat(),
        bytes("日本語 ok 🚀"),
        vec![0x61, 0xff, 0xe6, 0x97, 0x62, 0xe6, 0x97],
        bytes("EN END ENENDX"),
        bytes("a<<b<<<END"),
        vec![257, 97, 257],
        vec![END],
        vec![],
    ];
    for answer in answers {
        for stop in [json!([]), json!(["END", ". W"]), json!(["<<<E", "本"])] {
            for path in ["/v1/chat/completions", "/v1/completions"] {
                let client = client(script(answer.clone()));
                let fields = json!({"stop": stop, "return_token_ids": true, "return_tokens_as_token_ids": true, "max_tokens": 100,
                    "logprobs": if path.contains("chat") { json!(true) } else { json!(2) }});
                let mut body = if path.contains("chat") {
                    chat_body(&fields)
                } else {
                    completion_body(&fields)
                };
                let (status, whole) = client.post(path, &body).await;
                assert_eq!(status, StatusCode::OK, "{whole}");
                body["stream"] = json!(true);
                body["stream_options"] = json!({"include_usage": true});
                let frames = frames(&stream_of(&client, path, &body).await);
                let choice = &whole["choices"][0];
                let chat = path.contains("chat");
                let expected = json!({
                    "text": if chat { &choice["message"]["content"] } else { &choice["text"] },
                    "logprobs": choice["logprobs"][if chat { "content" } else { "token_logprobs" }],
                    "ids": choice["token_ids"],
                    "finish": choice["finish_reason"],
                });
                assert_eq!(join(&frames, path), expected);
                assert_eq!(frames.last().unwrap()["usage"], whole["usage"]);
                assert_eq!(frames[0]["prompt_token_ids"], whole["prompt_token_ids"]);
                let first = &frames[0]["choices"][0];
                assert_eq!(first["prompt_token_ids"], choice["prompt_token_ids"]);
                client.idle().await;
            }
        }
    }
}

#[tokio::test]
async fn held_back_text_comes_with_its_tokens() {
    let client = client(script(bytes("aENx")));
    let body =
        chat_body(&json!({"stream": true, "stop": "END", "logprobs": true, "max_tokens": 4}));
    let frames = frames(&stream_of(&client, "/v1/chat/completions", &body).await);
    let pieces: Vec<(&str, usize)> = frames
        .iter()
        .filter_map(|frame| {
            let choice = &frame["choices"][0];
            let entries = choice["logprobs"]["content"].as_array()?;
            Some((choice["delta"]["content"].as_str().unwrap(), entries.len()))
        })
        .collect();
    assert_eq!(pieces, [("a", 1), ("ENx", 3)]);
}

#[tokio::test]
async fn a_stop_string_cancels_the_engine() {
    let mut endless = script(bytes("one two three"));
    endless.then = Then::Hang;
    let client = client(endless);
    let (_, body) = client.chat(&json!({"stop": ["two"]})).await;
    assert_eq!(body["choices"][0]["message"]["content"], "one ");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    client.idle().await;
}

#[tokio::test]
async fn a_dropped_body_cancels_the_engine() {
    let mut endless = script(bytes("one"));
    endless.then = Then::Hang;
    let client = client(endless);
    let body = Body::from(chat_body(&json!({"stream": true})).to_string());
    let response = client.send(Request::post("/v1/chat/completions").body(body).unwrap()).await;
    assert_eq!(response.status(), StatusCode::OK);
    let mut chunks = response.into_body().into_data_stream();
    assert!(chunks.next().await.unwrap().unwrap().starts_with(b"data: "));
    assert_eq!(*client.engine.live.borrow(), 1);
    drop(chunks);
    assert_eq!(*client.engine.live.borrow(), 0);
}

#[tokio::test(start_paused = true)]
async fn silence_is_filled_with_comments() {
    let mut endless = script(vec![]);
    endless.then = Then::Hang;
    let client = client(endless);
    let body = Body::from(chat_body(&json!({"stream": true})).to_string());
    let response = client.send(Request::post("/v1/chat/completions").body(body).unwrap()).await;
    let mut chunks = response.into_body().into_data_stream();
    assert!(chunks.next().await.unwrap().unwrap().starts_with(b"data: "));
    for _ in 0..3 {
        assert_eq!(&chunks.next().await.unwrap().unwrap()[..], b": keep-alive\n\n");
    }
}
