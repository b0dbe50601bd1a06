//! A small blocking HTTP/1.1 client: one connection per request, bodies by length, chunks or end.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::Value;

/// Sends requests to one server.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    address: SocketAddr,
    timeout: Duration,
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// The HTTP status code.
    pub status: u16,
    /// Names in lower case, in the order of the answer.
    pub headers: Vec<(String, String)>,
    /// Without chunk framing.
    pub body: Vec<u8>,
}

impl Response {
    /// The first header of this name (in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        find_header(&self.headers, name)
    }

    /// The body as text. Panics where it is not UTF-8.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("a body in UTF-8")
    }

    /// The body as JSON. Panics, showing it, where it is not.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!("status {}, {error}: {}", self.status, String::from_utf8_lossy(&self.body))
        })
    }

    /// The body of a 200 as JSON. Panics, showing the answer, on any other status.
    pub fn ok_json(&self) -> Value {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }
}

impl Client {
    /// Waits at most 2 minutes for the next byte of an answer.
    pub fn new(address: SocketAddr) -> Client {
        Client { address, timeout: Duration::from_mins(5) }
    }

    /// With another limit on the wait for the next byte.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Client {
        Client { timeout, ..self }
    }

    /// GET.
    pub fn get(&self, path: &str) -> anyhow::Result<Response> {
        self.request("GET", path, &[], b"")
    }

    /// POST of a JSON body.
    pub fn post(&self, path: &str, body: &Value) -> anyhow::Result<Response> {
        let headers = [("Content-Type", "application/json")];
        self.request("POST", path, &headers, body.to_string().as_bytes())
    }

    /// Any request with a body that may be empty.
    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> anyhow::Result<Response> {
        self.send(&self.encode(method, path, headers, body))
    }

    /// Sends these bytes as they are, whatever they mean, and reads an answer.
    pub fn send(&self, bytes: &[u8]) -> anyhow::Result<Response> {
        let mut answer = Answer::read_head(self.open(bytes)?)?;
        let mut body = vec![];
        answer.body.read_to_end(&mut body).context("cannot read the body")?;
        Ok(Response { status: answer.status, headers: answer.headers, body })
    }

    /// POST of a JSON body whose answer is a stream of server-sent events.
    ///
    /// An error, with the body in its message, where the status is not 200.
    pub fn stream(&self, path: &str, body: &Value) -> anyhow::Result<EventStream> {
        let headers = [("Content-Type", "application/json")];
        let bytes = self.encode("POST", path, &headers, body.to_string().as_bytes());
        let mut answer = Answer::read_head(self.open(&bytes)?)?;
        if answer.status != 200 {
            let mut body = String::new();
            answer.body.read_to_string(&mut body).context("cannot read the body")?;
            bail!("status {}: {body}", answer.status);
        }
        let kind = find_header(&answer.headers, "content-type").unwrap_or_default();
        if !kind.starts_with("text/event-stream") {
            bail!("expected a stream of events, found {kind:?}");
        }
        Ok(EventStream {
            headers: answer.headers,
            lines: BufReader::new(answer.body),
            is_done: false,
        })
    }

    /// Connects and sends bytes; for tests that go away before the answer.
    pub fn open(&self, bytes: &[u8]) -> anyhow::Result<TcpStream> {
        let mut stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(10))
            .with_context(|| format!("cannot connect to {}", self.address))?;
        stream.set_read_timeout(Some(self.timeout)).context("cannot limit the wait")?;
        stream.set_nodelay(true).context("cannot send at once")?;
        // A server may answer and close before it has read everything: what it says counts.
        match stream.write_all(bytes) {
            Err(error) if !is_closed(&error) => Err(error).context("cannot send the request"),
            _ => Ok(stream),
        }
    }

    fn encode(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", self.address);
        head.push_str("Connection: close\r\n");
        for (name, value) in headers {
            head.push_str(&format_header(name, value));
        }
        head.push_str(&format_header("Content-Length", &body.len().to_string()));
        head.push_str("\r\n");
        [head.as_bytes(), body].concat()
    }
}

fn format_header(name: &str, value: &str) -> String {
    format!("{name}: {value}\r\n")
}

fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

fn find_header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// The events of one answer, as they come: the `data` of each, without the last, `[DONE]`.
///
/// Dropping it before the end closes the connection, as a client that goes away does.
pub struct EventStream {
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    lines: BufReader<Body>,
    is_done: bool,
}

