//! Folders that are damaged or not supported.
