//! Real connections: disconnects, limits, draining.

use std::net::SocketAddr;
use std::time::Duration;

use oarlock_gateway::{GatewayConfig, Listeners, serve};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::fake_engine::{Client, Script, Then, bytes, chat_body, client, script};
use crate::patience::LONG;

pub(crate) struct Running {
    pub(crate) client: Client,
    pub(crate) address: SocketAddr,
    /// Where gRPC is served.
    pub(crate) grpc: SocketAddr,
    pub(crate) stop: oneshot::Sender<()>,
    pub(crate) server: JoinHandle<std::io::Result<()>>,
}

pub(crate) async fn start(script: Script, config: GatewayConfig) -> Running {
    let client = client(script);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let grpc_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let grpc = grpc_listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let view = client.discovery.view();
    let listeners = Listeners { http: listener, grpc: Some(grpc_listener) };
    let server = tokio::spawn(serve(listeners, view, config, async move {
        let _ = stopped.await;
    }));
    Running { client, address, grpc, stop, server }
}

pub(crate) fn request(method: &str, path: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

impl Running {
    pub(crate) async fn open(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    pub(crate) async fn exchange(&self, request: &str) -> String {
        let mut stream = self.open(request).await;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    /// Waits until the engine has so many streams.
    pub(crate) async fn live(&self, count: usize) {
        let mut live = self.client.engine.live.subscribe();
        let waiting = timeout(LONG, live.wait_for(|live| *live == count));
        let is_so = waiting.await.is_ok_and(|seen| seen.is_ok());
        let now = *self.client.engine.live.borrow();
        assert!(is_so, "waited for {count} streams of the engine, there are {now}");
    }

    /// How many generations have begun so far, whether or not they go on: an answer's head says that
    /// its own has.
    pub(crate) fn num_begun(&self) -> usize {
        self.client.engine.requests.lock().unwrap().len()
    }
}

pub(crate) fn hanging() -> Script {
    Script { then: Then::Hang, ..script(bytes("x")) }
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_its_request() {
    let running = start(hanging(), GatewayConfig::default()).await;
    for stream in [false, true] {
        let body = chat_body(&json!({"stream": stream})).to_string();
        let connection = running.open(&request("POST", "/v1/chat/completions", &body)).await;
        running.live(1).await;
        drop(connection);
        running.live(0).await;
    }
}

#[tokio::test]
async fn running_requests_finish_while_new_ones_are_refused() {
    let running = start(hanging(), GatewayConfig::default()).await;
    assert!(running.exchange(&request("GET", "/ready", "")).await.starts_with("HTTP/1.1 200"));
    let body = chat_body(&json!({"stream": true})).to_string();
    let post = request("POST", "/v1/chat/completions", &body);
    let mut stream = running.open(&post).await;
    running.live(1).await;
    let Running { client, address, grpc, stop, server } = running;
    stop.send(()).unwrap();
    let (stop, _) = oneshot::channel();
    let running = Running { client, address, grpc, stop, server };
    // The server notices on its own time; until then it is ready.
    while !running.exchange(&request("GET", "/ready", "")).await.contains("\"draining\"") {}
    let refused = running.exchange(&post).await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("retry-after"), "{refused}");
    assert!(!running.server.is_finished());
    // The last request ends, and with it the server.
    let mut head = [0; 15];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    drop(stream);
    running.server.await.unwrap().unwrap();
    assert!(TcpStream::connect(running.address).await.is_err());
}

#[tokio::test]
async fn a_drain_ends_in_bounded_time() {
    let config =
        GatewayConfig { drain_timeout: Duration::from_millis(50), ..GatewayConfig::default() };
    let running = start(hanging(), config).await;
    let body = chat_body(&json!({"stream": true})).to_string();
    let _stream = running.open(&request("POST", "/v1/chat/completions", &body)).await;
    running.live(1).await;
    running.stop.send(()).unwrap();
    running.server.await.unwrap().unwrap();
    assert_eq!(*running.client.engine.live.borrow(), 0);
}

#[tokio::test]
async fn an_idle_connection_does_not_hold_up_the_end() {
    let running = start(script(bytes("x")), GatewayConfig::default()).await;
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut head = [0; 15];
    stream.read_exact(&mut head).await.unwrap();
    running.stop.send(()).unwrap();
    running.server.await.unwrap().unwrap();
}

#[tokio::test]
async fn heads_are_bounded_in_size_and_time() {
    // Much more than those who send a whole head at once need.
    let config =
        GatewayConfig { header_timeout: Duration::from_millis(500), ..GatewayConfig::default() };
    let running = start(script(bytes("x")), config).await;
    let long =
        format!("GET /health HTTP/1.1\r\nhost: x\r\nlong: {}\r\n\r\n", "x".repeat(100 << 10));
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    // The server may close before it has read all of it.
    let _ = stream.write_all(long.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    let mut slow = running.open("GET /health HT").await;
    let mut answer = Vec::new();
    let _ = slow.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    // Others are served.
    assert!(running.exchange(&request("GET", "/health", "")).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let config = GatewayConfig { max_connections: 1, ..GatewayConfig::default() };
    let running = start(hanging(), config).await;
    let body = chat_body(&json!({})).to_string();
    let first = running.open(&request("POST", "/v1/chat/completions", &body)).await;
    running.live(1).await;
    let mut second = running.open(&request("GET", "/health", "")).await;
    drop(first);
    let mut answer = String::new();
    second.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
