//! Checked conversions between protobuf messages and `oarlock-types`.
//!
//! Into protobuf cannot fail. Out of protobuf checks every field that protobuf makes optional.

mod card;
mod engine;
mod request;
mod step;
mod worker;

use thiserror::Error;

pub(crate) use engine::{rejection_from_status, rejection_to_status};

/// A message that the other side should not have sent.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConvertError {
    /// A field that must be there is not.
    #[error("field {0} is missing")]
    Missing(&'static str),
    /// A field is NaN, infinite or negative.
    #[error("field {0} is not a finite number from 0 up")]
    NotAFactor(&'static str),
    /// A field has a value outside its range.
    #[error("field {field} has the impossible value {value}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

/// The value, or an error that names the field.
pub(crate) fn required<T>(value: Option<T>, field: &'static str) -> Result<T, ConvertError> {
    value.ok_or(ConvertError::Missing(field))
}

/// A number that must fit a byte.
pub(crate) fn byte(value: u32, field: &'static str) -> Result<u8, ConvertError> {
    u8::try_from(value).map_err(|_| ConvertError::OutOfRange { field, value: value.into() })
}

/// Converts each element, stopping at the first error.
pub(crate) fn all<T, U: TryFrom<T, Error = ConvertError>>(
    items: Vec<T>,
) -> Result<Vec<U>, ConvertError> {
    items.into_iter().map(U::try_from).collect()
}

/// Token ids as protobuf's numbers.
pub(crate) fn raw_tokens(tokens: &[oarlock_types::TokenId]) -> Vec<u32> {
    tokens.iter().map(|token| token.0).collect()
}

/// Protobuf's numbers as token ids.
pub(crate) fn token_ids(raw: Vec<u32>) -> Vec<oarlock_types::TokenId> {
    raw.into_iter().map(oarlock_types::TokenId).collect()
}
