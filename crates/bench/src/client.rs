//! A small HTTP/1.1 client with keep-alive: JSON in, JSON or a stream of bytes out.

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::uri::Scheme;
use http::{Method, Request, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::error::{BenchError, Failure, FailureKind, root_cause};

/// Bytes of an answer that is read at once.
const MAX_BODY_BYTES: usize = 64 << 20;

/// The body of an answer; an error is why it broke off.
pub(crate) type Body = UnsyncBoxBody<Bytes, String>;

/// A pool of connections to one server.
#[derive(Clone)]
pub(crate) struct HttpClient {
    connections: Connections,
    base: String,
    authorization: Option<HeaderValue>,
}

/// The system's certificates are only looked for where they are needed.
#[derive(Clone)]
enum Connections {
    Plain(Client<HttpConnector, Full<Bytes>>),
    Tls(Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
}

impl HttpClient {
    /// A client of the server at `url`, with or without `/v1` at its end.
    pub(crate) fn new(url: &str, api_key: Option<&str>) -> Result<Self, BenchError> {
        let wrong =
            |reason: &str| BenchError::Url { url: url.to_owned(), reason: reason.to_owned() };
        let uri: Uri =
            url.parse().map_err(|error: http::uri::InvalidUri| wrong(&error.to_string()))?;
        if uri.host().is_none() || uri.query().is_some() {
            return Err(wrong("expected something like http://127.0.0.1:8000"));
        }
        let mut http = HttpConnector::new();
        http.set_nodelay(true);
        http.enforce_http(false);
        let connections = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => Connections::Plain(pool(http)),
            Some(scheme) if *scheme == Scheme::HTTPS => {
                // Named, so that it does not matter what else in the program brings one.
                let provider = rustls::crypto::ring::default_provider();
                let builder = HttpsConnectorBuilder::new().with_provider_and_native_roots(provider);
                let builder = builder.map_err(|error| wrong(&error.to_string()))?;
                Connections::Tls(pool(builder.https_only().enable_http1().wrap_connector(http)))
            }
            _ => return Err(wrong("only http and https are supported")),
        };
        let authorization = api_key.map(|key| {
            let mut value = HeaderValue::try_from(format!("Bearer {key}"))?;
            value.set_sensitive(true);
            Ok(value)
        });
        let authorization = authorization
            .transpose()
            .map_err(|_: http::header::InvalidHeaderValue| BenchError::ApiKey)?;
        let base = url.trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base).to_owned();
        Ok(Self { connections, base, authorization })
    }

    /// The server's address, without a slash at its end.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// GET, and the whole answer as JSON.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, Failure> {
        let body = self.send(Method::GET, path, Bytes::new()).await?;
        json(body).await
    }

    /// POST of a JSON body, and the whole answer as JSON.
    pub(crate) async fn post(&self, path: &str, body: Vec<u8>) -> Result<Value, Failure> {
        let body = self.send(Method::POST, path, body.into()).await?;
        json(body).await
    }

    /// POST of a JSON body, and the answer as it comes.
    pub(crate) async fn stream(&self, path: &str, body: Bytes) -> Result<Body, Failure> {
        self.send(Method::POST, path, body).await
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Body, Failure> {
        let mut request = Request::builder().method(&method).uri(format!("{}{path}", self.base));
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if method == Method::POST {
            request = request.header(CONTENT_TYPE, "application/json");
            request = request.header(ACCEPT, "text/event-stream, application/json");
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| Failure::new(FailureKind::Protocol, error.to_string()))?;
        let response = match &self.connections {
            Connections::Plain(client) => client.request(request).await,
            Connections::Tls(client) => client.request(request).await,
        };
        let response = response.map_err(|error| lost(&error))?;
        let status = response.status();
        let body = response.into_body().map_err(|error| root_cause(&error)).boxed_unsync();
        if status.is_success() {
            return Ok(body);
        }
        let text = text(body).await.unwrap_or_else(|failure| failure.message);
        Err(Failure::new(FailureKind::Status(status.as_u16()), error_message(&text)))
    }
}

fn pool<C: Connect + Clone>(connector: C) -> Client<C, Full<Bytes>> {
    Client::builder(TokioExecutor::new()).pool_max_idle_per_host(usize::MAX).build(connector)
}

fn lost(error: &ClientError) -> Failure {
    let kind = if error.is_connect() { FailureKind::Connect } else { FailureKind::Disconnected };
    Failure::new(kind, root_cause(error))
}

/// A failure while a body was read.
pub(crate) fn cut_off(reason: String) -> Failure {
    Failure::new(FailureKind::Disconnected, reason)
}

async fn text(mut body: Body) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(cut_off)?;
        let data = frame.data_ref().map(Bytes::as_ref).unwrap_or_default();
        if bytes.len() + data.len() > MAX_BODY_BYTES {
            let message = format!("an answer has more than {MAX_BODY_BYTES} bytes");
            return Err(Failure::new(FailureKind::Protocol, message));
        }
        bytes.extend_from_slice(data);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

async fn json(body: Body) -> Result<Value, Failure> {
    let text = text(body).await?;
    serde_json::from_str(&text)
        .map_err(|error| Failure::new(FailureKind::Protocol, format!("no JSON: {error}")))
}

/// The message inside an error body, whichever form a server gives it.
fn error_message(text: &str) -> String {
    let value: Value = serde_json::from_str(text).unwrap_or(Value::Null);
    let places = ["/error/message", "/message", "/detail", "/error"];
    let message = places.iter().find_map(|place| value.pointer(place)?.as_str());
    message.unwrap_or(text.trim()).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_with_and_without_the_version() {
        for url in ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"] {
            assert_eq!(HttpClient::new(url, None).expect("an address").base(), "http://h:1");
        }
        let proxied = HttpClient::new("http://h/models/a/v1", Some("k")).expect("an address");
        assert_eq!(proxied.base(), "http://h/models/a");
        for url in ["", "h:1", "localhost", "ftp://h", "http://", "http://h?x=1"] {
            let error = HttpClient::new(url, None).err().expect("no address");
            assert!(error.to_string().contains("--url"), "{error}");
        }
        assert!(HttpClient::new("http://h", Some("a\nb")).is_err());
    }

    #[test]
    fn messages_of_errors_are_found() {
        assert_eq!(error_message(r#"{"error": {"message": "too long"}}"#), "too long");
        assert_eq!(error_message(r#"{"object": "error", "message": "no"}"#), "no");
        assert_eq!(error_message(r#"{"detail": "Not Found"}"#), "Not Found");
        assert_eq!(error_message(" plain \n"), "plain");
    }
}
