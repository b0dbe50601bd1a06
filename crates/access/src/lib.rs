//! Who may ask: keys with a tenant, a priority class and limits, from a file that may change while it
//! is used.
//!
//! A library that processes use. It knows neither HTTP nor gRPC and reads no clock: whoever calls it
//! passes the secret that a client presented and the time. `README.md` beside it describes the file.

mod access;
mod error;
mod file;
mod index;
mod keyring;
mod meter;
mod record;
mod replace;
mod secret;

pub use access::{Access, Caller, Reload};
pub use error::AccessError;
pub use file::{KeysFile, MAX_FILE_BYTES, MAX_KEYS};
pub use keyring::Denied;
pub use meter::{Limits, OverQuota, Permit, Quota};
pub use record::{KeyRecord, NewKey, Timestamp};
pub use secret::{MAX_SECRET_BYTES, Secret, SecretHash};
