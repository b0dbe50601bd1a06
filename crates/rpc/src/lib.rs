//! The only crate that knows protobuf: generated code from `proto/`, checked conversions to and from
//! `oarlock-types`, client and server adapters over Unix sockets; and the public gRPC API.
//!
//! Processes meet through [`EngineApi`] and [`WorkerApi`]: whoever calls an engine holds an
//! `Arc<dyn EngineApi>` and cannot tell one in this process from one behind gRPC. Messages from the
//! other side are checked here, once; a missing or impossible field is an error that names it.

mod api;
mod convert;
mod engine_client;
mod engine_server;
mod public;
mod socket;
mod worker_client;
mod worker_server;

#[expect(
    unreachable_pub,
    clippy::pedantic,
    clippy::large_enum_variant,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
mod proto {
    tonic::include_proto!("oarlock.internal.v1");
}

#[expect(
    unreachable_pub,
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
mod public_proto {
    tonic::include_proto!("oarlock.v1");
}

/// Descriptors of the public API, for reflection.
const PUBLIC_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/oarlock.v1.bin"));

pub use api::{
    EngineApi, EngineError, EventStream, HeartbeatStream, LoadEvent, LoadStream, ResultStream,
    WorkerApi, WorkerError,
};
pub use convert::ConvertError;
pub use engine_client::EngineClient;
pub use engine_server::serve_engine;
pub use public::{
    CallKind, Chat, ChatMessage, GenerateOptions, InferenceApi, InferenceCode, InferenceError,
    InferenceEvent, InferenceEvents, InferencePrompt, InferenceRequest, InferenceServices,
    InferenceToken, ServedModel, StopCause, TokenizeText, Tokenized, body_error, call_timeout,
    inference_services, refusal,
};
pub use worker_client::{PlanSender, WorkerClient};
pub use worker_server::serve_worker;

/// Largest message that either side takes: a model card carries a whole vocabulary, and a plan a
/// whole prompt.
const MAX_MESSAGE_BYTES: usize = 256 << 20;
