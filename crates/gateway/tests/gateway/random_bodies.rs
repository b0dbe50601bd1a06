//! Whatever the body says, the gateway does not fail: 200 or a 4xx.

use axum::http::StatusCode;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::fake_engine::{bytes, client, script};

const NAMES: [&str; 45] = [
    "messages",
    "prompt",
    "model",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "logprobs",
    "top_logprobs",
    "stream",
    "stream_options",
    "n",
    "tools",
    "tool_choice",
    "chat_template_kwargs",
    "echo",
    "suffix",
    "ignore_eos",
    "return_token_ids",
    "tokens",
    "add_generation_prompt",
    "response_format",
    "user",
    "best_of",
    "logit_bias",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "min_tokens",
    "stop_token_ids",
    "include_stop_str_in_output",
    "allowed_token_ids",
    "bad_words",
    "prompt_logprobs",
    "truncate_prompt_tokens",
    "continue_final_message",
    "priority",
    "skip_special_tokens",
    "add_special_tokens",
    "reasoning_effort",
    "documents",
];

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3_i64..30).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
        prop::sample::select(vec!["user", "text", "auto", "function", "org/fake"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let key = prop_oneof![
            prop::sample::select(vec![
                "role",
                "content",
                "type",
                "text",
                "function",
                "name",
                "arguments"
            ])
            .prop_map(str::to_owned),
            "[a-z_]{1,6}",
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// A request that would be valid, with some fields replaced.
fn any_body() -> impl Strategy<Value = Value> {
    let fields = prop::collection::vec((prop::sample::select(NAMES.to_vec()), any_json()), 0..3);
    (any::<bool>(), fields).prop_map(|(chat, fields)| {
        let mut body = json!({"model": "org/fake"});
        if chat {
            body["messages"] = json!([{"role": "user", "content": "hi"}]);
        } else {
            body["prompt"] = json!("hi");
        }
        for (name, value) in fields {
            body[name] = value;
        }
        body
    })
}

proptest! {
    #[test]
    fn random_bodies_never_fail_the_server(body in prop_oneof![any_body(), any_json()]) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = client(script(bytes("answer")));
            for path in ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"] {
                let (status, text) = client.post_text(path, body.to_string()).await;
                assert!(status == StatusCode::OK || status.is_client_error(), "{path} {body}: {status} {text}");
                assert_eq!(status != StatusCode::OK, text.contains("{\"error\":"), "{text}");
            }
        });
    }
}
