//! Models, health, readiness, metrics, and engines that come and go.

use std::sync::Arc;

use axum::http::StatusCode;
use oarlock_discovery::Member;
use serde_json::{Value, json};

use crate::fake_engine::{CONTEXT, FakeEngine, MODEL, bytes, client, script};

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[tokio::test]
async fn models_are_listed() {
    let client = client(script(vec![]));
    let (status, text) = client.get("/v1/models").await;
    assert_eq!(status, StatusCode::OK);
    let list = parse(&text);
    assert_eq!(list["object"], "list");
    let model = &list["data"][0];
    assert_eq!((&model["id"], &model["object"]), (&json!(MODEL), &json!("model")));
    assert_eq!(model["max_model_len"], CONTEXT);
    let (status, text) = client.get("/v1/models/org/fake").await;
    assert_eq!((status, &parse(&text)), (StatusCode::OK, model));
    let (status, text) = client.get("/v1/models/none").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(parse(&text)["error"]["code"], "model_not_found");
}

#[tokio::test]
async fn an_engine_that_loads_is_not_ready_yet() {
    let mut loading = script(bytes("x"));
    loading.unavailable = true;
    let client = client(loading);
    assert_eq!(client.get("/health").await.0, StatusCode::OK);
    let (status, text) = client.get("/ready").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(parse(&text)["engines"][0]["state"], "starting");
    let (status, body) = client.chat(&json!({})).await;
    assert_eq!(
        (status, &body["error"]["code"]),
        (StatusCode::SERVICE_UNAVAILABLE, &json!("unavailable"))
    );
    let (_, text) = client.get("/v1/models").await;
    assert_eq!(parse(&text)["data"][0]["max_model_len"], Value::Null);
    // Once it is up, the next request finds it.
    client.engine.script.lock().unwrap().unavailable = false;
    assert_eq!(client.get("/ready").await.0, StatusCode::OK);
    assert_eq!(client.chat(&json!({})).await.0, StatusCode::OK);
}

#[tokio::test]
async fn engines_come_and_go() {
    let client = client(script(bytes("x")));
    assert_eq!(client.chat(&json!({})).await.0, StatusCode::OK);
    let other = FakeEngine::new(script(bytes("y")));
    let member = |engine: &Arc<FakeEngine>| Member {
        id: "e0".to_owned(),
        served_name: MODEL.to_owned(),
        engine: engine.clone(),
    };
    client.discovery.register(member(&other));
    let (_, body) = client.chat(&json!({})).await;
    assert_eq!(body["choices"][0]["message"]["content"], "y");
    client.discovery.deregister("e0");
    assert_eq!(client.chat(&json!({})).await.0, StatusCode::NOT_FOUND);
    assert_eq!(client.get("/ready").await.0, StatusCode::SERVICE_UNAVAILABLE);
    client.discovery.register(member(&other));
    assert_eq!(client.chat(&json!({})).await.0, StatusCode::OK);
}

#[tokio::test]
async fn metrics_count_requests_and_tokens() {
    let client = client(script(bytes("abc")));
    assert_eq!(client.chat(&json!({})).await.0, StatusCode::OK);
    assert_eq!(client.chat(&json!({"n": 0})).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(client.get("/invented").await.0, StatusCode::NOT_FOUND);
    let (status, text) = client.get("/metrics").await;
    assert_eq!(status, StatusCode::OK);
    for line in [
        r#"oarlock_request_success_total{model_name="org/fake",finished_reason="length"} 1"#,
        r#"oarlock_request_success_total{model_name="org/fake",finished_reason="abort"} 0"#,
        r#"oarlock_e2e_request_latency_seconds_count{model_name="org/fake"} 1"#,
        r#"oarlock_http_requests_total{route="/v1/chat/completions",status="200"} 1"#,
        r#"oarlock_http_requests_total{route="/v1/chat/completions",status="400"} 1"#,
        r#"oarlock_http_requests_total{route="other",status="404"} 1"#,
        r#"oarlock_time_to_first_token_seconds_count{model_name="org/fake"} 1"#,
        r#"oarlock_inter_token_latency_seconds_count{model_name="org/fake"} 2"#,
        r#"oarlock_num_requests_running{engine="e0",model_name="org/fake"} 1.0"#,
    ] {
        assert!(text.contains(line), "{line} not in\n{text}");
    }
}

#[tokio::test]
async fn the_version_is_known() {
    let client = client(script(vec![]));
    let (status, text) = client.get("/version").await;
    assert_eq!(
        (status, parse(&text)),
        (StatusCode::OK, json!({"version": env!("CARGO_PKG_VERSION")}))
    );
}
