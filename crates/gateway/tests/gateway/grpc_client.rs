//! gRPC spoken as bare HTTP/2, as a client would that means no good.

use std::net::SocketAddr;

use axum::http::{HeaderMap, Request, StatusCode};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use tokio::net::TcpStream;

use crate::fake_engine::MODEL;
use crate::patience::LONG;

pub(crate) const GENERATE: &str = "/oarlock.v1.Inference/Generate";
pub(crate) const TOKENIZE: &str = "/oarlock.v1.Inference/Tokenize";
pub(crate) const LIST_MODELS: &str = "/oarlock.v1.Inference/ListModels";
pub(crate) const HEALTH: &str = "/grpc.health.v1.Health/Check";

pub(crate) const OK: &str = "0";
pub(crate) const INVALID_ARGUMENT: &str = "3";
pub(crate) const DEADLINE_EXCEEDED: &str = "4";
pub(crate) const RESOURCE_EXHAUSTED: &str = "8";
pub(crate) const UNIMPLEMENTED: &str = "12";
pub(crate) const UNAVAILABLE: &str = "14";
pub(crate) const UNAUTHENTICATED: &str = "16";

/// One connection.
#[derive(Clone)]
pub(crate) struct GrpcClient {
    sender: SendRequest<Bytes>,
    authorization: Option<String>,
    timeout: Option<&'static str>,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: String,
    pub(crate) message: String,
    /// Whether the status came in the head, without a body.
    pub(crate) is_head_only: bool,
    /// The messages, without their frames.
    pub(crate) messages: Vec<Vec<u8>>,
    pub(crate) trailers: HeaderMap,
}

impl GrpcClient {
    pub(crate) async fn new(address: SocketAddr) -> Self {
        Self::with_window(address, 1 << 16).await
    }

    /// A client whose streams take `window` bytes each.
    pub(crate) async fn with_window(address: SocketAddr, window: u32) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut builder = h2::client::Builder::new();
        let (sender, connection) =
            builder.initial_window_size(window).handshake(stream).await.unwrap();
        tokio::spawn(connection);
        Self { sender: sender.ready().await.unwrap(), authorization: None, timeout: None }
    }

    pub(crate) fn key(&self, authorization: Option<&str>) -> Self {
        Self { authorization: authorization.map(str::to_owned), ..self.clone() }
    }

    pub(crate) fn timeout(&self, timeout: &'static str) -> Self {
        Self { timeout: Some(timeout), ..self.clone() }
    }

    /// Sends a call's head.
    pub(crate) fn open(&mut self, path: &str) -> (ResponseFuture, SendStream<Bytes>) {
        let mut head = Request::post(format!("http://x{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(authorization) = &self.authorization {
            head = head.header("authorization", authorization);
        }
        if let Some(timeout) = self.timeout {
            head = head.header("grpc-timeout", timeout);
        }
        self.sender.send_request(head.body(()).unwrap(), false).unwrap()
    }

    /// Calls a method; the answer's body after its head.
    pub(crate) async fn stream(&mut self, path: &str, message: &[u8]) -> RecvStream {
        let (response, mut sending) = self.open(path);
        sending.send_data(frame(message), true).unwrap();
        let response = tokio::time::timeout(LONG, response).await.unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert!(!response.headers().contains_key("grpc-status"), "{response:?}");
        response.into_body()
    }

    /// Calls a method; its whole answer.
    pub(crate) async fn call(&mut self, path: &str, message: &[u8]) -> Answer {
        let (response, mut sending) = self.open(path);
        // The server may refuse before it has all of it.
        let _ = sending.send_data(frame(message), true);
        answer(response).await
    }
}

/// The whole answer of a call.
pub(crate) async fn answer(response: ResponseFuture) -> Answer {
    let response = tokio::time::timeout(LONG, response).await.expect("an answer").unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "application/grpc");
    let head = response.headers().clone();
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        let _ = body.flow_control().release_capacity(data.len());
        bytes.extend_from_slice(&data);
    }
    let is_head_only = head.contains_key("grpc-status");
    let trailers = if is_head_only { head } else { body.trailers().await.unwrap().unwrap() };
    let text = |name: &str| {
        trailers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
    };
    let (status, message) = (text("grpc-status"), text("grpc-message"));
    assert!(!is_head_only || bytes.is_empty());
    Answer { status, message, is_head_only, messages: messages(&bytes), trailers }
}

/// A message in gRPC's frame.
pub(crate) fn frame(message: &[u8]) -> Bytes {
    let mut frame = vec![0];
    frame.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend_from_slice(message);
    Bytes::from(frame)
}

fn messages(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<5>() {
        let length = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize;
        let (message, rest) = rest.split_at(length);
        messages.push(message.to_vec());
        bytes = rest;
    }
    assert!(bytes.is_empty());
    messages
}

fn varint(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A protobuf field of bytes, a text or a message.
pub(crate) fn field(number: u8, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    [vec![number << 3 | 2], varint(value.len()), value.to_vec()].concat()
}

/// A protobuf field of a number.
pub(crate) fn number(field: u8, value: usize) -> Vec<u8> {
    [vec![field << 3], varint(value)].concat()
}

/// A request to generate from a text.
pub(crate) fn text_request(text: &str, max_tokens: usize) -> Vec<u8> {
    [field(1, MODEL), field(2, text), field(6, number(1, max_tokens))].concat()
}
