//! Every field's invalid values: a 400 that names the field.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::fake_engine::{Client, bytes, client, script};

async fn check(client: &Client, path: &str, body: &Value, param: &str, code: &str) {
    let (status, answer) = client.post(path, body).await;
    let error = &answer["error"];
    assert_eq!(status, StatusCode::BAD_REQUEST, "{body}: {answer}");
    assert_eq!(error["param"], param, "{body}: {answer}");
    assert_eq!(error["code"], code, "{body}: {answer}");
    assert_eq!(error["type"], "invalid_request_error");
    assert!(error["message"].as_str().unwrap().contains(param), "{answer}");
    assert!(client.engine.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn shared_fields() {
    let many_stops: Vec<String> = (0..17).map(|n| n.to_string()).collect();
    check_shared(vec![
        ("temperature", json!(-0.1)),
        ("temperature", json!(2.1)),
        ("temperature", json!("hot")),
        ("top_p", json!(0)),
        ("top_p", json!(1.01)),
        ("top_p", json!(1e-300)),
        ("top_k", json!(-2)),
        ("top_k", json!(1.5)),
        ("min_p", json!(-1)),
        ("min_p", json!(1.1)),
        ("seed", json!("x")),
        ("seed", json!(1.5)),
        ("seed", json!(1e30)),
        ("stop", json!("")),
        ("stop", json!(["a", ""])),
        ("stop", json!([1])),
        ("stop", json!({})),
        ("stop", json!("x".repeat(257))),
        ("stop", json!(many_stops)),
        ("stream", json!(1)),
        ("stream_options", json!({"include_usage": true})),
        ("ignore_eos", json!("yes")),
        ("return_token_ids", json!(1)),
        ("return_tokens_as_token_ids", json!([])),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!("many")),
        ("max_tokens", json!(5_000_000_000_u64)),
        ("max_completion_tokens", json!(0)),
        ("model", json!(5)),
    ])
    .await;
}

#[tokio::test]
async fn rules_and_limits() {
    let biases = (0..1025).map(|id: u32| (id.to_string(), json!(1)));
    let many_biases = Value::Object(biases.collect());
    check_shared(vec![
        ("n", json!(0)),
        ("n", json!(129)),
        ("n", json!("two")),
        ("presence_penalty", json!(2.1)),
        ("frequency_penalty", json!(-2.1)),
        ("frequency_penalty", json!("x")),
        ("repetition_penalty", json!(0)),
        ("repetition_penalty", json!(101)),
        ("repetition_penalty", json!(0.0099)),
        ("logit_bias", json!([])),
        ("logit_bias", json!({"x": 1})),
        ("logit_bias", json!({"-1": 1})),
        ("logit_bias", json!({"+1": 1})),
        ("logit_bias", json!({"258": 1})),
        ("logit_bias", json!({"5": 100.5})),
        ("logit_bias", json!({"5": "much"})),
        ("logit_bias", many_biases),
        ("min_tokens", json!(-1)),
        ("min_tokens", json!(9)),
        ("stop_token_ids", json!([258])),
        ("stop_token_ids", json!(["a"])),
        ("stop_token_ids", json!(vec![1; 257])),
        ("allowed_token_ids", json!([])),
        ("allowed_token_ids", json!([300])),
        ("allowed_token_ids", json!(5)),
        ("allowed_token_ids", json!(vec![1; 65_537])),
        ("bad_words", json!("a")),
        ("bad_words", json!([" "])),
        ("bad_words", json!([5])),
        ("bad_words", json!(["x".repeat(257)])),
        ("bad_words", json!(vec!["x"; 129])),
        ("include_stop_str_in_output", json!("no")),
        ("skip_special_tokens", json!("no")),
        ("prompt_logprobs", json!(21)),
        ("prompt_logprobs", json!(-1)),
        ("truncate_prompt_tokens", json!(0)),
        ("truncate_prompt_tokens", json!(-2)),
        ("priority", json!(1.5)),
    ])
    .await;
}

/// Values that the field of this name cannot have, in chat and in plain completions.
async fn check_shared(cases: Vec<(&str, Value)>) {
    let client = client(script(bytes("x")));
    for (name, value) in cases {
        for path in ["/v1/chat/completions", "/v1/completions"] {
            let mut body = json!({"model": "org/fake", "prompt": "ab",
                "messages": [{"role": "user", "content": "hi"}]});
            let other = if path == "/v1/completions" { "messages" } else { "prompt" };
            body.as_object_mut().unwrap().remove(other);
            if name == "min_tokens" {
                body["max_tokens"] = json!(8);
            }
            body[name] = value.clone();
            check(&client, path, &body, name, "invalid_value").await;
        }
    }
}

#[tokio::test]
async fn unsupported_and_unknown_fields() {
    let client = client(script(bytes("x")));
    for (name, value, code) in [
        ("response_format", json!({"type": "json_object"}), "unsupported_value"),
        ("service_tier", json!("flex"), "unsupported_value"),
        ("store", json!(true), "unsupported_value"),
        ("suffix", json!("x"), "unsupported_value"),
        ("guided_json", json!({}), "unsupported_value"),
        ("reasoning_effort", json!("low"), "unsupported_value"),
        ("foo", json!(0), "unknown_parameter"),
        ("Temperature", json!(1), "unknown_parameter"),
    ] {
        for (path, prompt) in [
            ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "hi"}]})),
            ("/v1/completions", json!({"prompt": "ab"})),
        ] {
            let mut body = prompt;
            body["model"] = json!("org/fake");
            body[name] = value.clone();
            check(&client, path, &body, name, code).await;
        }
    }
    // In a stream's options, too.
    let body =
        json!({"model": "org/fake", "prompt": "ab", "stream": true, "stream_options": {"x": 1}});
    check(&client, "/v1/completions", &body, "stream_options.x", "unknown_parameter").await;
}

