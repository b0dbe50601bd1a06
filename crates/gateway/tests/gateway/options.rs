//! What the engine hears of a request's options, and what several choices become.

use axum::http::StatusCode;
use oarlock_types::{FinishReason, LogitRules, Priority, SlotError, TokenId};
use serde_json::{Value, json};

use crate::fake_engine::{Client, END, bytes, client, frames, script};

fn ids(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().copied().map(TokenId).collect()
}

async fn complete(client: &Client, fields: Value) -> Value {
    let (status, body) = client.complete(&fields).await;
    assert_eq!(status, StatusCode::OK, "{fields}: {body}");
    body
}

#[tokio::test]
async fn rules_reach_the_engine() {
    let client = client(script(bytes("x")));
    let fields = json!({"logit_bias": {"99": -100, "5": 0.5}, "presence_penalty": 1.5,
        "frequency_penalty": -0.5, "repetition_penalty": 1.25, "min_tokens": 3,
        "stop_token_ids": [120, 97, 97], "allowed_token_ids": [120, 97, 98], "bad_words": ["no", " a"],
        "priority": -3});
    complete(&client, fields).await;
    let request = client.engine.last_request();
    let expected = LogitRules {
        allowed: ids(&[97, 98, 120]),
        // One token per byte: with a space before it a word has one token more, and the word as it
        // stands at the beginning of a text covers that, too.
        bad_words: vec![ids(&[110, 111]), ids(&[97])],
        min_tokens: 3,
        min_tokens_banned: ids(&[97, 120, END]),
        bias: vec![(TokenId(5), 0.5), (TokenId(99), -100.0)],
        repetition_penalty: 1.25,
        frequency_penalty: -0.5,
        presence_penalty: 1.5,
    };
    assert_eq!(request.sampling.rules.as_deref(), Some(&expected));
    assert_eq!(request.stop.stop_token_ids, ids(&[97, 120, END]));
    assert_eq!(request.priority, Priority(Priority::default().0 - 3));
    complete(&client, json!({"min_tokens": 0, "logit_bias": {}, "bad_words": []})).await;
    assert_eq!(client.engine.last_request().sampling.rules, None);
    complete(&client, json!({"min_tokens": 2, "ignore_eos": true})).await;
    assert_eq!(client.engine.last_request().sampling.rules, None, "nothing can end it early");
}

#[tokio::test]
async fn several_choices_are_siblings() {
    let client = client(script([bytes("cd"), vec![END]].concat()));
    let body = complete(&client, json!({"n": 3, "logprobs": 1, "echo": true})).await;
    let requests = client.engine.requests.lock().unwrap().clone();
    let choices: Vec<u32> = requests.iter().map(|request| request.sampling.choice).collect();
    assert_eq!(choices, [0, 1, 2]);
    assert!(requests[0].group.is_some());
    assert!(requests.iter().all(|request| request.group == requests[0].group));
    assert!(requests.iter().all(|request| request.sampling.seed == 7));
    // The first one scores the prompt for all.
    let scored: Vec<_> = requests.iter().map(|request| request.prompt_logprobs).collect();
    assert_eq!(scored, [Some(1), None, None]);
    let choices = body["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("abcd"), &json!("stop")));
        assert_eq!(choice["logprobs"], choices[0]["logprobs"]);
        assert_eq!(choice["logprobs"]["token_logprobs"][1], -9.8);
    }
    // The prompt counts once.
    assert_eq!(body["usage"]["prompt_tokens"], 2);
    assert_eq!(body["usage"]["completion_tokens"], 9);
}

