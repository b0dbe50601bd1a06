//! HTTP and the public gRPC API: keys, validation, chat templates, tokenizing, detokenizing, streaming.
//!
//! The only crate of the server that knows HTTP and the JSON of the API. It holds no state of a request beyond the
//! connection that asked for it: dropping a response drops the engine's event stream, which cancels
//! the request. Nothing detached keeps either alive.
//!
//! `README.md` beside this crate lists routes, fields, limits and error codes.

mod activity;
mod addresses;
mod app;
mod body;
mod budget;
mod caller;
mod calls;
mod chat;
mod chat_response;
mod choices;
mod completion_response;
mod completions;
mod config;
mod connection;
mod error;
mod fields;
mod generate;
mod health;
mod inference;
mod inference_fields;
mod limits;
mod logprobs;
mod messages;
mod metrics;
mod models;
mod prompts;
mod routes;
mod rules;
mod sampling;
mod server;
mod settings;
mod socket;
mod stream;
mod tokenize;

pub use config::GatewayConfig;
pub use limits::RequestLimits;
pub use routes::router;
pub use server::{Listeners, serve};
