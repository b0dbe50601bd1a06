//! The shapes of plain completions.

use axum::response::{IntoResponse, Response};
use oarlock_types::TokenId;
use serde::Serialize;

use crate::completions::Echo;
use crate::error::ApiError;
use crate::generate::{Delta, Finish, Generation};
use crate::logprobs::{CompletionLogprobs, Labels};
use crate::models::Served;
use crate::sampling::Options;
use crate::stream::{Frames, Usage, UsageField, Wire, unique_id, unix_seconds};

/// Writes the answers to one completion request.
pub(crate) struct CompletionWire {
    head: Head,
    labels: Labels,
    logprobs: bool,
    include_usage: bool,
    return_token_ids: bool,
    /// The prompt, until it was written.
    echo: Option<Echo>,
    /// Whether a chunk was written already: the first one carries the prompt's ids.
    is_begun: bool,
}

/// Fields that all objects of one answer share.
#[derive(Serialize)]
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
    #[serde(skip_serializing_if = "UsageField::is_absent")]
    usage: UsageField,
}

#[derive(Serialize)]
struct Choice {
    index: u32,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

impl CompletionWire {
    pub(crate) fn new(
        served: &Served,
        options: &Options,
        echo: Option<Echo>,
    ) -> Result<Self, ApiError> {
        let head = Head {
            id: unique_id("cmpl")?,
            object: "text_completion",
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
            echo,
            is_begun: false,
        })
    }

    /// The prompt, where it is part of the answer: its text and logprobs.
    fn take_echo(
        &mut self,
        generation: &Generation,
        logprobs: &mut CompletionLogprobs,
    ) -> Option<String> {
        let echo = self.echo.take()?;
        if self.logprobs {
            let places = generation.prompt.iter().zip(&generation.prompt_scores).zip(&echo.offsets);
            for ((id, score), offset) in places {
                logprobs.push(*id, score.as_ref(), *offset, &self.labels);
            }
        }
        Some(echo.text)
    }

    fn choice(&self, delta: Delta, mut logprobs: CompletionLogprobs) -> Choice {
        if self.logprobs {
            logprobs.extend(&delta.tokens, &self.labels);
        }
        Choice {
            index: 0,
            prompt_token_ids: None,
            token_ids: self.ids(delta.tokens.iter().map(|token| token.id)),
            text: delta.text,
            logprobs: self.logprobs.then_some(logprobs),
            finish_reason: delta.finish.map(Finish::as_str),
        }
    }

    fn ids(&self, ids: impl Iterator<Item = TokenId>) -> Option<Vec<u32>> {
        self.return_token_ids.then(|| ids.map(|id| id.0).collect())
    }

    fn push(&mut self, mut choice: Choice, generation: &Generation, frames: &mut Frames) {
        let is_first = !std::mem::replace(&mut self.is_begun, true);
        if is_first {
            choice.prompt_token_ids = self.ids(generation.prompt.iter().copied());
        }
        let usage = UsageField::before_end(self.include_usage);
        frames.push(&Completion { head: &self.head, choices: vec![choice], usage });
    }
}

impl Wire for CompletionWire {
    /// The prompt's logprobs are not known yet: it is written before the first piece.
    fn opening(&mut self, _: &Generation, _: &mut Frames) {}

    fn delta(&mut self, delta: Delta, generation: &Generation, frames: &mut Frames) {
        let mut logprobs = CompletionLogprobs::default();
        if let Some(text) = self.take_echo(generation, &mut logprobs) {
            let echo =
                self.choice(Delta { text, ..Delta::default() }, std::mem::take(&mut logprobs));
            self.push(echo, generation, frames);
        }
        let choice = self.choice(delta, logprobs);
        self.push(choice, generation, frames);
    }

    fn closing(&mut self, usage: Usage, frames: &mut Frames) {
        if self.include_usage {
            let usage = UsageField::Known(usage);
            frames.push(&Completion { head: &self.head, choices: Vec::new(), usage });
        }
    }

    fn whole(&mut self, mut answer: Delta, generation: &Generation) -> Response {
        let mut logprobs = CompletionLogprobs::default();
        if let Some(mut text) = self.take_echo(generation, &mut logprobs) {
            text.push_str(&answer.text);
            answer.text = text;
        }
        let mut choice = self.choice(answer, logprobs);
        choice.prompt_token_ids = self.ids(generation.prompt.iter().copied());
        let usage = UsageField::Known(generation.usage().into());
        axum::Json(Completion { head: &self.head, choices: vec![choice], usage }).into_response()
    }
}
