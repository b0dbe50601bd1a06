//! Questions about the API that only a real model and real processes can answer.

use oarlock_testkit::Server;
use serde_json::{Value, json};

use crate::Scenario;
use crate::disturbance::wait_for_rest;
use crate::requests::{answer, ask, ids, sixteen};

pub(crate) const SCENARIOS: &[Scenario] = &[
    ("models, health and readiness", models_and_health),
    ("a second turn finds the first one in the prefix cache", second_turn_is_cached),
    ("streaming gives what not streaming gives", streaming_is_the_same),
    ("a seed that the gateway drew gives the same answer again", drawn_seed_is_returned),
    ("echo scores a prompt as generation scored it", echo_scores_like_generation),
    ("bad requests are refused and disturb nothing", bad_requests),
    ("stop strings end an answer", stop_strings),
    ("two hundred cancelled requests leave no block behind", cancelled_requests_free_their_blocks),
];

fn chat(content: &str) -> Value {
    json!({
        "model": "demo", "messages": [{"role": "user", "content": content}],
        "temperature": 0, "max_tokens": 16,
    })
}

fn models_and_health(server: &Server) {
    assert_eq!(server.get("/v1/models").ok_json()["data"][0]["id"], "demo");
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.get("/ready").status, 200);
    assert_eq!(server.get("/no/such/path").status, 404);
}

fn second_turn_is_cached(server: &Server) {
    let story = "Once upon a time there was a scheduler that never slept and never lost a block. "
        .repeat(64);
    let mut request = chat(&format!("Summarize: {story}"));
    let first = server.post("/v1/chat/completions", &request).ok_json();
    let prompt_tokens = first["usage"]["prompt_tokens"].as_u64().expect("a count");
    assert!(prompt_tokens >= 1000, "{prompt_tokens} prompt tokens");
    let messages = request["messages"].as_array_mut().expect("messages");
    messages
        .push(json!({"role": "assistant", "content": first["choices"][0]["message"]["content"]}));
    messages.push(json!({"role": "user", "content": "Shorter, please."}));
    let second = server.post("/v1/chat/completions", &request).ok_json();
    let cached =
        second["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a count");
    // Whole blocks of 16 up to where the first prompt's end and the second one part.
    assert!(
        cached >= (prompt_tokens - 1) / 16 * 16 - 16,
        "{cached} of {prompt_tokens} were cached"
    );
    assert_eq!(cached % 16, 0);
}

fn streaming_is_the_same(server: &Server) {
    for request in sixteen().iter().step_by(3) {
        let whole = ask(server, request);
        let mut streamed = request.clone();
        streamed["stream"] = json!(true);
        streamed["stream_options"] = json!({"include_usage": true});
        let events = server.stream("/v1/chat/completions", &streamed).collect_json();
        assert_eq!(merge(&events), whole);
        let usage = &events.last().expect("events")["usage"];
        assert_eq!(usage["completion_tokens"].as_u64(), Some(whole.token_ids.len() as u64));
    }
}

/// A stream's chunks as one answer.
pub(crate) fn merge(events: &[Value]) -> crate::requests::Answer {
    let mut whole = json!({"choices": [{
        "message": {"content": ""}, "logprobs": {"content": []}, "token_ids": [], "finish_reason": "",
    }]});
    let choice = &mut whole["choices"][0];
    let mut text = String::new();
    for chunk in events.iter().filter_map(|event| event["choices"].get(0)) {
        text.push_str(chunk["delta"]["content"].as_str().unwrap_or_default());
        for (list, more) in [
            (&["logprobs", "content"][..], &chunk["logprobs"]["content"]),
            (&["token_ids"][..], &chunk["token_ids"]),
        ] {
            let list = list.iter().fold(&mut *choice, |value, key| &mut value[*key]);
            list.as_array_mut()
                .expect("a list")
                .extend(more.as_array().cloned().unwrap_or_default());
        }
        if !chunk["finish_reason"].is_null() {
            choice["finish_reason"] = chunk["finish_reason"].clone();
        }
    }
    choice["message"]["content"] = json!(text);
    answer(&whole)
}

fn drawn_seed_is_returned(server: &Server) {
    let mut request = chat("Invent a name for a boat.");
    request["temperature"] = json!(1.0);
    request["return_token_ids"] = json!(true);
    let first = server.post("/v1/chat/completions", &request).ok_json();
    request["seed"] = first["seed"].clone();
    let second = server.post("/v1/chat/completions", &request).ok_json();
    assert_eq!(first["choices"][0]["token_ids"], second["choices"][0]["token_ids"]);
    assert_eq!(first["choices"][0]["message"], second["choices"][0]["message"]);
}

