//! The only crate that knows protobuf: generated code from `proto/`, checked conversions to and from
//! `oarlock-types`, client and server adapters over Unix sockets and TCP.
//!
//! Processes meet through the traits of [`api`]: whoever calls an engine holds an
//! `Arc<dyn EngineApi>` and cannot tell a local one from one behind gRPC.

pub mod api;

pub use api::{EngineApi, EngineError, EventStream};