#[tokio::test]
async fn prompts_times_choices_in_order() {
    let client = client(script(bytes("c")));
    let body = complete(&client, json!({"prompt": ["a", "bb"], "n": 2, "echo": true})).await;
    let texts: Vec<_> =
        body["choices"].as_array().unwrap().iter().map(|choice| choice["text"].clone()).collect();
    assert_eq!(texts, ["ac", "ac", "bbc", "bbc"]);
    assert_eq!(body["usage"]["prompt_tokens"], 3);
    let requests = client.engine.requests.lock().unwrap().clone();
    assert_eq!(requests[0].group, requests[1].group);
    assert_ne!(requests[0].group, requests[2].group);
    assert_eq!(requests[3].tokens, ids(&[98, 98]));
}

#[tokio::test]
async fn a_stream_tells_choices_apart() {
    let client = client(script([bytes("cd"), vec![END]].concat()));
    for (path, fields) in [
        ("/v1/completions", crate::fake_engine::completion_body(&json!({"n": 3}))),
        ("/v1/chat/completions", crate::fake_engine::chat_body(&json!({"n": 3}))),
    ] {
        let mut body = fields;
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true, "continuous_usage_stats": true});
        let (status, text) = client.post_text(path, body.to_string()).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        let frames = frames(&text);
        let (last, pieces) = frames.split_last().unwrap();
        assert_eq!(last["usage"]["completion_tokens"], 9);
        let mut texts = vec![String::new(); 3];
        let mut ends = [0; 3];
        let mut completion_tokens = 0;
        for frame in pieces {
            let choice = &frame["choices"][0];
            let index = choice["index"].as_u64().unwrap() as usize;
            let text = choice["text"].as_str().or(choice["delta"]["content"].as_str());
            texts[index].push_str(text.unwrap_or(""));
            ends[index] += u32::from(choice["finish_reason"] == "stop");
            let so_far = frame["usage"]["completion_tokens"].as_u64().unwrap();
            assert!(so_far >= completion_tokens);
            completion_tokens = so_far;
        }
        assert_eq!(texts, ["cd", "cd", "cd"]);
        assert_eq!(ends, [1, 1, 1]);
    }
    client.idle().await;
}

#[tokio::test]
async fn one_refusal_refuses_the_request_and_frees_the_others() {
    let client = client(script(bytes("x")));
    client.engine.script.lock().unwrap().refuse_from = Some(2);
    let (status, body) = client.complete(&json!({"n": 4})).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (StatusCode::TOO_MANY_REQUESTS, &json!("queue_full"))
    );
    client.idle().await;
}

#[tokio::test]
async fn the_best_answers_are_given() {
    let client = client(script(vec![]));
    // Logprobs are -0.1 times the id: of these, the second choice has the best mean.
    client.engine.script.lock().unwrap().by_choice =
        Some(vec![bytes("zz"), bytes("zaaa"), bytes("mm"), bytes("ny")]);
    let body = complete(&client, json!({"best_of": 4, "n": 2})).await;
    let texts: Vec<_> =
        body["choices"].as_array().unwrap().iter().map(|choice| choice["text"].clone()).collect();
    assert_eq!(texts, ["zaaa", "mm"]);
    assert_eq!(body["choices"][1]["index"], 1);
    assert_eq!(body["choices"][0]["logprobs"], Value::Null, "nobody asked for them");
    assert_eq!(body["usage"]["completion_tokens"], 10, "all that was generated");
    let (_, body) = client.chat(&json!({"best_of": 2})).await;
    assert_eq!(body["error"]["param"], "best_of");
}

#[tokio::test]
async fn answers_end_where_the_client_says() {
    let client = client(script(bytes("abcabc")));
    for (fields, text, reason) in [
        (json!({"stop": "ca"}), "ab", json!("ca")),
        (json!({"stop": ["x", "ca"], "include_stop_str_in_output": true}), "abca", json!("ca")),
        (json!({"stop_token_ids": [98]}), "a", json!(98)),
        (json!({"stop_token_ids": [98], "include_stop_str_in_output": true}), "ab", json!(98)),
        // The fake engine follows its script; a real one could not draw a stop token so early.
        (json!({"stop": "b", "min_tokens": 3}), "abca", json!("b")),
        (json!({"stop": "bc", "min_tokens": 2}), "abca", json!("bc")),
    ] {
        let body = complete(&client, fields.clone()).await;
        let choice = &body["choices"][0];
        assert_eq!(choice["text"], text, "{fields}");
        assert_eq!(choice["finish_reason"], "stop", "{fields}");
        assert_eq!(choice["stop_reason"], reason, "{fields}");
    }
}

