//! What a gateway is told: who may use it, and its limits, each with a default.

use std::time::Duration;

use oarlock_access::Access;

use crate::limits::RequestLimits;

/// Who may use one gateway, and its limits.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Who may use it; by default everybody.
    pub access: Access,
    /// Body of one request at most, in bytes; more is a 413.
    pub max_body_bytes: usize,
    /// Bodies of all requests together at most, in bytes, with what they become when they are parsed
    /// and for as long as they are needed; more is a 503 with a Retry-After.
    pub max_bodies_bytes: usize,
    /// Head of one request at most, in bytes; more is a 431. At least 8 KiB.
    pub max_header_bytes: usize,
    /// Header fields of one request at most.
    pub max_headers: usize,
    /// Connections at the same time; further ones wait in the listener's backlog.
    pub max_connections: usize,
    /// Of these, connections from one address (one /64 network for IPv6); further ones are answered
    /// 429 and closed.
    pub max_connections_per_address: usize,
    /// Requests that one HTTP/2 connection may have open.
    pub max_http2_streams: u32,
    /// How long a client may take to send a request's head, and to send its first byte.
    pub header_timeout: Duration,
    /// How long a client may take to send a request's body; longer is a 408.
    pub body_timeout: Duration,
    /// How long a connection may be open without a request.
    pub idle_timeout: Duration,
    /// How long a client may take none of an answer that is there for it. Then its connection ends, or
    /// over HTTP/2 its stream, and with it the generation.
    pub write_timeout: Duration,
    /// Silence on an event stream after which a comment is sent.
    pub keep_alive: Duration,
    /// How long running requests may take to finish after shutdown began.
    pub drain_timeout: Duration,
    /// How long an engine may take to describe its model (a whole vocabulary).
    pub describe_timeout: Duration,
    /// How long an engine may take to tell its status.
    pub status_timeout: Duration,
    /// How long one generation may take, waiting included; `None` is without limit.
    pub request_timeout: Option<Duration>,
    /// Texts and bodies up to this many bytes are parsed and tokenized where they arrive, longer ones
    /// on threads of their own.
    pub inline_bytes: usize,
    /// Long texts parsed or tokenized at the same time.
    pub max_long_jobs: usize,
    /// Whether requests have what a model's makers recommend (temperature and the like) where they say
    /// nothing else; otherwise they have OpenAI's defaults.
    pub model_defaults: bool,
    /// Limits on the fields of a request.
    pub request: RequestLimits,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            access: Access::default(),
            max_body_bytes: 4 << 20,
            max_bodies_bytes: 256 << 20,
            max_header_bytes: 64 << 10,
            max_headers: 100,
            max_connections: 4096,
            max_connections_per_address: 2560,
            max_http2_streams: 128,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_mins(2),
            write_timeout: Duration::from_mins(1),
            keep_alive: Duration::from_secs(15),
            drain_timeout: Duration::from_secs(30),
            describe_timeout: Duration::from_secs(10),
            status_timeout: Duration::from_secs(2),
            request_timeout: None,
            inline_bytes: 1 << 10,
            max_long_jobs: std::thread::available_parallelism().map_or(2, usize::from),
            model_defaults: true,
            request: RequestLimits::default(),
        }
    }
}
