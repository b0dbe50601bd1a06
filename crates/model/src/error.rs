//! What can be wrong with a model.

use std::path::PathBuf;

use oarlock_backend::BackendError;
use thiserror::Error;

/// Why a model cannot be served.
#[derive(Debug, Error)]
pub enum ModelError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// The file or folder holds no model, or a damaged one.
    #[error("{path} is not a usable model: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The metadata lack a key, or have a value that cannot be.
    #[error("metadata key {key}: {reason}")]
    Metadata {
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// The model's architecture is not supported.
    #[error("architecture {architecture} is not supported; supported: {supported}")]
    Architecture {
        /// As the file names it.
        architecture: String,
        /// Comma-separated.
        supported: String,
    },
    /// A tensor that is missing, has the wrong shape or type, or that nobody asked for.
    #[error("tensor {name}: {reason}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The model cannot be cut into so many ranks.
    #[error(
        "--tensor-parallel {ranks}: this model can be cut into {allowed} (its heads, segments and \
         vocabulary do not divide otherwise)"
    )]
    TensorParallel {
        /// What was asked for.
        ranks: u32,
        /// Comma-separated.
        allowed: String,
    },
    /// The backend cannot hold it.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl ModelError {
    /// A metadata error.
    pub(crate) fn metadata(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Metadata { key: key.into(), reason: reason.into() }
    }

    /// A tensor error.
    pub(crate) fn tensor(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Tensor { name: name.into(), reason: reason.into() }
    }
}
