//! The JSON of requests and of the events of their answers.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::options::Endpoint;
use crate::workload::{Piece, Turn};

/// What of a request a server takes: found out by trying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dialect {
    /// `stream_options.include_usage`.
    pub(crate) usage: bool,
    /// `ignore_eos`.
    pub(crate) ignore_eos: bool,
    /// `min_tokens`.
    pub(crate) min_tokens: bool,
    /// `max_completion_tokens` instead of `max_tokens`.
    pub(crate) completion_limit: bool,
}

impl Dialect {
    /// From all that is wanted to the bare minimum.
    pub(crate) fn candidates(endpoint: Endpoint, ignore_eos: bool) -> Vec<Self> {
        let all = Self { usage: true, ignore_eos, min_tokens: ignore_eos, completion_limit: false };
        let no_minimum = Self { min_tokens: false, ..all };
        let plain = Self { ignore_eos: false, ..no_minimum };
        let new_limit = Self { completion_limit: true, ..plain };
        let bare = Self { usage: false, ..plain };
        let mut candidates = vec![all, no_minimum, plain];
        if endpoint == Endpoint::Chat {
            candidates.push(new_limit);
        }
        candidates.push(bare);
        candidates.dedup();
        candidates
    }
}

/// What has been said so far, and how to say it.
#[derive(Clone, Debug)]
pub(crate) enum Conversation {
    Chat(Vec<Message>),
    Text(String),
    Tokens(Vec<u32>),
}

/// A message of a chat.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Message {
    role: &'static str,
    content: String,
}

