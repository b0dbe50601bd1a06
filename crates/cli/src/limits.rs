//! Limits of the HTTP server, as options.

use std::time::Duration;

use clap::Args;
use oarlock_gateway::GatewayConfig;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

/// Files that the process needs beside its clients' connections.
const OTHER_FILES: u64 = 128;

/// Limits of the HTTP server.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Limits of the HTTP server")]
pub(crate) struct LimitArguments {
    /// Bytes of one request's body at most; more is answered 413.
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20, value_parser = clap::value_parser!(u32).range(1024..=1 << 30))]
    max_body_bytes: u32,
    /// Bytes that the bodies of all requests together may take, parsed; more is answered 503.
    #[arg(long, value_name = "BYTES", default_value_t = 256 << 20, value_parser = clap::value_parser!(u64).range(1 << 20..=1 << 40))]
    max_bodies_bytes: u64,
    /// Bytes of one request's head at most; more is answered 431.
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 10, value_parser = clap::value_parser!(u32).range(8192..=1 << 20))]
    max_header_bytes: u32,
    /// Header fields of one request at most; more is answered 431.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(16..=1000))]
    max_headers: u16,
    /// Connections at the same time; further ones wait to be accepted.
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_connections: u32,
    /// Connections of one client address (of one /64 network for IPv6); more are answered 429.
    #[arg(long, value_name = "N", default_value_t = 2560, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    max_connections_per_address: u32,
    /// Requests that one HTTP/2 connection may have open.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    max_http2_streams: u32,
    /// Long bodies and texts that are parsed or tokenized at the same time; 0: one per core.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=512))]
    max_long_jobs: u16,
    /// How long a client may take for its first byte, and for a request's head.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = seconds())]
    header_timeout: u64,
    /// How long a client may take for a request's body; longer is answered 408.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = seconds())]
    body_timeout: u64,
    /// How long a connection may be open without a request.
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = seconds())]
    idle_timeout: u64,
    /// How long a client may take nothing of an answer that is there for it; then its generation is
    /// cancelled.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = seconds())]
    write_timeout: u64,
    /// How long one generation may take, waiting included; 0: as long as it takes.
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=604_800))]
    request_timeout: u64,
}

fn seconds() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=86_400)
}

impl LimitArguments {
    /// Writes the limits into the gateway's configuration.
    pub(crate) fn apply(&self, config: &mut GatewayConfig) {
        config.max_body_bytes = self.max_body_bytes as usize;
        config.max_bodies_bytes = usize::try_from(self.max_bodies_bytes).unwrap_or(usize::MAX);
        config.max_header_bytes = self.max_header_bytes as usize;
        config.max_headers = usize::from(self.max_headers);
        config.max_connections = self.max_connections as usize;
        config.max_connections_per_address = self.max_connections_per_address as usize;
        config.max_http2_streams = self.max_http2_streams;
        if self.max_long_jobs > 0 {
            config.max_long_jobs = usize::from(self.max_long_jobs);
        }
        config.header_timeout = Duration::from_secs(self.header_timeout);
        config.body_timeout = Duration::from_secs(self.body_timeout);
        config.idle_timeout = Duration::from_secs(self.idle_timeout);
        config.write_timeout = Duration::from_secs(self.write_timeout);
        config.request_timeout =
            (self.request_timeout > 0).then(|| Duration::from_secs(self.request_timeout));
    }

    /// Lets this process open as many files as the system allows: each connection is one, and the
    /// usual limit of 1,024 is a leftover from `select`.
    pub(crate) fn raise_open_files(&self) {
        let limit = getrlimit(Resource::Nofile);
        let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            warn!(%error, "the limit on open files cannot be raised");
        }
        let open_files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        // Both ports share the connections.
        let needed = u64::from(self.max_connections) + OTHER_FILES;
        if open_files < needed {
            warn!(
                open_files,
                needed, "fewer files may be open than --max-connections needs: raise `ulimit -Hn`"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        limits: LimitArguments,
    }

    fn config(arguments: &[&str]) -> GatewayConfig {
        let line = std::iter::once("test").chain(arguments.iter().copied());
        let mut config = GatewayConfig::default();
        Line::try_parse_from(line).unwrap().limits.apply(&mut config);
        config
    }

    #[test]
    fn the_defaults_are_the_gateways() {
        let (ours, gateways) = (config(&[]), GatewayConfig::default());
        assert_eq!(format!("{ours:?}"), format!("{gateways:?}"));
    }

    #[test]
    fn each_option_sets_its_own_limit() {
        let second = Duration::from_secs(7);
        let set = config(&[
            "--max-body-bytes=2048",
            "--max-bodies-bytes=2097152",
            "--max-header-bytes=9000",
            "--max-headers=17",
            "--max-connections=3",
            "--max-connections-per-address=2",
            "--max-http2-streams=5",
            "--max-long-jobs=6",
            "--header-timeout=7",
            "--body-timeout=8",
            "--idle-timeout=9",
            "--write-timeout=10",
            "--request-timeout=7",
        ]);
        assert_eq!((set.max_body_bytes, set.max_bodies_bytes), (2048, 2 << 20));
        assert_eq!((set.max_header_bytes, set.max_headers), (9000, 17));
        assert_eq!((set.max_connections, set.max_connections_per_address), (3, 2));
        assert_eq!((set.max_http2_streams, set.max_long_jobs), (5, 6));
        assert_eq!((set.header_timeout, set.body_timeout), (second, Duration::from_secs(8)));
        assert_eq!(
            (set.idle_timeout, set.write_timeout),
            (Duration::from_secs(9), Duration::from_secs(10))
        );
        assert_eq!(set.request_timeout, Some(second));
    }

    #[test]
    fn limits_that_make_no_sense_are_refused() {
        for argument in [
            "--max-connections=0",
            "--idle-timeout=0",
            "--max-header-bytes=10",
            "--max-headers=100000",
        ] {
            assert!(Line::try_parse_from(["test", argument]).is_err(), "{argument}");
        }
    }
}