/// Checks chat requests with the given further fields.
async fn check_chat(cases: &[(Value, &str, &str)]) {
    let client = client(script(bytes("x")));
    for (fields, param, code) in cases {
        let body = crate::fake_engine::chat_body(fields);
        let (status, answer) = client.post("/v1/chat/completions", &body).await;
        let error = &answer["error"];
        assert_eq!(status, StatusCode::BAD_REQUEST, "{fields}: {answer}");
        assert_eq!(
            (&error["param"], &error["code"]),
            (&json!(param), &json!(code)),
            "{fields}: {answer}"
        );
        assert!(client.engine.requests.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn chat_messages() {
    let user = json!({"role": "user", "content": "hi"});
    check_chat(&[
        (json!({"messages": null}), "messages", "missing_required_parameter"),
        (json!({"messages": []}), "messages", "invalid_value"),
        (json!({"messages": "hi"}), "messages", "invalid_value"),
        (json!({"messages": [5]}), "messages[0]", "invalid_value"),
        (json!({"messages": [{"content": "x"}]}), "messages[0].role", "missing_required_parameter"),
        (
            json!({"messages": [user, {"role": "king", "content": "x"}]}),
            "messages[1].role",
            "invalid_value",
        ),
        (
            json!({"messages": [{"role": "user"}]}),
            "messages[0].content",
            "missing_required_parameter",
        ),
        (
            json!({"messages": [{"role": "user", "content": 5}]}),
            "messages[0].content",
            "invalid_value",
        ),
        (
            json!({"messages": [{"role": "user", "content": "x", "foo": 1}]}),
            "messages[0].foo",
            "unknown_parameter",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
            "messages[0].content[0].type",
            "unsupported_value",
        ),
        (
            json!({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}),
            "messages[0].tool_calls[0].function",
            "missing_required_parameter",
        ),
    ])
    .await;
}

#[tokio::test]
async fn chat_fields() {
    check_chat(&[
        (json!({"tools": {}}), "tools", "invalid_value"),
        (json!({"tools": [{"type": "web"}]}), "tools[0].type", "unsupported_value"),
        (
            json!({"tools": [{"type": "function"}]}),
            "tools[0].function.name",
            "missing_required_parameter",
        ),
        (json!({"tool_choice": "required"}), "tool_choice", "unsupported_value"),
        (json!({"tool_choice": {"type": "function"}}), "tool_choice", "unsupported_value"),
        (json!({"chat_template_kwargs": []}), "chat_template_kwargs", "invalid_value"),
        (
            json!({"chat_template_kwargs": {"messages": []}}),
            "chat_template_kwargs",
            "invalid_value",
        ),
        (json!({"add_generation_prompt": 1}), "add_generation_prompt", "invalid_value"),
        (json!({"logprobs": 5}), "logprobs", "invalid_value"),
        (json!({"top_logprobs": 5}), "top_logprobs", "invalid_value"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs", "invalid_value"),
        (json!({"max_tokens": 0}), "max_tokens", "invalid_value"),
        (json!({"max_tokens": 1, "max_completion_tokens": 2}), "max_tokens", "invalid_value"),
        (json!({"max_tokens": 199}), "messages", "context_length_exceeded"),
        (json!({"echo": true}), "echo", "unsupported_value"),
        (json!({"prompt": "x"}), "prompt", "unknown_parameter"),
        (json!({"model": null}), "model", "missing_required_parameter"),
    ])
    .await;
}

#[tokio::test]
async fn completion_fields() {
    let client = client(script(bytes("x")));
    for (fields, param, code) in [
        (json!({"prompt": null}), "prompt", "missing_required_parameter"),
        (json!({"prompt": ""}), "prompt", "invalid_value"),
        (json!({"prompt": []}), "prompt", "invalid_value"),
        (json!({"prompt": {}}), "prompt", "invalid_value"),
        (json!({"prompt": [1, "a"]}), "prompt", "invalid_value"),
        (json!({"prompt": [-1]}), "prompt", "invalid_value"),
        (json!({"prompt": [258]}), "prompt", "invalid_value"),
        (json!({"prompt": [{}]}), "prompt", "invalid_value"),
        (json!({"max_tokens": 0}), "max_tokens", "invalid_value"),
        (json!({"max_tokens": 199}), "prompt", "context_length_exceeded"),
        (json!({"prompt": "a".repeat(200)}), "prompt", "context_length_exceeded"),
        (json!({"prompt": "a".repeat(2000)}), "prompt", "context_length_exceeded"),
        (json!({"prompt": "a".repeat(100_000)}), "prompt", "context_length_exceeded"),
        (json!({"logprobs": true}), "logprobs", "invalid_value"),
        (json!({"logprobs": 21}), "logprobs", "invalid_value"),
        (json!({"logprobs": -1}), "logprobs", "invalid_value"),
        (json!({"echo": "yes"}), "echo", "invalid_value"),
        (json!({"best_of": 0}), "best_of", "invalid_value"),
        (json!({"n": 3, "best_of": 2}), "best_of", "invalid_value"),
        (json!({"best_of": 2, "stream": true}), "best_of", "invalid_value"),
        (json!({"prompt": vec!["a"; 129]}), "prompt", "invalid_value"),
        (json!({"prompt": ["a", "b", "c"], "n": 100}), "prompt", "invalid_value"),
        (
            json!({"prompt": ["a", [1]], "logprobs": 1, "max_tokens": 0}),
            "max_tokens",
            "invalid_value",
        ),
        (json!({"prompt_logprobs": 1, "stream": true}), "prompt_logprobs", "invalid_value"),
        (json!({"messages": []}), "messages", "unknown_parameter"),
    ] {
        let body = crate::fake_engine::completion_body(&fields);
        check(&client, "/v1/completions", &body, param, code).await;
    }
}