impl Conversation {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        match endpoint {
            Endpoint::Chat => Self::Chat(Vec::new()),
            Endpoint::Completions => Self::Text(String::new()),
        }
    }

    /// The user says something.
    pub(crate) fn ask(&mut self, piece: Piece) {
        match (&mut *self, piece) {
            (Self::Chat(messages), Piece::Text(content)) => {
                messages.push(Message { role: "user", content });
            }
            (Self::Text(text), Piece::Text(more)) => {
                if !text.is_empty() {
                    text.push(' ');
                }
                text.push_str(&more);
            }
            (_, Piece::Tokens(tokens)) => *self = Self::Tokens(tokens),
            // Conversations of more than one turn are texts.
            (Self::Tokens(_), Piece::Text(text)) => *self = Self::Text(text),
        }
    }

    /// The server answered.
    pub(crate) fn answered(&mut self, answer: String) {
        match self {
            Self::Chat(messages) => messages.push(Message { role: "assistant", content: answer }),
            Self::Text(text) => text.push_str(&answer),
            Self::Tokens(_) => {}
        }
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum Prompt<'a> {
    Text(&'a str),
    Tokens(&'a [u32]),
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<&'a [Message]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<Prompt<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_completion_tokens: Option<u32>,
    temperature: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<StreamOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ignore_eos: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_tokens: Option<u32>,
}

/// The body of a request for `turn`, which the conversation contains already.
pub(crate) fn body(
    model: &str,
    dialect: Dialect,
    temperature: f64,
    conversation: &Conversation,
    turn: &Turn,
) -> Vec<u8> {
    let (messages, prompt) = match conversation {
        Conversation::Chat(messages) => (Some(messages.as_slice()), None),
        Conversation::Text(text) => (None, Some(Prompt::Text(text))),
        Conversation::Tokens(tokens) => (None, Some(Prompt::Tokens(tokens))),
    };
    let limit = turn.output_tokens;
    let body = Body {
        model,
        messages,
        prompt,
        max_tokens: (!dialect.completion_limit).then_some(limit),
        max_completion_tokens: dialect.completion_limit.then_some(limit),
        temperature,
        seed: (temperature > 0.0).then_some(turn.seed),
        stream: true,
        stream_options: dialect.usage.then_some(StreamOptions { include_usage: true }),
        ignore_eos: dialect.ignore_eos.then_some(true),
        min_tokens: dialect.min_tokens.then_some(limit),
    };
    serde_json::to_vec(&body).expect("plain fields can be written as JSON")
}

/// One event of an answer. What is not looked at may have any form.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Chunk {
    #[serde(default)]
    pub(crate) choices: Option<Vec<Choice>>,
    #[serde(default)]
    pub(crate) usage: Option<Usage>,
    #[serde(default)]
    pub(crate) error: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Choice {
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    delta: Option<Delta>,
    #[serde(default)]
    pub(crate) finish_reason: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Delta {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    reasoning_content: Option<String>,
    #[serde(default)]
    reasoning: Option<String>,
    #[serde(default)]
    tool_calls: Option<IgnoredAny>,
}

impl Choice {
    /// Whether it brings something that was generated.
    pub(crate) fn has_output(&self) -> bool {
        let is_there = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        is_there(&self.text)
            || self.delta.as_ref().is_some_and(|delta| {
                is_there(&delta.content)
                    || is_there(&delta.reasoning_content)
                    || is_there(&delta.reasoning)
                    || delta.tool_calls.is_some()
            })
    }

    /// What of it belongs to the answer.
    pub(crate) fn answer(&self) -> &str {
        let content = self.delta.as_ref().and_then(|delta| delta.content.as_deref());
        self.text.as_deref().or(content).unwrap_or_default()
    }
}

/// Token counts as the server reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Usage {
    #[serde(default)]
    pub(crate) prompt_tokens: u64,
    #[serde(default)]
    pub(crate) completion_tokens: u64,
    #[serde(default)]
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
struct PromptDetails {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

impl Usage {
    /// Of the prompt, tokens that the server says it had cached.
    pub(crate) fn cached_tokens(&self) -> u64 {
        self.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn turn(piece: Piece) -> Turn {
        Turn { piece, output_tokens: 9, seed: 5 }
    }

    fn built(dialect: Dialect, conversation: &Conversation, temperature: f64) -> Value {
        let turn = turn(Piece::Text(String::new()));
        let bytes = body("m", dialect, temperature, conversation, &turn);
        serde_json::from_slice(&bytes).expect("JSON")
    }

    #[test]
    fn dialects_go_from_all_to_nothing() {
        let chat = Dialect::candidates(Endpoint::Chat, true);
        assert_eq!(chat.len(), 5);
        assert!(chat[0].min_tokens && chat[0].ignore_eos && chat[0].usage);
        assert!(chat[3].completion_limit);
        assert!(!chat[4].usage && !chat[4].ignore_eos && !chat[4].completion_limit);
        assert_eq!(Dialect::candidates(Endpoint::Completions, false).len(), 2);
    }

    #[test]
    fn bodies_have_what_the_dialect_has() {
        let mut chat = Conversation::new(Endpoint::Chat);
        chat.ask(Piece::Text("a b".into()));
        chat.answered("c".into());
        chat.ask(Piece::Text("d".into()));
        let dialects = Dialect::candidates(Endpoint::Chat, true);
        assert_eq!(
            built(dialects[0], &chat, 0.0),
            json!({
                "model": "m", "max_tokens": 9, "temperature": 0.0, "stream": true,
                "messages": [
                    {"role": "user", "content": "a b"}, {"role": "assistant", "content": "c"},
                    {"role": "user", "content": "d"},
                ],
                "stream_options": {"include_usage": true}, "ignore_eos": true, "min_tokens": 9,
            })
        );
        let mut text = Conversation::new(Endpoint::Completions);
        text.ask(Piece::Text("a b".into()));
        text.answered(" c".into());
        text.ask(Piece::Text("d".into()));
        assert_eq!(
            built(dialects[4], &text, 0.5),
            json!({
                "model": "m", "prompt": "a b c d", "max_tokens": 9, "temperature": 0.5, "seed": 5,
                "stream": true,
            })
        );
        let mut tokens = Conversation::new(Endpoint::Completions);
        tokens.ask(Piece::Tokens(vec![1, 2]));
        let limited = built(dialects[3], &tokens, 0.0);
        assert_eq!(limited["prompt"], json!([1, 2]));
        assert_eq!(
            (&limited["max_completion_tokens"], &limited["max_tokens"]),
            (&json!(9), &Value::Null)
        );
    }
}