#[tokio::test]
async fn special_tokens_can_be_kept() {
    let client = client(script([bytes("a"), vec![257], bytes("b")].concat()));
    let body = complete(&client, json!({})).await;
    assert_eq!(body["choices"][0]["text"], "ab");
    let body = complete(&client, json!({"skip_special_tokens": false})).await;
    assert_eq!(body["choices"][0]["text"], "a<|start|>b");
}

#[tokio::test]
async fn answers_are_not_much_longer_than_their_requests() {
    let client = client(script(bytes("x")));
    let prompts = vec!["a".repeat(190); 128];
    // 128 prompts of 190 tokens with 21 logprobs at each place, for two choices.
    let fields = json!({"prompt": prompts, "n": 2, "prompt_logprobs": 20, "max_tokens": 0});
    let (status, body) = client.complete(&fields).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "more sequences than the engine has room for");
    assert_eq!(body["error"]["param"], "prompt");
    let mut config = oarlock_gateway::GatewayConfig::default();
    config.request.max_prompt_logprob_entries = 12;
    let client = crate::fake_engine::client_with(script(bytes("x")), config);
    for (fields, param) in [
        (json!({"prompt_logprobs": 2, "prompt": "abcd"}), Value::Null),
        (json!({"prompt_logprobs": 2, "prompt": "abcde"}), json!("prompt_logprobs")),
        (json!({"prompt_logprobs": 1, "prompt": "abcd", "n": 2}), json!("prompt_logprobs")),
        (json!({"prompt_logprobs": 1, "prompt": "abcd", "best_of": 2}), json!("prompt_logprobs")),
        (json!({"logprobs": 2, "echo": true, "prompt": "abcde"}), json!("logprobs")),
        (json!({"logprobs": 2, "prompt": "abcde"}), Value::Null),
    ] {
        let (_, body) = client.complete(&fields).await;
        assert_eq!(body["error"]["param"], param, "{fields}: {body}");
    }
}

#[tokio::test]
async fn lengths_fit_each_other_and_the_engine() {
    let client = client(script(bytes("x")));
    for (fields, param) in [
        // Sixteen tokens are what a completion has if nobody says otherwise.
        (json!({"min_tokens": 16}), Value::Null),
        (json!({"min_tokens": 17}), json!("min_tokens")),
        // The fake engine runs four sequences and queues four.
        (json!({"n": 8}), Value::Null),
        (json!({"n": 9}), json!("n")),
    ] {
        let (_, body) = client.complete(&fields).await;
        assert_eq!(body["error"]["param"], param, "{fields}: {body}");
    }
    let (_, body) = client.chat(&json!({"min_tokens": 192})).await;
    assert_eq!(body["error"]["param"], "min_tokens", "{body}");
    let mut config = oarlock_gateway::GatewayConfig::default();
    config.request.max_sequences = 2;
    let client = crate::fake_engine::client_with(script(bytes("x")), config);
    let (_, body) = client.chat(&json!({"n": 3})).await;
    assert_eq!(body["error"]["param"], "n", "{body}");
}

#[tokio::test]
async fn a_cut_prompt_keeps_its_beginning_of_sequence() {
    let client = client(script(bytes("x")));
    client.engine.script.lock().unwrap().bos = Some(257);
    for (keep, expected) in
        [(4, vec![257, 98, 99, 100]), (3, vec![257, 99, 100]), (9, vec![257, 97, 98, 99, 100])]
    {
        complete(&client, json!({"prompt": "abcd", "truncate_prompt_tokens": keep})).await;
        assert_eq!(client.engine.last_request().tokens, ids(&expected));
    }
    complete(&client, json!({"prompt": [97, 98, 99], "truncate_prompt_tokens": 2})).await;
    assert_eq!(client.engine.last_request().tokens, ids(&[98, 99]), "ids are taken as they are");
}

