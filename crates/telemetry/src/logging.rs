//! Structured logs on standard error.

use std::io::{self, IsTerminal};

use thiserror::Error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

/// The environment variable with the filter, in `tracing`'s syntax (`info,oarlock_engine=debug`).
const FILTER_VARIABLE: &str = "OARLOCK_LOG";
/// The filter where the variable is not set.
const DEFAULT_FILTER: &str = "info";

/// Why logging could not be set up.
#[derive(Debug, Error)]
pub enum LoggingError {
    /// The filter cannot be read.
    #[error("invalid filter in {FILTER_VARIABLE}: {0}")]
    Filter(String),
    /// Something in this process logs already.
    #[error("logging is set up already")]
    AlreadySet,
}

/// Sends the process's logs to standard error, as text for people or as one JSON object per line.
///
/// # Errors
/// An unreadable filter in `OARLOCK_LOG`, or a second call.
pub fn init_logging(json: bool) -> Result<(), LoggingError> {
    let filter = match std::env::var(FILTER_VARIABLE) {
        Ok(filter) => filter,
        Err(std::env::VarError::NotPresent) => DEFAULT_FILTER.to_owned(),
        Err(error) => return Err(LoggingError::Filter(error.to_string())),
    };
    let filter =
        EnvFilter::try_new(filter).map_err(|error| LoggingError::Filter(error.to_string()))?;
    let builder = fmt().with_env_filter(filter).with_writer(io::stderr);
    let result = if json {
        builder.json().flatten_event(true).try_init()
    } else {
        builder.with_ansi(io::stderr().is_terminal()).with_target(false).try_init()
    };
    result.map_err(|_| LoggingError::AlreadySet)
}
