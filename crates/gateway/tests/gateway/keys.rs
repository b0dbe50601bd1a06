//! Keys: who is let in, and how much of it.

use std::num::NonZeroU32;
use std::path::Path;
use std::time::{Instant, SystemTime};

use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use futures::StreamExt as _;
use oarlock_access::{Access, KeysFile, Limits, NewKey};
use oarlock_gateway::GatewayConfig;
use oarlock_types::Priority;
use serde_json::{Value, json};

use crate::fake_engine::{
    Client, Script, Then, bytes, chat_body, client, client_with, script, text_of,
};
use crate::sockets::hanging;

/// A router with one key, and the key.
fn client_with_key(script: Script, limits: Limits) -> (Client, String) {
    let key = NewKey { tenant: "acme".to_owned(), limits, ..NewKey::default() };
    let (client, mut secrets) = client_with_keys(script, vec![key]);
    (client, secrets.remove(0))
}

/// Access with one key, and the key.
pub(crate) fn access_with_key(limits: Limits) -> (Access, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.toml");
    let secret = add(&path, NewKey { tenant: "acme".to_owned(), limits, ..NewKey::default() });
    (Access::load(&path).unwrap(), secret)
}

/// A router with some keys, and their secrets.
fn client_with_keys(script: Script, keys: Vec<NewKey>) -> (Client, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.toml");
    let secrets = keys.into_iter().map(|key| add(&path, key)).collect();
    let access = Access::load(&path).unwrap();
    (client_with(script, GatewayConfig { access, ..GatewayConfig::default() }), secrets)
}

fn add(path: &Path, key: NewKey) -> String {
    KeysFile::edit(path, true, |file| {
        let (_, secret) = file.add(key, SystemTime::now())?;
        Ok(secret.expose().to_owned())
    })
    .unwrap()
}

fn chat(secret: &str) -> Request<Body> {
    chat_with(secret, &json!({"stream": true}))
}

fn chat_with(secret: &str, fields: &Value) -> Request<Body> {
    let body = Body::from(chat_body(fields).to_string());
    let request = Request::post("/v1/chat/completions");
    request.header("authorization", format!("Bearer {secret}")).body(body).unwrap()
}

