//! A load generator for any server with OpenAI's API, the library behind `oarlock bench`.
//!
//! It knows nothing of Oarlock: it speaks HTTP/1.1 with keep-alive, reads streams of server-sent
//! events, and measures at the client. The workload (prompts, lengths, times of arrival) is a function
//! of the seed. Nothing is printed here: [`run`] gives a [`Report`], and [`Live`] shows how far it is.
//!
//! What is measured, per request: TTFT is from when it was due (from its arrival where requests arrive
//! by themselves, else from sending) to the first event with output; ITL between two such events (where
//! an event says how many tokens it brings, its gap is shared among them); TPOT is the time from the
//! first to the last output over the tokens after the first, as `usage` counts them; E2E ends with the
//! stream.

mod arrivals;
mod client;
mod error;
mod measures;
mod options;
mod progress;
mod protocol;
mod random;
mod report;
mod request;
mod run;
mod sse;
mod stats;
mod target;
mod text;
mod words;
mod workload;

pub use error::BenchError;
pub use options::{Arrivals, Endpoint, Length, Options, Slo, parse_duration};
pub use progress::{Live, Progress};
pub use report::{ArrivalsReport, ErrorCount, Rates, Report, Requests, RunReport};
pub use run::run;
pub use stats::Summary;
pub use tokio_util::sync::CancellationToken;
