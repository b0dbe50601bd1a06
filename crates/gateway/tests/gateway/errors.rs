//! Errors of the engine, of the protocol, and of single requests among others.

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use oarlock_gateway::GatewayConfig;
use oarlock_rpc::EngineError;
use oarlock_types::{FinishReason, Rejected, SlotError, TokenId};
use serde_json::{Value, json};

use crate::fake_engine::{Then, bytes, chat_body, client, client_with, script, text_of};

#[tokio::test]
async fn engine_errors_have_their_status() {
    let rejected = EngineError::Rejected;
    for (error, status, code, retry) in [
        (rejected(Rejected::QueueFull { limit: 4, retry_after_ms: 1500 }), 429, "queue_full", true),
        (
            rejected(Rejected::QueueTokensFull { limit: 4, retry_after_ms: 1500 }),
            429,
            "queue_full",
            true,
        ),
        (
            rejected(Rejected::TooLong { tokens: 9, limit: 5 }),
            400,
            "context_length_exceeded",
            false,
        ),
        (rejected(Rejected::EmptyPrompt), 400, "invalid_value", false),
        (rejected(Rejected::UnknownToken { token: TokenId(5) }), 400, "invalid_value", false),
        (rejected(Rejected::DuplicateId), 500, "internal_error", false),
        (rejected(Rejected::Draining), 503, "unavailable", true),
        (EngineError::Unavailable("gone".into()), 503, "unavailable", true),
        (EngineError::Protocol("odd".into()), 500, "internal_error", false),
    ] {
        for stream in [false, true] {
            let mut refusing = script(vec![]);
            refusing.refuse = Some(error.clone());
            let client = client(refusing);
            let body = Body::from(chat_body(&json!({"stream": stream})).to_string());
            let response =
                client.send(Request::post("/v1/chat/completions").body(body).unwrap()).await;
            assert_eq!(response.headers().contains_key(header::RETRY_AFTER), retry, "{error:?}");
            let (got, text) = text_of(response).await;
            let body: Value = serde_json::from_str(&text).unwrap();
            assert_eq!((got.as_u16(), &body["error"]["code"]), (status, &json!(code)), "{error:?}");
        }
    }
}

#[tokio::test]
async fn failed_requests_have_their_status() {
    let finish = Then::Finish;
    for (then, status, code) in [
        (finish(FinishReason::Failed(SlotError::InvalidLogits)), 500, "request_failed"),
        (finish(FinishReason::EngineLost), 500, "engine_lost"),
        (finish(FinishReason::Deadline), 504, "deadline_exceeded"),
        (finish(FinishReason::Cancelled), 503, "unavailable"),
        (Then::Fail(EngineError::Unavailable("gone".into())), 503, "unavailable"),
        (Then::Break, 500, "engine_lost"),
        (Then::Panic, 500, "internal_error"),
    ] {
        let mut failing = script(bytes("ab"));
        failing.then = then.clone();
        let client = client(failing);
        let (got, body) = client.chat(&json!({})).await;
        assert_eq!((got.as_u16(), &body["error"]["code"]), (status, &json!(code)), "{then:?}");
        // In a stream the status is out already: an error event, and no end of an answer.
        let body = chat_body(&json!({"stream": true})).to_string();
        let (got, text) = client.post_text("/v1/chat/completions", body).await;
        assert_eq!(got, StatusCode::OK);
        let last = text.split_terminator("\n\n").last().unwrap();
        let last: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(last["error"]["code"], code, "{then:?}: {text}");
        assert!(text.contains("\"content\":\"b\""));
        client.idle().await;
        // Others go on.
        client.engine.script.lock().unwrap().then = finish(FinishReason::Stop);
        assert_eq!(client.chat(&json!({})).await.0, StatusCode::OK);
    }
}

#[tokio::test]
async fn malformed_bodies_are_refused() {
    let client = client(script(bytes("x")));
    let deep = "[".repeat(100_000);
    for body in ["", "{", "[]", "5", "\"x\"", "{\"a\":}", "\u{0}", "{}x", deep.as_str()] {
        for path in ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"] {
            let (status, text) = client.post_text(path, body.to_owned()).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {text}");
            assert!(text.contains("\"invalid_request_error\""));
        }
    }
    let invalid_utf8 = Request::post("/v1/completions").body(Body::from(vec![b'{', 0xff])).unwrap();
    assert_eq!(client.send(invalid_utf8).await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn requests_outside_of_the_api_are_refused() {
    let config = GatewayConfig { max_body_bytes: 1000, ..GatewayConfig::default() };
    let client = client_with(script(bytes("x")), config);
    let check = async |request: Request<Body>, status: u16, code: &str| {
        let (got, text) = text_of(client.send(request).await).await;
        let body: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((got.as_u16(), &body["error"]["code"]), (status, &json!(code)), "{text}");
    };
    let body = || Body::from(chat_body(&json!({})).to_string());
    check(Request::get("/nothing").body(Body::empty()).unwrap(), 404, "unknown_url").await;
    check(Request::get("/v1/completions").body(Body::empty()).unwrap(), 405, "method_not_allowed")
        .await;
    check(Request::delete("/health").body(Body::empty()).unwrap(), 405, "method_not_allowed").await;
    let form = Request::post("/v1/chat/completions")
        .header("content-type", "application/x-www-form-urlencoded");
    check(form.body(body()).unwrap(), 415, "unsupported_media_type").await;
    let long = Body::from(" ".repeat(1001));
    check(Request::post("/v1/completions").body(long).unwrap(), 413, "request_too_large").await;
    let chunked = Body::from_stream(
        futures::stream::repeat_with(|| Ok::<_, std::io::Error>("     ")).take_n(300),
    );
    check(Request::post("/v1/completions").body(chunked).unwrap(), 413, "request_too_large").await;
    for content_type in ["application/json; charset=utf-8", "application/vnd.x+json"] {
        let request = Request::post("/v1/chat/completions").header("content-type", content_type);
        assert_eq!(client.send(request.body(body()).unwrap()).await.status(), StatusCode::OK);
    }
    let untyped = Request::post("/v1/chat/completions").body(body()).unwrap();
    assert_eq!(client.send(untyped).await.status(), StatusCode::OK);
    let (status, body) = client.chat(&json!({"model": "other"})).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (StatusCode::NOT_FOUND, &json!("model_not_found"))
    );
    assert_eq!(body["error"]["param"], "model");
}

/// `StreamExt::take` under a name that does not collide with the iterator's.
trait TakeN: futures::Stream + Sized {
    fn take_n(self, n: usize) -> futures::stream::Take<Self> {
        futures::StreamExt::take(self, n)
    }
}
impl<S: futures::Stream> TakeN for S {}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_arrives_times_out() {
    let client = client(script(bytes("x")));
    let body = Body::from_stream(futures::stream::pending::<Result<&str, std::io::Error>>());
    let response = client.send(Request::post("/v1/completions").body(body).unwrap()).await;
    assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
}
