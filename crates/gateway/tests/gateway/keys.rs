//! Keys: who is let in, and how much of it.

use std::num::NonZeroU32;
use std::path::Path;
use std::time::SystemTime;

use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use oarlock_access::{Access, KeysFile, Limits, NewKey};
use oarlock_gateway::GatewayConfig;
use serde_json::{Value, json};

use crate::fake_engine::{Client, Script, bytes, chat_body, client, client_with, script, text_of};
use crate::sockets::hanging;

/// A router with one key, and the key.
pub(crate) fn client_with_key(script: Script, limits: Limits) -> (Client, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.toml");
    let secret = add(&path, limits);
    let access = Access::load(&path).unwrap();
    (client_with(script, GatewayConfig { access, ..GatewayConfig::default() }), secret)
}

fn add(path: &Path, limits: Limits) -> String {
    let key = NewKey { tenant: "acme".to_owned(), limits, ..NewKey::default() };
    KeysFile::edit(path, true, |file| {
        let (_, secret) = file.add(key, SystemTime::now())?;
        Ok(secret.expose().to_owned())
    })
    .unwrap()
}

fn chat(secret: &str) -> Request<Body> {
    let body = Body::from(chat_body(&json!({"stream": true})).to_string());
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
