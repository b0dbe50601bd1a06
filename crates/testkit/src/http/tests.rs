//! The client against canned answers.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::thread::{self, JoinHandle};

use serde_json::json;

use super::Client;

/// Answers one request with these bytes, and returns what it was asked.
fn serve_once(answer: impl Into<String>) -> (Client, JoinHandle<String>) {
    let answer = answer.into();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let client = Client::new(listener.local_addr().expect("an address"));
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            let start = head.len();
            reader.read_line(&mut head).expect("a line");
            if let Some(value) = head[start..].strip_prefix("Content-Length: ") {
                length = value.trim().parse().expect("a number");
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).expect("the body");
        stream.write_all(answer.as_bytes()).expect("sent");
        head + &String::from_utf8(body).expect("text")
    });
    (client, server)
}

#[test]
fn a_request_and_its_answer_by_length() {
    let (client, server) = serve_once(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n\
         {\"error\":\"x\"}and more",
    );
    let response = client.post("/v1/completions", &json!({"n": 1})).expect("an answer");
    assert_eq!(response.status, 400);
    assert_eq!(response.header("content-type"), Some("application/json"));
    assert_eq!(response.json(), json!({"error": "x"}));
    let request = server.join().expect("served");
    assert!(request.starts_with("POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:"), "{request}");
    assert!(request.contains("\r\nContent-Length: 7\r\n"), "{request}");
    assert!(request.ends_with("\r\n\r\n{\"n\":1}"), "{request}");
}

#[test]
fn chunks_are_joined() {
    let (client, _server) = serve_once(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
         5\r\nhello\r\nA;note=1\r\n, 1234567\n\r\n0\r\n\r\n",
    );
    assert_eq!(client.get("/").expect("an answer").text(), "hello, 1234567\n");
}

#[test]
fn a_body_ends_with_the_connection_where_nothing_else_says() {
    let (client, _server) =
        serve_once("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nall of it");
    assert_eq!(client.get("/").expect("an answer").text(), "all of it");
}

#[test]
fn an_answer_that_is_cut_off_is_an_error() {
    for answer in [
        "",
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "gibberish\r\n\r\n",
    ] {
        let (client, _server) = serve_once(answer);
        assert!(client.get("/").is_err(), "{answer:?}");
    }
}

#[test]
fn events_come_one_by_one_until_done() {
    let body = "data: {\"a\":1}\n\n: comment\n\ndata: {\"b\":\ndata: 2}\r\n\r\ndata: [DONE]\n\n";
    // Chunks of 5 bytes, which cut events, lines and words anywhere.
    let chunks = body
        .as_bytes()
        .chunks(5)
        .map(|chunk| format!("{:x}\r\n{}\r\n", chunk.len(), String::from_utf8_lossy(chunk)));
    let chunks: Vec<String> = chunks.collect();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nTransfer-Encoding: chunked";
    let (client, _server) = serve_once(format!("{head}\r\n\r\n{}0\r\n\r\n", chunks.concat()));
    let mut events = client.stream("/", &json!({})).expect("a stream");
    assert_eq!(events.next_json(), Some(json!({"a": 1})));
    assert_eq!(events.next_json(), Some(json!({"b": 2})));
    assert!(!events.is_done());
    assert_eq!(events.next_json(), None);
    assert!(events.is_done());
    assert!(events.next().is_none());
}

#[test]
fn a_stream_that_breaks_or_is_refused_is_an_error() {
    let (client, _server) =
        serve_once("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {\"a\":1}\n\n");
    let mut events = client.stream("/", &json!({})).expect("a stream");
    assert!(events.next().is_some_and(|event| event.is_ok()));
    assert!(events.next().is_some_and(|event| event.is_err()));

    let (client, _server) =
        serve_once("HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nfull");
    let error = client.stream("/", &json!({})).err().expect("refused");
    assert_eq!(error.to_string(), "status 429: full");
}