impl EventStream {
    /// Whether `[DONE]` came.
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// The next event as JSON; `None` after `[DONE]`. Panics where the stream breaks.
    pub fn next_json(&mut self) -> Option<Value> {
        let data = self.next()?.unwrap_or_else(|error| panic!("the stream broke: {error:#}"));
        let value = serde_json::from_str(&data);
        Some(value.unwrap_or_else(|error| panic!("{error} in the event {data:?}")))
    }

    /// All events that are left, as JSON. Panics where the stream breaks before `[DONE]`.
    pub fn collect_json(mut self) -> Vec<Value> {
        std::iter::from_fn(|| self.next_json()).collect()
    }

    /// The data of the next event; `None` at the end of the connection.
    fn read_event(&mut self) -> anyhow::Result<Option<String>> {
        let mut data: Option<String> = None;
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).context("cannot read an event")? == 0 {
                return Ok(None);
            }
            let line = line.trim_end_matches(['\r', '\n']);
            if line.is_empty() {
                if data.is_some() {
                    return Ok(data);
                }
            } else if let Some(rest) = line.strip_prefix("data:") {
                let rest = rest.strip_prefix(' ').unwrap_or(rest);
                match &mut data {
                    // Several data lines are one text with line ends between.
                    Some(data) => *data = format!("{data}\n{rest}"),
                    None => data = Some(rest.to_owned()),
                }
            }
            // Comments (":" first) and other fields say nothing here.
        }
    }
}

impl Iterator for EventStream {
    type Item = anyhow::Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done {
            return None;
        }
        match self.read_event() {
            Ok(Some(data)) if data == "[DONE]" => {
                self.is_done = true;
                None
            }
            Ok(Some(data)) => Some(Ok(data)),
            Ok(None) => Some(Err(anyhow::anyhow!("the stream ended before [DONE]"))),
            Err(error) => Some(Err(error)),
        }
    }
}

/// An answer whose body has not been read.
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Body,
}

impl Answer {
    fn read_head(stream: TcpStream) -> anyhow::Result<Answer> {
        let mut reader = BufReader::new(stream);
        loop {
            let line = read_line(&mut reader).context("no answer")?;
            let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
            let Some(status) = status.filter(|_| line.starts_with("HTTP/1.")) else {
                bail!("this is no status line: {line:?}");
            };
            let mut headers = vec![];
            loop {
                let line = read_line(&mut reader).context("the head is cut off")?;
                if line.is_empty() {
                    break;
                }
                let Some((name, value)) = line.split_once(':') else {
                    bail!("this is no header: {line:?}");
                };
                headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
            // 1xx answers come before the real one.
            if status >= 200 {
                let body = Body::new(reader, status, &headers)?;
                return Ok(Answer { status, headers, body });
            }
        }
    }
}

/// A line without its end; the end of the connection is an error.
fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Reads a body to its end, and no further. A connection cut off before that is an error.
struct Body {
    reader: BufReader<TcpStream>,
    framing: Framing,
}

enum Framing {
    /// Bytes left.
    Length(u64),
    /// Bytes left of this chunk.
    Chunked(u64),
    /// Until the connection closes.
    Close,
}

impl Body {
    fn new(
        reader: BufReader<TcpStream>,
        status: u16,
        headers: &[(String, String)],
    ) -> anyhow::Result<Body> {
        let framing = if status == 204 || status == 304 {
            Framing::Length(0)
        } else if find_header(headers, "transfer-encoding").is_some_and(|value| value == "chunked")
        {
            Framing::Chunked(0)
        } else if let Some(length) = find_header(headers, "content-length") {
            Framing::Length(length.parse().context("content-length is no number")?)
        } else {
            Framing::Close
        };
        Ok(Body { reader, framing })
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = match &mut self.framing {
            Framing::Close => return self.reader.read(buffer),
            Framing::Length(left) => left,
            Framing::Chunked(left) => {
                if *left == 0 {
                    let line = read_line(&mut self.reader)?;
                    let size = line.split(';').next().unwrap_or_default().trim();
                    *left = u64::from_str_radix(size, 16).map_err(io::Error::other)?;
                    if *left == 0 {
                        // Trailers, to the empty line.
                        while !read_line(&mut self.reader)?.is_empty() {}
                        self.framing = Framing::Length(0);
                        return Ok(0);
                    }
                }
                left
            }
        };
        if *left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let limit = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.reader.read(&mut buffer[..limit])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        *left -= count as u64;
        if *left == 0 && matches!(self.framing, Framing::Chunked(_)) {
            read_line(&mut self.reader)?;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
