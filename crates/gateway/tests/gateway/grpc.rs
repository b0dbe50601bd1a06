//! The gRPC port keeps the limits of the HTTP port, over real connections.

use std::time::Duration;

use axum::http::StatusCode;
use bytes::Bytes;
use oarlock_gateway::GatewayConfig;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::fake_engine::{END, MODEL, bytes, chat_body, script};
use crate::grpc_client::{
    DEADLINE_EXCEEDED, GENERATE, GrpcClient, HEALTH, INVALID_ARGUMENT, LIST_MODELS, OK,
    RESOURCE_EXHAUSTED, TOKENIZE, UNAVAILABLE, answer, field, frame, number, text_request,
};
use crate::patience::{LONG, SHORT, endless, rest};
use crate::sockets::{Running, hanging, request, start};

/// What the health service says when requests are computed, and when not.
const SERVING: &[u8] = &[8, 1];
const NOT_SERVING: &[u8] = &[8, 2];

#[tokio::test]
async fn silent_and_foreign_connections_are_closed() {
    let config = GatewayConfig { header_timeout: SHORT, ..GatewayConfig::default() };
    let running = start(script(bytes("x")), config).await;
    let begin = Instant::now();
    let mut silent = TcpStream::connect(running.grpc).await.unwrap();
    let _ = timeout(LONG, tokio::io::copy(&mut silent, &mut tokio::io::sink())).await.unwrap();
    assert!(begin.elapsed() >= SHORT / 2);
    // HTTP/2 that never calls anything.
    let stream = TcpStream::connect(running.grpc).await.unwrap();
    let (_client, connection) = h2::client::handshake(stream).await.unwrap();
    let _ = timeout(LONG, connection).await.expect("it is closed");
    // HTTP/1.1 is not spoken here.
    let mut http1 = TcpStream::connect(running.grpc).await.unwrap();
    http1.write_all(request("GET", "/health", "").as_bytes()).await.unwrap();
    let mut said = Vec::new();
    let reading = tokio::io::AsyncReadExt::read_to_end(&mut http1, &mut said);
    let _ = timeout(LONG, reading).await.expect("it is closed");
    assert!(!said.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn idle_connections_are_closed() {
    let config = GatewayConfig { idle_timeout: SHORT, ..GatewayConfig::default() };
    let running = start(script(bytes("x")), config).await;
    let stream = TcpStream::connect(running.grpc).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    let ended = tokio::spawn(connection);
    let head = axum::http::Request::post(format!("http://x{HEALTH}"));
    let begin = Instant::now();
    let (response, mut sending) = client.send_request(head.body(()).unwrap(), false).unwrap();
    sending.send_data(frame(b""), true).unwrap();
    assert_eq!(answer(response).await.status, OK);
    let _ = timeout(LONG, ended).await.expect("it is closed");
    assert!(begin.elapsed() >= SHORT, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_stream_that_nobody_reads_ends_alone() {
    let config = GatewayConfig { write_timeout: SHORT, ..GatewayConfig::default() };
    let running = start(endless(), config).await;
    let mut client = GrpcClient::with_window(running.grpc, 1000).await;
    let long = [text_request("ab", 190), field(7, number(1, 20))].concat();
    let _unread = client.stream(GENERATE, &long).await;
    assert_eq!(running.num_begun(), 1);
    // Others on the connection are answered meanwhile.
    assert_eq!(client.call(LIST_MODELS, b"").await.status, OK);
    // The unread one is cancelled, perhaps before this looks.
    running.live(0).await;
    assert_eq!(client.call(HEALTH, b"").await.status, OK, "the connection goes on");
}

#[tokio::test]
async fn both_ports_count_connections_of_one_address() {
    let config = GatewayConfig { max_connections_per_address: 2, ..GatewayConfig::default() };
    let running = start(hanging(), config).await;
    let body = chat_body(&json!({})).to_string();
    let first = running.open(&request("POST", "/v1/chat/completions", &body)).await;
    running.live(1).await;
    let mut second = GrpcClient::new(running.grpc).await;
    let _stream = second.stream(GENERATE, &text_request("ab", 5)).await;
    running.live(2).await;
    let mut third = TcpStream::connect(running.address).await.unwrap();
    assert!(rest(&mut third).await.starts_with("HTTP/1.1 429"));
    let mut third = TcpStream::connect(running.grpc).await.unwrap();
    assert!(rest(&mut third).await.ends_with('\u{b}'), "go away: enhance your calm");
    let fourth = TcpStream::connect(running.grpc).await.unwrap();
    if let Ok((client, connection)) = h2::client::handshake::<_>(fourth).await {
        let error = timeout(LONG, connection).await.unwrap().unwrap_err();
        assert!(error.is_io() || error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM), "{error}");
        drop(client);
    }
    drop(first);
    running.live(1).await;
    let again = async {
        loop {
            let stream = TcpStream::connect(running.grpc).await.unwrap();
            let Ok((client, connection)) = h2::client::handshake::<_>(stream).await else {
                continue;
            };
            let connection = tokio::spawn(connection);
            let Ok(mut client) = client.ready().await else { continue };
            let head = axum::http::Request::post(format!("http://x{HEALTH}")).body(()).unwrap();
            let Ok((response, mut sending)) = client.send_request(head, false) else { continue };
            let _ = sending.send_data(frame(b""), true);
            if response.await.is_ok_and(|response| response.status() == StatusCode::OK) {
                connection.abort();
                return;
            }
        }
    };
    timeout(LONG, again).await.expect("there is room again");
}

#[tokio::test]
async fn answers_come_piece_by_piece_and_end_with_trailers() {
    let mut engine = script([bytes("hey"), vec![END]].concat());
    engine.cached_tokens = 1;
    let running = start(engine, GatewayConfig::default()).await;
    let mut client = GrpcClient::new(running.grpc).await;
    let answer = client.call(GENERATE, &text_request("ab", 50)).await;
    assert_eq!((answer.status.as_str(), answer.is_head_only), (OK, false));
    // The events by their field numbers: started, pieces, finished, usage.
    let kinds: Vec<u8> = answer.messages.iter().map(|message| message[0] >> 3).collect();
    assert_eq!(kinds, [1, 2, 2, 2, 3, 4]);
    let usage = [number(1, 2), number(2, 4), number(3, 1)].concat();
    assert_eq!(answer.messages[5], field(4, usage));
    // An error has its details in the trailers.
    let request = [field(1, MODEL), field(2, "ab"), field(6, number(1, 0))].concat();
    let wrong = client.call(GENERATE, &request).await;
    assert_eq!((wrong.status.as_str(), wrong.is_head_only), (INVALID_ARGUMENT, true));
    assert!(wrong.trailers.contains_key("grpc-status-details-bin"), "{wrong:?}");
    // Nothing is held back while the engine goes on.
    *running.client.engine.script.lock().unwrap() = hanging();
    let mut stream = client.stream(GENERATE, &text_request("ab", 5)).await;
    let mut so_far = Vec::new();
    while !so_far.ends_with(&field(2, field(2, "x"))) {
        let data = timeout(LONG, stream.data()).await.expect("pieces as they are").unwrap();
        so_far.extend_from_slice(&data.unwrap());
    }
}

#[tokio::test]
async fn a_cancelled_call_frees_the_engine() {
    let running = start(hanging(), GatewayConfig::default()).await;
    let mut client = GrpcClient::new(running.grpc).await;
    let stream = client.stream(GENERATE, &text_request("ab", 5)).await;
    running.live(1).await;
    drop(stream);
    running.live(0).await;
    // The client is gone as a whole.
    let stream = client.stream(GENERATE, &text_request("ab", 5)).await;
    running.live(1).await;
    drop((stream, client));
    running.live(0).await;
}

#[tokio::test]
async fn messages_are_bounded_in_size_time_and_sum() {
    let config = GatewayConfig {
        max_body_bytes: 1000,
        max_bodies_bytes: 40 << 10,
        body_timeout: SHORT,
        ..GatewayConfig::default()
    };
    let running = start(script(bytes("x")), config).await;
    let mut client = GrpcClient::new(running.grpc).await;
    for path in [GENERATE, TOKENIZE, LIST_MODELS] {
        let answer = client.call(path, &text_request(&"x".repeat(2000), 1)).await;
        assert_eq!(answer.status, RESOURCE_EXHAUSTED, "{path}: {answer:?}");
        assert!(answer.message.contains("1000"), "{answer:?}");
    }
    for path in [HEALTH, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"] {
        let answer = client.call(path, &text_request(&"x".repeat(100 << 10), 1)).await;
        assert!(answer.messages.is_empty(), "{path}: {answer:?}");
    }
    // A message that does not come.
    for path in [GENERATE, LIST_MODELS, HEALTH] {
        let (response, mut sending) = client.open(path);
        sending.send_data(Bytes::from_static(&[0, 0, 0]), false).unwrap();
        assert_eq!(answer(response).await.status, DEADLINE_EXCEEDED, "{path}");
    }
    // Many elements in few bytes.
    let many = field(4, field(1, b"").repeat(400));
    let answer = client.call(GENERATE, &many).await;
    assert_eq!(answer.status, UNAVAILABLE, "{answer:?}");
    assert_eq!(client.call(GENERATE, &text_request("ab", 1)).await.status, OK);
}

#[tokio::test]
async fn the_clients_own_time_holds() {
    let running = start(script(bytes("x")), GatewayConfig::default()).await;
    let client = GrpcClient::new(running.grpc).await;
    let (response, _sending) = client.timeout("50m").open(GENERATE);
    assert_eq!(answer(response).await.status, DEADLINE_EXCEEDED);
    let mut patient = client.timeout("1M");
    assert_eq!(patient.call(GENERATE, &text_request("ab", 1)).await.status, OK);
}

#[tokio::test]
async fn calls_finish_while_new_ones_are_refused() {
    let running = start(hanging(), GatewayConfig::default()).await;
    let mut client = GrpcClient::new(running.grpc).await;
    let healthy = async |client: &mut GrpcClient, expected: &[u8]| {
        while client.call(HEALTH, b"").await.messages != [expected] {}
    };
    timeout(LONG, healthy(&mut client, SERVING)).await.unwrap();
    let stream = client.stream(GENERATE, &text_request("ab", 5)).await;
    running.live(1).await;
    let Running { grpc, stop, server, .. } = running;
    stop.send(()).unwrap();
    timeout(LONG, healthy(&mut client, NOT_SERVING)).await.unwrap();
    let mut other = GrpcClient::new(grpc).await;
    assert_eq!(other.call(GENERATE, &text_request("ab", 5)).await.status, UNAVAILABLE);
    assert!(!server.is_finished());
    drop(stream);
    timeout(LONG, server).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect(grpc).await.is_err());
}

#[tokio::test]
async fn a_drain_ends_in_bounded_time_although_somebody_watches_health() {
    let config =
        GatewayConfig { drain_timeout: Duration::from_millis(50), ..GatewayConfig::default() };
    let running = start(hanging(), config).await;
    let mut client = GrpcClient::new(running.grpc).await;
    let _watched = client.stream("/grpc.health.v1.Health/Watch", b"").await;
    let _stream = client.stream(GENERATE, &text_request("ab", 5)).await;
    running.live(1).await;
    running.stop.send(()).unwrap();
    timeout(LONG, running.server).await.unwrap().unwrap().unwrap();
    assert_eq!(*running.client.engine.live.borrow(), 0);
}

#[tokio::test]
async fn conversations_carry_tool_calls() {
    let message = |fields: &[(u8, &str)]| {
        let fields: Vec<_> = fields.iter().map(|(number, text)| field(*number, text)).collect();
        field(1, fields.concat())
    };
    let calls = r#"[{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]"#;
    let conversation = |calls: &str| {
        let messages = [
            message(&[(1, "user"), (2, "hi")]),
            message(&[(1, "assistant"), (5, calls)]),
            message(&[(1, "tool"), (2, "21"), (4, "c1")]),
        ];
        let tools = r#"[{"type": "function", "function": {"name": "f"}}]"#;
        let chat = [messages.concat(), field(3, r#"{"note": "n"}"#), field(4, tools)].concat();
        [field(1, MODEL), field(4, chat), field(6, number(1, 1))].concat()
    };
    // Where it arrives, and on a thread of its own.
    for inline_bytes in [1 << 20, 0] {
        let config = GatewayConfig { inline_bytes, ..GatewayConfig::default() };
        let running = start(script(bytes("x")), config).await;
        let mut client = GrpcClient::new(running.grpc).await;
        let answer = client.call(GENERATE, &conversation(calls)).await;
        assert_eq!(answer.status, OK, "{answer:?}");
        let prompt = running.client.engine.last_request().tokens;
        let prompt: Vec<u8> = prompt.iter().map(|token| token.0 as u8).collect();
        let prompt = String::from_utf8(prompt).unwrap();
        assert!(prompt.starts_with("user:hi|assistant:"), "{prompt}");
        assert!(prompt.ends_with("[{\"a\": 1}]|tool:21|1 tools|n|>"), "{prompt}");
        let answer = client.call(GENERATE, &conversation("[{")).await;
        assert_eq!(answer.status, INVALID_ARGUMENT, "{answer:?}");
        assert!(answer.message.contains("messages[1].tool_calls_json"), "{answer:?}");
        // A template writes its special tokens itself; a text may have them or not.
        let special = number(10, 1);
        let answer = client.call(GENERATE, &[conversation(calls), special.clone()].concat()).await;
        assert!(answer.message.contains("add_special_tokens"), "{answer:?}");
        let answer = client.call(GENERATE, &[text_request("ab", 1), special].concat()).await;
        assert_eq!(answer.status, OK, "{answer:?}");
    }
}