fn retry_after(response: &Response<Body>) -> u32 {
    response.headers()["retry-after"].to_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn every_route_but_the_probes_demands_a_key() {
    let (client, secret) = client_with_key(script(bytes("x")), Limits::default());
    let request = |method: &str, path: &str| Request::builder().method(method).uri(path);
    for (method, path, with_key) in [
        ("GET", "/v1/models", 200),
        ("GET", "/v1/models/org/fake", 200),
        ("GET", "/v1/models/none", 404),
        ("POST", "/v1/chat/completions", 400),
        ("POST", "/v1/completions", 400),
        ("POST", "/tokenize", 400),
        ("POST", "/detokenize", 400),
        ("GET", "/metrics", 200),
        ("GET", "/version", 200),
        ("GET", "/nothing", 404),
        ("POST", "/", 404),
        ("DELETE", "/v1/completions", 405),
        ("OPTIONS", "/v1/completions", 405),
        ("GET", "/health/", 404),
        ("GET", "//health", 404),
        ("GET", "/ready/x", 404),
    ] {
        for (name, value) in [
            ("x-other", "x"),
            ("authorization", "Bearer oar_0"),
            ("authorization", &format!("Basic {secret}")),
            ("api-key", ""),
        ] {
            let bare = request(method, path).header(name, value).body(Body::empty()).unwrap();
            let response = client.send(bare).await;
            assert_eq!(response.headers()["www-authenticate"], "Bearer", "{method} {path}");
            let (status, text) = text_of(response).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path} {name}: {value}");
            let body: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(body["error"]["code"], "invalid_api_key");
            assert_eq!(body["error"]["type"], "invalid_request_error");
        }
        for (name, value) in [
            ("Authorization", format!("Bearer {secret}")),
            ("authorization", format!("bearer {secret}")),
            ("api-key", secret.clone()),
            ("X-API-Key", secret.clone()),
        ] {
            let good = request(method, path).header(name, &value).body(Body::empty()).unwrap();
            assert_eq!(client.send(good).await.status(), with_key, "{method} {path} {name}");
        }
    }
    assert_eq!(client.get("/health").await.0, StatusCode::OK);
    assert_eq!(client.get("/ready").await.0, StatusCode::OK);
    let wrong_method = request("DELETE", "/health").body(Body::empty()).unwrap();
    assert_eq!(client.send(wrong_method).await.status(), StatusCode::METHOD_NOT_ALLOWED);
    // Refusals are counted like every other answer.
    let metrics =
        request("GET", "/metrics").header("api-key", &secret).body(Body::empty()).unwrap();
    let (_, text) = text_of(client.send(metrics).await).await;
    assert!(text.contains(r#"{route="/v1/completions",status="401"} 12"#), "{text}");
}

#[tokio::test]
async fn without_a_key_the_body_is_not_read() {
    let (client, _) = client_with_key(script(bytes("x")), Limits::default());
    let body = Body::from_stream(futures::stream::poll_fn(
        |_| -> std::task::Poll<Option<Result<&str, std::io::Error>>> { panic!("read") },
    ));
    let response = client.send(Request::post("/v1/completions").body(body).unwrap()).await;
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert!(client.engine.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn without_a_file_any_key_will_do() {
    let client = client(script(bytes("x")));
    assert_eq!(client.send(chat("sk-anything")).await.status(), StatusCode::OK);
    assert_eq!(client.chat(&json!({})).await.0, StatusCode::OK);
}

#[tokio::test]
async fn requests_per_minute_are_limited_and_looking_up_is_free() {
    let limits = Limits { requests_per_minute: NonZeroU32::new(2), ..Limits::default() };
    let (client, secret) = client_with_key(script(bytes("x")), limits);
    for _ in 0..2 {
        assert_eq!(text_of(client.send(chat(&secret)).await).await.0, StatusCode::OK);
    }
    let refused = client.send(chat(&secret)).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!((1..=30).contains(&retry_after(&refused)), "{}", retry_after(&refused));
    let body: Value = serde_json::from_str(&text_of(refused).await.1).unwrap();
    assert_eq!(body["error"]["code"], "rate_limit_exceeded");
    assert_eq!(body["error"]["type"], "rate_limit_error");
    let models = Request::get("/v1/models").header("api-key", &secret).body(Body::empty()).unwrap();
    assert_eq!(client.send(models).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_request_counts_until_its_answer_is_gone() {
    let limits = Limits { max_parallel: NonZeroU32::new(1), ..Limits::default() };
    let (client, secret) = client_with_key(hanging(), limits);
    let first = client.send(chat(&secret)).await;
    assert_eq!(first.status(), StatusCode::OK);
    let refused = client.send(chat(&secret)).await;
    assert_eq!((refused.status(), retry_after(&refused)), (StatusCode::TOO_MANY_REQUESTS, 1));
    drop(first);
    let second = client.send(chat(&secret)).await;
    assert_eq!(second.status(), StatusCode::OK);
    drop(second);
    client.idle().await;
}

#[tokio::test]
async fn tenant_salt_and_class_come_from_the_key_alone() {
    let key = |tenant: &str, priority: u8| NewKey {
        tenant: tenant.to_owned(),
        priority: Priority(priority),
        ..NewKey::default()
    };
    let keys = vec![key("acme", 50), key("acme", 60), key("umbrella", 50)];
    let (client, secrets) = client_with_keys(script(bytes("x")), keys);
    let ask = async |secret: &str, fields: Value| {
        let (status, text) = text_of(client.send(chat_with(secret, &fields)).await).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        let request = client.engine.last_request();
        (request.tenant, request.salt, request.priority)
    };
    let first = ask(&secrets[0], json!({})).await;
    let second = ask(&secrets[1], json!({"user": "umbrella"})).await;
    let third = ask(&secrets[2], json!({})).await;
    assert_eq!((first.0, first.1), (second.0, second.1));
    assert_ne!(first.0, third.0);
    assert_ne!(first.1, third.1);
    assert!(first.0.0 != 0 && first.1.0 != 0, "the tenant without a key");
    assert_eq!((first.2, second.2), (Priority(50), Priority(60)));
    // A client can wait longer, and cannot go ahead.
    assert_eq!(ask(&secrets[0], json!({"priority": 7})).await.2, Priority(57));
    assert_eq!(ask(&secrets[0], json!({"priority": -7})).await.2, Priority(50));
}

#[tokio::test]
async fn tokens_of_prompts_and_answers_are_counted() {
    let limits = Limits { tokens_per_minute: NonZeroU32::new(60), ..Limits::default() };
    let (client, secret) = client_with_key(script(bytes(&"x".repeat(70))), limits);
    let begin = Instant::now();
    let (status, text) = text_of(client.send(chat_with(&secret, &json!({}))).await).await;
    assert_eq!(status, StatusCode::OK);
    let usage: Value = serde_json::from_str(&text).unwrap();
    let used = usage["usage"]["total_tokens"].as_u64().unwrap();
    assert!(used > 70, "{text}");
    let refused = client.send(chat(&secret)).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    // What is missing, and one more, comes back at a token a second; some may be back already.
    let (wait, missing) = (u64::from(retry_after(&refused)), used - 60 + 1);
    let back = begin.elapsed().as_secs();
    assert!((missing.saturating_sub(back)..=missing).contains(&wait), "{wait} s for {used} tokens");
}

#[tokio::test]
async fn a_stream_that_is_left_is_charged_for_what_it_got() {
    let limits = Limits { tokens_per_minute: NonZeroU32::new(10), ..Limits::default() };
    let then = Then::Hang;
    let (client, secret) =
        client_with_key(Script { then, ..script(bytes(&"x".repeat(40))) }, limits);
    let mut body = client.send(chat(&secret)).await.into_body().into_data_stream();
    let mut events = 0;
    while events < 20 {
        let frame = body.next().await.unwrap().unwrap();
        events += frame.windows(6).filter(|window| window == b"data: ").count();
    }
    drop(body);
    client.idle().await;
    let refused = client.send(chat(&secret)).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert!(retry_after(&refused) > 60, "{}", retry_after(&refused));
}
