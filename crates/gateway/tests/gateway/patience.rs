//! Clients that are slow, greedy or gone: each limit of the server, over real connections.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use bytes::Bytes;
use h2::client::SendRequest;
use oarlock_gateway::GatewayConfig;
use oarlock_types::Tick;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, interval};

use crate::fake_engine::{
    Script, Then, bytes, chat_body, client_with, completion_body, script, text_of,
};
use crate::sockets::{Running, hanging, request, start};

pub(crate) const SHORT: Duration = Duration::from_millis(200);
/// Nothing here takes so long unless it is broken.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// Waits for the server to close; what it said before.
pub(crate) async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let reading = tokio::time::timeout(LONG, stream.read_to_end(&mut answer));
    // Closing with unread bytes is a reset; both are an end.
    let _ = reading.await.expect("the server ends the connection");
    String::from_utf8(answer).unwrap()
}

/// An answer of several hundred kilobytes that then never ends.
pub(crate) fn endless() -> Script {
    Script { then: Then::Hang, ..script(bytes(&"x".repeat(190))) }
}

fn long_stream() -> String {
    completion_body(&json!({"stream": true, "max_tokens": 190, "logprobs": 20})).to_string()
}

/// A request on a connection that stays open; whether it was answered.
async fn is_answered(stream: &mut TcpStream) -> bool {
    let (mut head, mut body) = ([0; 15], [0; 512]);
    let sent = stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await;
    if sent.is_err() || stream.read_exact(&mut head).await.is_err() {
        return false;
    }
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    assert!(stream.read(&mut body).await.unwrap() > 0);
    true
}

/// A connection that is in use for longer than the limit in all, with pauses that are shorter, and then
/// idle until it ends; false where a busy machine made one of the pauses as long as the limit.
async fn is_in_use_and_then_idle(address: SocketAddr) -> bool {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut ticks = interval(SHORT / 4);
    let begin = Instant::now();
    let mut sent = begin;
    while begin.elapsed() < 2 * SHORT {
        ticks.tick().await;
        let before = sent;
        sent = Instant::now();
        if !is_answered(&mut stream).await {
            assert!(before.elapsed() >= SHORT, "it ended after {:?}", before.elapsed());
            return false;
        }
    }
    assert_eq!(rest(&mut stream).await, "");
    assert!(sent.elapsed() >= SHORT, "{:?}", sent.elapsed());
    true
}

#[tokio::test]
async fn an_idle_connection_ends_and_one_in_use_does_not() {
    let config = GatewayConfig { idle_timeout: SHORT, ..GatewayConfig::default() };
    let running = start(script(bytes("x")), config).await;
    for _ in 0..20 {
        if is_in_use_and_then_idle(running.address).await {
            return;
        }
    }
    panic!("no connection could be kept in use");
}

#[tokio::test]
async fn a_head_that_drips_is_cut_off() {
    let config = GatewayConfig { header_timeout: SHORT, ..GatewayConfig::default() };
    let running = start(script(bytes("x")), config).await;
    let mut silent = TcpStream::connect(running.address).await.unwrap();
    for start in ["G", "PRI * HTTP/2.0\r\n"] {
        let mut dripping = running.open(start).await;
        let (begin, mut ticks) = (Instant::now(), interval(SHORT / 10));
        while dripping.write_all(b"x").await.is_ok() {
            ticks.tick().await;
            assert!(begin.elapsed() < LONG, "{start:?} is never cut off");
        }
    }
    assert_eq!(rest(&mut silent).await, "");
}

#[tokio::test]
async fn a_stream_that_nobody_reads_is_cancelled() {
    let config = GatewayConfig { write_timeout: SHORT, ..GatewayConfig::default() };
    let running = start(endless(), config).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(running.address).await.unwrap();
    let post = request("POST", "/v1/completions", &long_stream());
    stream.write_all(post.as_bytes()).await.unwrap();
    let mut head = [0; 15];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!((&head, running.num_begun()), (b"HTTP/1.1 200 OK", 1));
    // The generation is cancelled, perhaps before this looks.
    running.live(0).await;
    // Its answer was cut off.
    assert!(!rest(&mut stream).await.contains("[DONE]"));
}

