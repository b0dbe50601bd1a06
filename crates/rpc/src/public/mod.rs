//! The public gRPC API, free of protobuf: what a gateway implements, and how it is served.

mod api;
mod convert;
mod server;

pub use api::{
    Chat, ChatMessage, GenerateOptions, InferenceApi, InferenceCode, InferenceError,
    InferenceEvent, InferenceEvents, InferencePrompt, InferenceRequest, InferenceToken,
    ServedModel, StopCause, TokenizeText, Tokenized,
};
pub use server::{InferenceLimits, serve_inference};
