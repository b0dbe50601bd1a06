//! Why text could not become tokens, or messages text.

use thiserror::Error;

/// What can go wrong between text and tokens.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TextError {
    /// The vocabulary names a pre-tokenizer that this build does not know.
    #[error("unknown pre-tokenizer {name:?} (tokenizer.ggml.pre); known ones: {known}")]
    UnknownPreTokenizer {
        /// The name in the file.
        name: String,
        /// The names that are known, separated by commas.
        known: String,
    },
    /// The vocabulary contradicts itself or lacks something.
    #[error("invalid vocabulary: {0}")]
    InvalidVocabulary(String),
    /// A `tokenizer.json` that cannot be read, or is of a kind that is not supported.
    #[error("unusable tokenizer.json: {0}")]
    InvalidJson(String),
    /// The tokenizer failed on a text.
    #[error("cannot tokenize: {0}")]
    Encode(String),
    /// The chat template cannot be compiled.
    #[error("invalid chat template: {0}")]
    InvalidTemplate(String),
    /// The template refused the messages (`raise_exception`), in its own words.
    #[error("{0}")]
    Raised(String),
    /// Rendering the template failed.
    #[error("chat template failed: {0}")]
    Render(String),
    /// Rendering took too many instructions, or gave too much text.
    #[error("chat template exceeds its limit of {limit} {unit}")]
    TemplateLimit {
        /// The limit.
        limit: u64,
        /// What was counted.
        unit: &'static str,
    },
}