#[tokio::test]
async fn a_stray_byte_does_not_hide_that_the_client_is_gone() {
    let running = start(hanging(), GatewayConfig::default()).await;
    for stream in [false, true] {
        let body = chat_body(&json!({"stream": stream})).to_string();
        let post =
            request("POST", "/v1/chat/completions", &body).replace("connection: close\r\n", "");
        let connection = running.open(&format!("{post}\r\nx")).await;
        running.live(1).await;
        drop(connection);
        running.live(0).await;
    }
}

#[tokio::test]
async fn one_address_has_so_many_connections() {
    let config = GatewayConfig { max_connections_per_address: 2, ..GatewayConfig::default() };
    let running = start(hanging(), config).await;
    let body = chat_body(&json!({})).to_string();
    let post = request("POST", "/v1/chat/completions", &body);
    let (first, _second) = (running.open(&post).await, running.open(&post).await);
    running.live(2).await;
    let mut third = TcpStream::connect(running.address).await.unwrap();
    let refused = rest(&mut third).await;
    assert!(refused.starts_with("HTTP/1.1 429") && refused.contains("retry-after"), "{refused}");
    drop(first);
    running.live(1).await;
    let health = request("GET", "/health", "");
    let again = async { while !running.exchange(&health).await.starts_with("HTTP/1.1 200") {} };
    tokio::time::timeout(LONG, again).await.expect("there is room again");
}

#[tokio::test]
async fn heads_with_too_many_fields_are_refused() {
    let config = GatewayConfig { max_headers: 20, ..GatewayConfig::default() };
    let running = start(script(bytes("x")), config).await;
    let head = |count: usize| {
        let fields = "x-field: y\r\n".repeat(count);
        format!("GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{fields}\r\n")
    };
    assert!(running.exchange(&head(18)).await.starts_with("HTTP/1.1 200"));
    assert!(running.exchange(&head(19)).await.starts_with("HTTP/1.1 431"));
}