/// The logprob of a token is the same number whether it was sampled or stands in the prompt.
fn echo_scores_like_generation(server: &Server) {
    let request = json!({
        "model": "demo", "prompt": "def fibonacci(n):", "max_tokens": 12, "temperature": 0,
        "logprobs": 1, "return_token_ids": true,
    });
    let generated = server.post("/v1/completions", &request).ok_json();
    let choice = &generated["choices"][0];
    let prompt = ids(&choice["prompt_token_ids"]);
    let all = [prompt.clone(), ids(&choice["token_ids"])].concat();
    let echo = json!({
        "model": "demo", "prompt": all, "max_tokens": 0, "echo": true, "logprobs": 1, "temperature": 0,
    });
    let scored = server.post("/v1/completions", &echo).ok_json();
    let scored =
        scored["choices"][0]["logprobs"]["token_logprobs"].as_array().expect("scores").clone();
    assert!(scored[0].is_null());
    assert_eq!(Value::Array(scored[prompt.len()..].to_vec()), choice["logprobs"]["token_logprobs"]);
}

fn bad_requests(server: &Server) {
    let undisturbed = ask(server, &sixteen()[0]);
    let mut long = chat("x");
    long["messages"][0]["content"] = json!("word ".repeat(40_000));
    let unsupported = |field: &str, value: Value| {
        let mut request = chat("hi");
        request[field] = value;
        (request, 400, field.to_owned())
    };
    let cases = [
        unsupported("temperature", json!(-1)),
        unsupported("n", json!(0)),
        unsupported("frequency_penalty", json!(2.5)),
        unsupported("store", json!(true)),
        unsupported("no_such_field", json!(1)),
        unsupported("max_tokens", json!("many")),
        unsupported("stop", json!([""])),
        (long, 400, String::new()),
        (
            json!({"model": "other", "messages": [{"role": "user", "content": "hi"}]}),
            404,
            "model".to_owned(),
        ),
        (json!({"model": "demo", "messages": []}), 400, "messages".to_owned()),
        (json!([]), 400, String::new()),
    ];
    for (request, status, param) in cases {
        let response = server.post("/v1/chat/completions", &request);
        let body = response.json();
        assert_eq!(response.status, status, "{body}");
        assert!(
            body["error"]["message"].is_string() && body["error"]["type"].is_string(),
            "{body}"
        );
        if !param.is_empty() {
            assert_eq!(body["error"]["param"], json!(param), "{body}");
        }
    }
    let truncated =
        server.client().request("POST", "/v1/chat/completions", &[], b"{\"model\": \"de");
    assert_eq!(truncated.expect("an answer").status, 400);
    assert_eq!(ask(server, &sixteen()[0]), undisturbed);
}

fn stop_strings(server: &Server) {
    let mut request = chat("Count from 1 to 9, separated by commas.");
    request["max_tokens"] = json!(40);
    let whole = server.post("/v1/chat/completions", &request).ok_json();
    let whole = whole["choices"][0]["message"]["content"].as_str().expect("a text").to_owned();
    let stop = &whole[4..7];
    request["stop"] = json!([stop]);
    let stopped = server.post("/v1/chat/completions", &request).ok_json();
    let text = stopped["choices"][0]["message"]["content"].as_str().expect("a text");
    assert_eq!(Some(text), whole.split(stop).next());
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
}

/// Requests dropped at random moments: before the first token, in the middle, near the end.
fn cancelled_requests_free_their_blocks(server: &Server) {
    let tokens = || server.metric("oarlock_generation_tokens_total");
    let before = tokens();
    let mut state = 7_u64;
    for round in 0..25 {
        std::thread::scope(|scope| {
            for index in 0..8_u64 {
                state =
                    state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round * 8 + index);
                let events = (state >> 60) as usize;
                scope.spawn(move || {
                    let mut request = chat(&format!("Tell story {round}/{index}"));
                    request["max_tokens"] = json!(200);
                    request["ignore_eos"] = json!(true);
                    request["stream"] = json!(true);
                    let stream = server.stream("/v1/chat/completions", &request);
                    // Dropped here, after some events or none.
                    for event in stream.take(events) {
                        event.expect("an event");
                    }
                });
            }
        });
    }
    wait_for_rest(server);
    // Of forty thousand that they asked for.
    let given = tokens() - before;
    eprintln!("{given} tokens of cancelled requests");
    assert!(given < 5_000.0, "{given} tokens for nobody");
}