#[tokio::test]
async fn prompts_are_cut_at_their_beginning() {
    let client = client(script(bytes("x")));
    let body = complete(
        &client,
        json!({"prompt": "abcdef", "truncate_prompt_tokens": 4, "echo": true, "max_tokens": 1}),
    )
    .await;
    assert_eq!(body["choices"][0]["text"], "cdefx");
    assert_eq!(client.engine.last_request().tokens, ids(&[99, 100, 101, 102]));
    // Also prompts that could not be taken whole.
    let long = "y".repeat(100_000);
    complete(&client, json!({"prompt": long, "truncate_prompt_tokens": -1, "max_tokens": 8})).await;
    assert_eq!(client.engine.last_request().num_prompt, crate::fake_engine::CONTEXT - 8);
    let (status, _) = client.chat(&json!({"truncate_prompt_tokens": 3})).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(client.engine.last_request().tokens, ids(&[105, 124, 62]));
}

#[tokio::test]
async fn texts_that_cannot_fit_are_refused_before_they_are_tokenized() {
    let client = client(script(bytes("x")));
    // Tokens have at most nine bytes here ("<|start|>"), and 200 of them fit.
    for (len, is_counted) in [(1800, true), (1801, false)] {
        let (status, body) = client.complete(&json!({"prompt": "a".repeat(len)})).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(body["error"]["code"], "context_length_exceeded");
        let message = body["error"]["message"].as_str().unwrap();
        assert_eq!(message.contains(&format!("{len} in the prompt")), is_counted, "{message}");
        assert_eq!(message.contains(&format!("{len} bytes")), !is_counted, "{message}");
    }
}

#[tokio::test]
async fn prompt_logprobs_have_vllms_shape() {
    let client = client(script(bytes("x")));
    let body =
        complete(&client, json!({"prompt": "xa", "prompt_logprobs": 2, "max_tokens": 0})).await;
    let expected = json!([null, {
        "97": {"logprob": -9.7, "rank": 1, "decoded_token": "a"},
        "98": {"logprob": -1.1, "rank": 2, "decoded_token": "b"},
    }]);
    assert_eq!(body["choices"][0]["prompt_logprobs"], expected);
    let (status, body) = client.chat(&json!({"prompt_logprobs": 0, "n": 2})).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(body["prompt_logprobs"].as_array().unwrap().len(), 9);
    assert_eq!(body["choices"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn the_last_message_goes_on() {
    let client = client(script(bytes("x")));
    let messages =
        json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "so "}]);
    let (status, body) =
        client.chat(&json!({"messages": messages, "continue_final_message": true})).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let prompt: String =
        client.engine.last_request().tokens.iter().map(|token| char::from(token.0 as u8)).collect();
    assert_eq!(prompt, "user:hi|assistant:so ");
    for fields in [
        json!({"continue_final_message": true, "add_generation_prompt": true}),
        json!({"continue_final_message": 1}),
        json!({"continue_final_message": true, "messages": [{"role": "user", "content": "x"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]}),
    ] {
        let (status, body) = client.chat(&fields).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(body["error"]["param"], "continue_final_message", "{body}");
    }
}

#[tokio::test]
async fn rules_that_leave_nothing_are_the_clients_to_mend() {
    let client = client(script(vec![]));
    client.engine.script.lock().unwrap().then =
        crate::fake_engine::Then::Finish(FinishReason::Failed(SlotError::NothingAllowed));
    let (status, body) = client.complete(&json!({})).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(body["error"]["code"], "no_token_allowed");
}
