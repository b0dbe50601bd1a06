//! Chat completions in one body.

use axum::http::StatusCode;
use oarlock_gateway::GatewayConfig;
use oarlock_types::{SamplingDefaults, SamplingParams, TokenId};
use serde_json::{Value, json};

use crate::fake_engine::{CONTEXT, END, MODEL, Script, bytes, client, client_with, score, script};

/// The text that the engine was given.
fn prompt_of(client: &crate::fake_engine::Client) -> String {
    let tokens = client.engine.last_request().tokens;
    String::from_utf8(tokens.iter().map(|token| token.0 as u8).collect()).unwrap()
}

#[tokio::test]
async fn an_answer_has_openais_shape() {
    let mut answer = script([bytes("Hé!"), vec![END]].concat());
    answer.cached_tokens = 3;
    let client = client(answer);
    let (status, body) = client.chat(&json!({"temperature": 0})).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(body["created"].as_u64().unwrap() > 1_700_000_000);
    assert!(body["system_fingerprint"].as_str().unwrap().starts_with("fp_"));
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["model"], MODEL);
    assert_eq!(body["seed"], 7);
    let message = json!({"role": "assistant", "content": "Hé!", "refusal": null});
    let choice = json!({"index": 0, "message": message, "logprobs": null, "finish_reason": "stop"});
    assert_eq!(body["choices"], json!([choice]));
    let usage = json!({"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 3}});
    assert_eq!(body["usage"], usage);
    assert_eq!(prompt_of(&client), "user:hi|>");
}

#[tokio::test]
async fn parameters_reach_the_engine() {
    let client = client(script(bytes("x")));
    let fields = json!({"temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "seed": -3,
        "max_completion_tokens": 5, "logprobs": true, "top_logprobs": 2, "ignore_eos": true});
    assert_eq!(client.chat(&fields).await.0, StatusCode::OK);
    let request = client.engine.last_request();
    let expected = SamplingParams {
        temperature: 0.5,
        top_k: 40,
        top_p: 0.9,
        min_p: 0.1,
        seed: (-3_i64).cast_unsigned(),
        choice: 0,
        top_logprobs: Some(2),
        rules: None,
    };
    assert_eq!(request.sampling, expected);
    assert_eq!(request.stop.max_tokens, 5);
    assert_eq!(request.stop.stop_token_ids, []);
    assert_eq!(request.prompt_logprobs, None);
    // Defaults: everything that fits, the model's end, OpenAI's sampling.
    assert_eq!(client.chat(&json!({"top_k": -1})).await.0, StatusCode::OK);
    let request = client.engine.last_request();
    assert_eq!(request.sampling, SamplingParams { seed: 7, ..SamplingParams::default() });
    assert_eq!(request.stop.max_tokens, CONTEXT - 9);
    assert_eq!(request.stop.stop_token_ids, [TokenId(END)]);
}

/// What the model's makers recommend holds where the client says nothing, unless the server says otherwise.
#[tokio::test]
async fn a_models_defaults_are_honoured() {
    let defaults = SamplingDefaults {
        temperature: Some(0.7),
        top_k: Some(20),
        top_p: Some(0.8),
        min_p: Some(0.05),
        repetition_penalty: Some(1.1),
        max_tokens: Some(11),
    };
    let answer = || Script { defaults, ..script(bytes("x")) };
    let client = client(answer());
    assert_eq!(client.chat(&json!({})).await.0, StatusCode::OK);
    let request = client.engine.last_request();
    let rules = request.sampling.rules.as_deref().unwrap();
    assert_eq!(rules.repetition_penalty, 1.1);
    let recommended = SamplingParams {
        temperature: 0.7,
        top_k: 20,
        top_p: 0.8,
        min_p: 0.05,
        ..SamplingParams::default()
    };
    assert_eq!(SamplingParams { rules: None, seed: 0, ..request.sampling.clone() }, recommended);
    assert_eq!(request.stop.max_tokens, 11);
    // A word of the client counts more, also where it is what would hold without a model's.
    let fields = json!({"temperature": 1, "top_k": -1, "top_p": 1, "min_p": 0, "repetition_penalty": 1,
        "max_tokens": 100});
    assert_eq!(client.chat(&fields).await.0, StatusCode::OK);
    let request = client.engine.last_request();
    assert_eq!(request.sampling, SamplingParams { seed: 7, ..SamplingParams::default() });
    assert_eq!(request.stop.max_tokens, 100);
    let config = GatewayConfig { model_defaults: false, ..GatewayConfig::default() };
    let client = client_with(answer(), config);
    assert_eq!(client.chat(&json!({})).await.0, StatusCode::OK);
    let sampling = client.engine.last_request().sampling;
    assert_eq!(sampling, SamplingParams { seed: 7, ..SamplingParams::default() });
}

#[tokio::test]
async fn a_seed_is_drawn_and_returned() {
    let client = client(script(bytes("x")));
    let (_, first) = client.chat(&json!({"seed": null})).await;
    let drawn = first["seed"].as_u64().unwrap();
    assert_eq!(client.engine.last_request().sampling.seed, drawn);
    assert!(drawn < 1 << 53);
    let (_, second) = client.chat(&json!({"seed": null})).await;
    assert_ne!(first["seed"], second["seed"]);
}

#[tokio::test]
async fn messages_and_tools_reach_the_template() {
    let client = client(script(bytes("x")));
    let call = json!({"id": "c1", "type": "function",
        "function": {"name": "f", "arguments": "{\"b\": 1, \"a\": [2.0]}"}});
    let messages = json!([
        {"role": "system", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": null, "tool_calls": [call], "refusal": null, "annotations": []},
        {"role": "tool", "content": "21", "tool_call_id": "c1"},
    ]);
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
    let fields =
        json!({"messages": messages, "tools": [tool], "chat_template_kwargs": {"note": "N"}});
    let (status, body) = client.chat(&fields).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let expected = "system:one\ntwo|assistant:None[{\"b\": 1, \"a\": [2.0]}]|tool:21|1 tools|N|>";
    assert_eq!(prompt_of(&client), expected);
    let fields = json!({"tools": [tool], "tool_choice": "none", "add_generation_prompt": false});
    assert_eq!(client.chat(&fields).await.0, StatusCode::OK);
    assert_eq!(prompt_of(&client), "user:hi|");
}

#[tokio::test]
async fn special_tokens_in_the_prompt_are_tokens() {
    let client = client(script(bytes("x")));
    let fields = json!({"messages": [{"role": "user", "content": "<|start|>"}]});
    let (_, body) =
        client.chat(&json!({"messages": fields["messages"], "return_token_ids": true})).await;
    assert_eq!(body["prompt_token_ids"][5], 257);
    assert_eq!(body["choices"][0]["token_ids"], json!([120]));
}

#[tokio::test]
async fn logprobs_keep_their_bits() {
    let client = client(script([bytes("aé"), vec![END]].concat()));
    let (_, body) = client.chat(&json!({"logprobs": true, "top_logprobs": 2})).await;
    let content = body["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let tokens: Vec<&str> = content.iter().map(|entry| entry["token"].as_str().unwrap()).collect();
    assert_eq!(tokens, ["a", "\u{fffd}", "\u{fffd}", "<|end|>"]);
    assert_eq!(content[1]["bytes"], json!([0xc3]));
    assert_eq!(content[3]["bytes"], json!(b"<|end|>"));
    for (entry, id) in content.iter().zip([97, 0xc3, 0xa9, END]) {
        let printed = entry["logprob"].as_f64().unwrap() as f32;
        assert_eq!(printed.to_bits(), score(id, 0).logprob.to_bits());
        let top: Vec<_> = entry["top_logprobs"].as_array().unwrap().iter().collect();
        assert_eq!(top.len(), 2);
        assert_eq!(top[1], &json!({"token": "b", "logprob": -1.1, "bytes": [98]}));
    }
    let (_, body) =
        client.chat(&json!({"logprobs": true, "return_tokens_as_token_ids": true})).await;
    let content = &body["choices"][0]["logprobs"]["content"];
    assert_eq!(content[1]["token"], "token_id:195");
    assert_eq!(content[1]["top_logprobs"], json!([]));
}

#[tokio::test]
async fn stop_strings_end_the_answer() {
    let client = client(script(bytes("Hello. World. End.")));
    for (stop, expected, tokens) in [
        (json!(". W"), "Hello", 8),
        (json!(["nd.", ". E"]), "Hello. World", 15),
        (json!(["zzz"]), "Hello. World. End.", 18),
        (json!([]), "Hello. World. End.", 18),
    ] {
        let (status, body) = client.chat(&json!({"stop": stop})).await;
        assert_eq!(status, StatusCode::OK);
        let choice = &body["choices"][0];
        assert_eq!(choice["message"]["content"], expected);
        let reason = if expected.ends_with("End.") { "length" } else { "stop" };
        assert_eq!(choice["finish_reason"], reason);
        assert_eq!(body["usage"]["completion_tokens"], tokens);
        client.idle().await;
    }
}

#[tokio::test]
async fn an_incomplete_character_ends_as_a_replacement() {
    let client = client(script(vec![0x61, 0xe6, 0x97]));
    let (_, body) = client.chat(&json!({})).await;
    assert_eq!(body["choices"][0]["message"]["content"], "a\u{fffd}");
}

#[tokio::test]
async fn neutral_and_ignored_fields_change_nothing() {
    let client = client(script(bytes("x")));
    for fields in [
        json!({"n": 1, "best_of": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}}),
        json!({"repetition_penalty": 1.0, "logit_bias": null, "stop": null, "tools": [], "audio": null}),
        json!({"user": "u", "metadata": {"a": "b"}, "store": false, "service_tier": "auto"}),
        json!({"service_tier": "default", "response_format": {"type": "text"}, "tool_choice": "auto"}),
        json!({"stream": false, "stream_options": null, "guided_json": null, "whatever": null}),
        json!({"max_tokens": 3.0, "max_completion_tokens": 3, "parallel_tool_calls": true}),
        json!({"temperature": 2, "top_p": 1, "min_p": 1, "top_logprobs": 0, "logprobs": false}),
    ] {
        let (status, body) = client.chat(&fields).await;
        assert_eq!(status, StatusCode::OK, "{fields}: {body}");
        assert_eq!(body["choices"][0]["message"]["content"], Value::from("x"));
    }
}
