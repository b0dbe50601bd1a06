//! The shapes of chat answers.

use axum::response::{IntoResponse, Response};
use oarlock_types::TokenId;
use serde::Serialize;

use crate::error::ApiError;
use crate::generate::{Delta, Finish, GeneratedToken, Generation};
use crate::logprobs::{ChatLogprobs, Labels};
use crate::models::Served;
use crate::sampling::Options;
use crate::stream::{Frames, Usage, UsageField, Wire, unique_id, unix_seconds};

/// Writes the answers to one chat request.
pub(crate) struct ChatWire {
    head: Head,
    labels: Labels,
    logprobs: bool,
    include_usage: bool,
    return_token_ids: bool,
}

/// Fields that all objects of one answer share.
#[derive(Clone, Serialize)]
struct Head {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: String,
    seed: i64,
}

#[derive(Serialize)]
struct Completion<'a> {
    #[serde(flatten)]
    head: &'a Head,
    choices: [Choice; 1],
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct Choice {
    index: u32,
    message: Message,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: String,
    refusal: Option<String>,
}

#[derive(Serialize)]
struct Chunk<'a> {
    #[serde(flatten)]
    head: &'a Head,
    choices: Vec<ChunkChoice>,
    #[serde(skip_serializing_if = "UsageField::is_absent")]
    usage: UsageField,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Default, Serialize)]
struct ChunkChoice {
    index: u32,
    delta: ChunkDelta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

#[derive(Default, Serialize)]
struct ChunkDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

impl ChatWire {
    pub(crate) fn new(served: &Served, options: &Options) -> Result<Self, ApiError> {
        let head = Head {
            id: unique_id("chatcmpl")?,
            object: if options.stream { "chat.completion.chunk" } else { "chat.completion" },
            created: unix_seconds(),
            model: served.name.clone(),
            system_fingerprint: served.text.system_fingerprint.clone(),
            seed: options.seed,
        };
        let labels = Labels {
            tokenizer: served.text.tokenizer().ok().cloned(),
            as_ids: options.tokens_as_ids,
        };
        Ok(Self {
            head,
            labels,
            logprobs: options.sampling.top_logprobs.is_some(),
            include_usage: options.include_usage,
            return_token_ids: options.return_token_ids,
        })
    }

    fn logprobs(&self, tokens: &[GeneratedToken]) -> Option<ChatLogprobs> {
        self.logprobs.then(|| ChatLogprobs::new(tokens, &self.labels))
    }

    fn ids(&self, ids: impl Iterator<Item = TokenId>) -> Option<Vec<u32>> {
        self.return_token_ids.then(|| ids.map(|id| id.0).collect())
    }

    fn push(&self, choice: ChunkChoice, prompt_token_ids: Option<Vec<u32>>, frames: &mut Frames) {
        let usage = UsageField::before_end(self.include_usage);
        frames.push(&Chunk { head: &self.head, choices: vec![choice], usage, prompt_token_ids });
    }
}

impl Wire for ChatWire {
    fn opening(&mut self, generation: &Generation, frames: &mut Frames) {
        let delta = ChunkDelta { role: Some("assistant"), content: Some(String::new()) };
        let choice = ChunkChoice { delta, ..ChunkChoice::default() };
        self.push(choice, self.ids(generation.prompt.iter().copied()), frames);
    }

    fn delta(&mut self, delta: Delta, _: &Generation, frames: &mut Frames) {
        if !delta.text.is_empty() || !delta.tokens.is_empty() {
            let choice = ChunkChoice {
                logprobs: self.logprobs(&delta.tokens),
                token_ids: self.ids(delta.tokens.iter().map(|token| token.id)),
                delta: ChunkDelta { role: None, content: Some(delta.text) },
                ..ChunkChoice::default()
            };
            self.push(choice, None, frames);
        }
        if let Some(finish) = delta.finish {
            let choice =
                ChunkChoice { finish_reason: Some(finish.as_str()), ..ChunkChoice::default() };
            self.push(choice, None, frames);
        }
    }

    fn closing(&mut self, usage: Usage, frames: &mut Frames) {
        if self.include_usage {
            let usage = UsageField::Known(usage);
            frames.push(&Chunk {
                head: &self.head,
                choices: Vec::new(),
                usage,
                prompt_token_ids: None,
            });
        }
    }

    fn whole(&mut self, answer: Delta, generation: &Generation) -> Response {
        let choice = Choice {
            index: 0,
            logprobs: self.logprobs(&answer.tokens),
            token_ids: self.ids(answer.tokens.iter().map(|token| token.id)),
            message: Message { role: "assistant", content: answer.text, refusal: None },
            finish_reason: answer.finish.map(Finish::as_str),
        };
        let completion = Completion {
            head: &self.head,
            choices: [choice],
            usage: generation.usage().into(),
            prompt_token_ids: self.ids(generation.prompt.iter().copied()),
        };
        axum::Json(completion).into_response()
    }
}
