//! A fault that tests ask for: a token whose computation ends the worker.

use oarlock_types::TokenId;

/// Names the token. Never set outside of tests.
const VARIABLE: &str = "OARLOCK_FAULT_TOKEN";

/// The token that ends this worker, if it is to end by one.
pub(crate) fn fatal_token() -> Option<TokenId> {
    let token = std::env::var(VARIABLE).ok()?.parse().ok()?;
    tracing::warn!("{VARIABLE} is set: computing token {token} ends this worker");
    Some(TokenId(token))
}

/// Ends the process, as a bug in a kernel would.
pub(crate) fn die() -> ! {
    std::process::abort();
}
