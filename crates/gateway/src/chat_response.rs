//! The shapes of chat answers.

use axum::response::{IntoResponse, Response};
use oarlock_types::TokenId;
use serde::Serialize;

use crate::choices::{Answer, Choices};
use crate::error::ApiError;
use crate::generate::{Delta, GeneratedToken, Generation, StopReason};
use crate::logprobs::{ChatLogprobs, Labels, PromptLogprobs};
use crate::models::Served;
use crate::sampling::Options;
use crate::stream::{Frames, Usage, UsageField, Wire, unique_id, unix_seconds};

/// Writes the answers to one chat request.
pub(crate) struct ChatWire {
    head: Head,
    labels: Labels,
    logprobs: bool,
    prompt_logprobs: Option<u8>,
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
    choices: Vec<Choice>,
    usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs>,
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
    stop_reason: Option<StopReason>,
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
    stop_reason: Option<StopReason>,
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
            prompt_logprobs: options.prompt_logprobs,
            return_token_ids: options.return_token_ids,
        })
    }

    fn logprobs(&self, tokens: &[GeneratedToken]) -> Option<ChatLogprobs> {
        self.logprobs.then(|| ChatLogprobs::new(tokens, &self.labels))
    }

    fn ids(&self, ids: impl Iterator<Item = TokenId>) -> Option<Vec<u32>> {
        self.return_token_ids.then(|| ids.map(|id| id.0).collect())
    }

    fn push(
        &self,
        choice: ChunkChoice,
        prompt_token_ids: Option<Vec<u32>>,
        usage: UsageField,
        frames: &mut Frames,
    ) {
        frames.push(&Chunk { head: &self.head, choices: vec![choice], usage, prompt_token_ids });
    }
}

impl Wire for ChatWire {
    fn opening(&mut self, choices: &Choices, usage: UsageField, frames: &mut Frames) {
        for index in 0..choices.len() {
            let delta = ChunkDelta { role: Some("assistant"), content: Some(String::new()) };
            let choice = ChunkChoice { index, delta, ..ChunkChoice::default() };
            let prompt = choices.prompts().first().filter(|_| index == 0);
            let ids = prompt.and_then(|prompt| self.ids(prompt.iter().copied()));
            self.push(choice, ids, usage, frames);
        }
    }

    fn delta(&mut self, delta: Delta, from: &Generation, usage: UsageField, frames: &mut Frames) {
        let index = from.index;
        if !delta.text.is_empty() || !delta.tokens.is_empty() {
            let choice = ChunkChoice {
                index,
                logprobs: self.logprobs(&delta.tokens),
                token_ids: self.ids(delta.tokens.iter().map(|token| token.id)),
                delta: ChunkDelta { role: None, content: Some(delta.text) },
                ..ChunkChoice::default()
            };
            self.push(choice, None, usage, frames);
        }
        if let Some(finish) = delta.finish {
            let finish_reason = Some(finish.as_str());
            let stop_reason = finish.stop_reason();
            let choice =
                ChunkChoice { index, finish_reason, stop_reason, ..ChunkChoice::default() };
            self.push(choice, None, usage, frames);
        }
    }

    fn closing(&mut self, usage: Usage, frames: &mut Frames) {
        frames.push(&Chunk {
            head: &self.head,
            choices: Vec::new(),
            usage: UsageField::Known(usage),
            prompt_token_ids: None,
        });
    }

    fn whole(&mut self, answers: Vec<Answer>, _: u32, usage: Usage) -> Response {
        let first = answers.first().map(|answer| &answer.generation);
        let prompt_logprobs = first.zip(self.prompt_logprobs).map(|(first, top)| {
            PromptLogprobs::new(&first.prompt, &first.prompt_scores, top, &self.labels)
        });
        let prompt_token_ids = first.and_then(|first| self.ids(first.prompt.iter().copied()));
        let choice = |mut answer: Answer| {
            let finish = answer.take_finish();
            let Answer { delta, generation } = answer;
            Choice {
                index: generation.index,
                logprobs: self.logprobs(&delta.tokens),
                token_ids: self.ids(delta.tokens.iter().map(|token| token.id)),
                message: Message { role: "assistant", content: delta.text, refusal: None },
                finish_reason: Some(finish.as_str()),
                stop_reason: finish.stop_reason(),
            }
        };
        let completion = Completion {
            head: &self.head,
            choices: answers.into_iter().map(choice).collect(),
            usage,
            prompt_logprobs,
            prompt_token_ids,
        };
        axum::Json(completion).into_response()
    }
}
