//! Text to tokens and back: byte-level BPE, SentencePiece's BPE, chat templates, incremental detokenizing, stop strings.
//!
//! Pure: no clock, no I/O, no randomness; the same inputs give the same outputs. A chat template
//! therefore has no `strftime_now`: one that wants a date falls back to its own default, or takes it
//! from the request's `chat_template_kwargs`.
//!
//! Invariants: [`Tokenizer::decode`] of all ids equals the concatenation of what a
//! [`Detokenizer::at_start`] gives for them one at a time; a [`StopMatcher`] gives the same text however its input is cut.

mod byte_level;
mod chat_template;
mod detokenizer;
mod error;
mod json_decoder;
mod json_tokenizer;
mod pre_tokenizer;
mod python_json;
mod sentence_piece;
mod special_tokens;
mod stop_matcher;
mod template_value;
mod token_table;
mod tokenizer;

pub use chat_template::{ChatPrompt, ChatTemplate};
pub use detokenizer::Detokenizer;
pub use error::TextError;
pub use stop_matcher::StopMatcher;
pub use tokenizer::Tokenizer;
