//! A server that answers at once and by script: every figure it leads to is known.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

/// What the server does.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    /// Fields that are refused with a 400.
    pub(crate) unknown_fields: Vec<&'static str>,
    /// Whether `/tokenize` is there: one token per word, ids from 1000.
    pub(crate) has_tokenize: bool,
    /// Tokens of a prompt beside its words.
    pub(crate) overhead: u64,
    /// Whether token counts are reported.
    pub(crate) counts_tokens: bool,
    /// Served models.
    pub(crate) models: Vec<&'static str>,
    /// The key that is wanted.
    pub(crate) key: Option<&'static str>,
    /// Of the requests for more than one token: what happens to every `n`-th, counted from 1.
    pub(crate) faults: Vec<(u64, Fault)>,
    /// So many of the first requests for more than one token never end.
    pub(crate) num_hanging: usize,
    /// What an answer of more than one token takes to begin.
    pub(crate) delay: Duration,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// 429.
    Busy,
    /// An error event after the first token.
    ErrorEvent,
    /// The connection breaks after the first token.
    BreaksOff,
}

/// A server on a free port, until it is dropped.
pub(crate) struct FakeServer {
    pub(crate) url: String,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    script: Script,
    /// Bodies of requests for more than one token, in the order of their arrival.
    requests: Mutex<Vec<Value>>,
}

impl FakeServer {
    pub(crate) async fn start(script: Script) -> Self {
        let shared = Arc::new(Shared { script, requests: Mutex::default() });
        let router = Router::new()
            .route("/v1/models", get(models))
            .route("/v1/completions", post(generate))
            .route("/v1/chat/completions", post(generate))
            .route("/tokenize", post(tokenize))
            .with_state(Arc::clone(&shared));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, shared, task }
    }

    /// What was asked for, without the requests that only look at the server.
    pub(crate) fn requests(&self) -> Vec<Value> {
        self.shared.requests.lock().unwrap().clone()
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn models(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    if let Some(key) = shared.script.key {
        let given = headers.get("authorization").and_then(|value| value.to_str().ok());
        if given != Some(format!("Bearer {key}").as_str()) {
            return error(StatusCode::UNAUTHORIZED, "no such key");
        }
    }
    let models: Vec<Value> =
        shared.script.models.iter().map(|id| json!({"id": id, "object": "model"})).collect();
    axum::Json(json!({"object": "list", "data": models})).into_response()
}

async fn tokenize(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    if !shared.script.has_tokenize {
        return error(StatusCode::NOT_FOUND, "no such path");
    }
    let body: Value = serde_json::from_slice(&body).unwrap();
    let count = body["prompt"].as_str().unwrap().split_whitespace().count();
    axum::Json(json!({"count": count, "tokens": (1000..1000 + count).collect::<Vec<_>>()}))
        .into_response()
}

fn error(status: StatusCode, message: &str) -> Response {
    (status, axum::Json(json!({"error": {"message": message, "type": "x"}}))).into_response()
}

fn count_words(body: &Value) -> u64 {
    let words = |text: &Value| text.as_str().unwrap().split_whitespace().count();
    let count = match (&body["prompt"], body["messages"].as_array()) {
        (Value::Array(tokens), _) => return tokens.len() as u64,
        (prompt, None) => words(prompt),
        (_, Some(messages)) => messages.iter().map(|message| words(&message["content"])).sum(),
    };
    count as u64
}

async fn generate(State(shared): State<Arc<Shared>>, body: Bytes) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap();
    let script = &shared.script;
    if let Some(field) = script.unknown_fields.iter().find(|field| !body[**field].is_null()) {
        return error(StatusCode::BAD_REQUEST, &format!("unknown field {field}"));
    }
    let limit = [&body["max_tokens"], &body["max_completion_tokens"]];
    let limit = limit.iter().find_map(|limit| limit.as_u64()).unwrap();
    let (mut fault, mut hangs) = (None, false);
    if limit > 1 {
        let number = {
            let mut requests = shared.requests.lock().unwrap();
            requests.push(body.clone());
            requests.len()
        };
        let is_nth = |nth: &u64| (number as u64).is_multiple_of(*nth);
        fault = script.faults.iter().find(|(nth, _)| is_nth(nth)).map(|(_, fault)| *fault);
        hangs = number <= script.num_hanging;
        if !script.delay.is_zero() {
            tokio::time::sleep(script.delay).await;
        }
    }
    if matches!(fault, Some(Fault::Busy)) {
        return error(StatusCode::TOO_MANY_REQUESTS, "the queue is full");
    }
    let is_chat = body["messages"].is_array();
    let mut events: Vec<Result<String, std::io::Error>> = Vec::new();
    for index in 0..limit {
        let text = format!(" t{index}");
        let choice =
            if is_chat { json!({"delta": {"content": text}}) } else { json!({"text": text}) };
        events.push(Ok(format!("data: {}\n\n", json!({"choices": [choice]}))));
        match fault {
            Some(Fault::ErrorEvent) => {
                events.push(Ok("data: {\"error\": {\"message\": \"it broke\"}}\n\n".to_owned()));
                break;
            }
            Some(Fault::BreaksOff) => {
                events.push(Err(std::io::Error::other("broken on purpose")));
                break;
            }
            _ => {}
        }
    }
    if fault.is_none() {
        let usage = json!({
            "prompt_tokens": count_words(&body) + script.overhead, "completion_tokens": limit,
            "prompt_tokens_details": {"cached_tokens": 1},
        });
        let wants_usage = body["stream_options"]["include_usage"] == true;
        if wants_usage && script.counts_tokens {
            events.push(Ok(format!("data: {}\n\n", json!({"choices": [], "usage": usage}))));
        }
        events.push(Ok("data: [DONE]\n\n".to_owned()));
    }
    let stream = futures::stream::iter(events);
    let tail = futures::stream::once(async move {
        if hangs {
            std::future::pending::<()>().await;
        }
        Ok::<_, std::io::Error>(String::new())
    });
    let body = if hangs { Body::from_stream(tail) } else { Body::from_stream(stream) };
    let result: Result<_, Infallible> = Ok(([("content-type", "text/event-stream")], body));
    result.into_response()
}
