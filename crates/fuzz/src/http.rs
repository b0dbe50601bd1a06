//! HTTP requests: any method, path, content type and body over the whole router.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, header};
use oarlock_discovery::{InMemory, Member};
use oarlock_gateway::{GatewayConfig, router};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tower::ServiceExt;

use crate::engine::TwoTokens;

/// Routes that take a body.
const PATHS: [&str; 4] = ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"];
/// What clients may call their body.
const CONTENT_TYPES: [&str; 4] = [
    "application/json",
    "multipart/form-data; boundary=x",
    "application/x-www-form-urlencoded",
    "text/plain",
];
/// Answers of the fake engine are short, and errors are clipped.
const MAX_ANSWER_BYTES: usize = 1 << 20;

struct Gateway {
    runtime: Runtime,
    router: Router,
    // The router looks engines up here.
    _discovery: InMemory,
}

static GATEWAY: LazyLock<Gateway> = LazyLock::new(|| {
    let discovery = InMemory::default();
    let member =
        Member { id: "e".to_owned(), served_name: "m".to_owned(), engine: Arc::new(TwoTokens) };
    discovery.register(member);
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let router = router(discovery.view(), GatewayConfig::default());
    Gateway { runtime, router, _discovery: discovery }
});

/// Sends a request: the first byte chooses route and content type, the others are the body. The
/// answer is a success or the client's error, never the server's.
pub fn http(bytes: &[u8]) {
    let Some((choice, body)) = bytes.split_first() else { return };
    let path = PATHS[usize::from(choice % 4)];
    let content_type = CONTENT_TYPES[usize::from(choice / 4 % 4)];
    let request = Request::post(path).header(header::CONTENT_TYPE, content_type);
    let request = request.body(Body::from(body.to_vec())).expect("a valid request");
    GATEWAY.runtime.block_on(async {
        let response = GATEWAY.router.clone().oneshot(request).await.expect("infallible");
        let status = response.status();
        let answer =
            to_bytes(response.into_body(), MAX_ANSWER_BYTES).await.expect("a short answer");
        assert!(!status.is_server_error(), "{path} {status}: {}", String::from_utf8_lossy(&answer));
        if !status.is_success() {
            let json: Value = serde_json::from_slice(&answer).expect("errors are JSON");
            assert!(json["error"]["message"].is_string(), "{json}");
        }
    });
}

/// Valid inputs of [`http`], to start from: one for each field of the API.
pub fn valid_requests() -> Vec<Vec<u8>> {
    let with = |route: u8, body: &str| [&[route][..], body.as_bytes()].concat();
    vec![
        with(0, r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}"#),
        with(
            0,
            r#"{"model":"m","messages":[{"role":"system","content":[{"type":"text","text":"x"}]},{"role":"user","content":"é","name":"u"}],"n":2,"logprobs":true,"top_logprobs":3,"stop":["a","bc"],"max_completion_tokens":5,"seed":-1}"#,
        ),
        with(
            0,
            r#"{"model":"m","messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],"continue_final_message":true,"tools":[{"type":"function","function":{"name":"f","parameters":{}}}],"tool_choice":"auto","chat_template_kwargs":{"a":[1,{"b":null}]},"truncate_prompt_tokens":-1}"#,
        ),
        with(
            1,
            r#"{"model":"m","prompt":["ab",[97,98]],"echo":true,"logprobs":2,"best_of":3,"n":2,"max_tokens":4,"temperature":0.5,"top_p":0.9,"top_k":3,"min_p":0.1}"#,
        ),
        with(
            1,
            r#"{"model":"m","prompt":"abc","logit_bias":{"5":-100,"97":1.5},"presence_penalty":1,"frequency_penalty":-1,"repetition_penalty":1.1,"min_tokens":1,"stop_token_ids":[1,2],"allowed_token_ids":[97,98],"bad_words":["no"],"priority":-3,"include_stop_str_in_output":true,"prompt_logprobs":1,"return_token_ids":true,"ignore_eos":true,"skip_special_tokens":false}"#,
        ),
        with(
            1,
            r#"{"model":"m","prompt":[1,2,3],"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true},"user":"x","truncate_prompt_tokens":2}"#,
        ),
        with(
            2,
            r#"{"model":"m","prompt":"text","add_special_tokens":true,"return_token_strs":true}"#,
        ),
        with(2, r#"{"messages":[{"role":"user","content":"x"}],"add_generation_prompt":false}"#),
        with(3, r#"{"model":"m","tokens":[97,195,169,256]}"#),
        with(4, "--x\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n{}\r\n--x--\r\n"),
        with(8, "model=m&prompt=a%20b"),
    ]
}