#[tokio::test]
async fn bodies_share_a_budget() {
    let config = GatewayConfig { max_bodies_bytes: 64 << 10, ..GatewayConfig::default() };
    let client = client_with(hanging(), config);
    let padded = |bytes: usize| {
        let mut body = chat_body(&json!({"stream": false})).to_string();
        body.push_str(&" ".repeat(bytes));
        Request::post("/v1/chat/completions").body(Body::from(body)).unwrap()
    };
    let first = tokio::spawn({
        let router = client.router.clone();
        let request = padded(40 << 10);
        async move { tower::ServiceExt::oneshot(router, request).await }
    });
    client.engine.live.subscribe().wait_for(|live| *live == 1).await.unwrap();
    let refused = client.send(padded(40 << 10)).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers()["retry-after"], "1");
    let body: Value = serde_json::from_str(&text_of(refused).await.1).unwrap();
    assert_eq!(body["error"]["code"], "overloaded");
    // Values take more than their text: 1,000 numbers in 2 kB.
    let many = format!("{{\"tokens\": [{}1], \"model\": 1}}", "1,".repeat(1000));
    let (status, _) = client.post_text("/detokenize", many.clone()).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    first.abort();
    client.idle().await;
    assert_eq!(client.post_text("/detokenize", many).await.0, StatusCode::BAD_REQUEST);
    // More than all of it goes alone.
    client.engine.script.lock().unwrap().then = Then::Break;
    assert_ne!(client.send(padded(100 << 10)).await.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn json_is_bounded_in_depth() {
    let client = client_with(script(bytes("x")), GatewayConfig::default());
    let nested =
        |depth: usize| format!("{{\"metadata\": {}1{}}}", "[".repeat(depth), "]".repeat(depth));
    let (status, text) = client.post_text("/v1/completions", nested(200)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(text.contains("recursion limit"), "{text}");
    let (status, text) = client.post_text("/v1/completions", nested(100)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(text.contains("'model'"), "{text}");
}

#[tokio::test]
async fn the_time_of_a_request_reaches_the_engine() {
    let request_timeout = Some(Duration::from_secs(5));
    let config = GatewayConfig { request_timeout, ..GatewayConfig::default() };
    let client = client_with(script(bytes("x")), config);
    assert_eq!(client.chat(&json!({})).await.0, StatusCode::OK);
    assert_eq!(client.engine.last_request().deadline, Some(Tick(5_000_000)));
}

/// A client of HTTP/2 whose streams take `window` bytes each.
async fn http2(running: &Running, window: u32) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(running.address).await.unwrap();
    let (client, connection) = h2::client::Builder::new()
        .initial_window_size(window)
        .handshake::<_, Bytes>(stream)
        .await
        .unwrap();
    tokio::spawn(connection);
    client.ready().await.unwrap()
}

async fn post(client: &mut SendRequest<Bytes>, body: &str) -> h2::RecvStream {
    let head = axum::http::Request::post("http://x/v1/completions").body(()).unwrap();
    let (response, mut sending) = client.send_request(head, false).unwrap();
    sending.send_data(Bytes::from(body.to_owned()), true).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    response.into_body()
}

#[tokio::test]
async fn over_http2_one_stream_that_is_not_read_ends_alone() {
    let config = GatewayConfig { write_timeout: SHORT, ..GatewayConfig::default() };
    let running = start(endless(), config).await;
    let mut client = http2(&running, 1000).await;
    // This one fits into its window, and then there is nothing to take.
    let short = completion_body(&json!({"stream": true, "max_tokens": 1})).to_string();
    let mut read = post(&mut client, &short).await;
    let _unread = post(&mut client, &long_stream()).await;
    assert_eq!(running.num_begun(), 2);
    // The unread one is cancelled, perhaps before this looks.
    running.live(1).await;
    // The other goes on: its events so far can still be taken.
    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).contains("\"text\":\"x\"") {
        let data = tokio::time::timeout(LONG, read.data()).await.unwrap().unwrap().unwrap();
        read.flow_control().release_capacity(data.len()).unwrap();
        text.extend_from_slice(&data);
    }
    assert_eq!(*running.client.engine.live.borrow(), 1);
}

#[tokio::test]
async fn an_idle_http2_connection_ends_although_it_answers_pings() {
    let config = GatewayConfig { idle_timeout: SHORT, ..GatewayConfig::default() };
    let running = start(script(bytes("x")), config).await;
    let stream = TcpStream::connect(running.address).await.unwrap();
    let (mut client, mut connection) = h2::client::handshake(stream).await.unwrap();
    let mut pings = connection.ping_pong().unwrap();
    let ended = tokio::spawn(connection);
    let mut answer = post(&mut client, &completion_body(&json!({})).to_string()).await;
    while answer.data().await.is_some() {}
    let begin = Instant::now();
    while pings.ping(h2::Ping::opaque()).await.is_ok() {
        tokio::time::sleep(SHORT / 10).await;
        assert!(begin.elapsed() < LONG, "it never ends");
    }
    let _ = ended.await.unwrap();
}

#[tokio::test]
async fn one_http2_connection_has_so_many_streams() {
    let config = GatewayConfig { max_http2_streams: 2, ..GatewayConfig::default() };
    let running = start(hanging(), config).await;
    let mut client = http2(&running, 1 << 16).await;
    let body = completion_body(&json!({"stream": true})).to_string();
    let first = post(&mut client, &body).await;
    let _second = post(&mut client, &body).await;
    running.live(2).await;
    let third = tokio::spawn({
        let (mut client, body) = (client.clone().ready().await.unwrap(), body.clone());
        async move { post(&mut client, &body).await }
    });
    assert_eq!(*running.client.engine.live.borrow(), 2);
    drop(first);
    let _third = tokio::time::timeout(LONG, third).await.unwrap().unwrap();
    running.live(2).await;
    assert_eq!(running.num_begun(), 3);
}
