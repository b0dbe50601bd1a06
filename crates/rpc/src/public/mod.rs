//! The public gRPC API, free of protobuf: what a gateway implements, and the services over it.

mod api;
mod convert;
mod server;

pub use api::{
    Chat, ChatMessage, GenerateOptions, InferenceApi, InferenceCode, InferenceError,
    InferenceEvent, InferenceEvents, InferencePrompt, InferenceRequest, InferenceToken,
    ServedModel, StopCause, TokenizeText, Tokenized,
};
pub use server::{
    CallKind, InferenceServices, body_error, call_timeout, inference_services, refusal,
};
