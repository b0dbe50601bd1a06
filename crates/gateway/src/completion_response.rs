//! The shapes of plain completions.

use axum::response::{IntoResponse, Response};
use oarlock_types::TokenId;
use serde::Serialize;

use crate::choices::{Answer, Choices, best};
use crate::error::ApiError;
use crate::generate::{Delta, Finish, Generation, StopReason};
use crate::logprobs::{CompletionLogprobs, Labels, PromptLogprobs};
use crate::models::Served;
use crate::prompts::Echo;
use crate::sampling::Options;
use crate::stream::{Frames, Usage, UsageField, Wire, unique_id, unix_seconds};

/// Writes the answers to one completion request.
pub(crate) struct CompletionWire {
    head: Head,
    labels: Labels,
    /// Most likely tokens to write at each place.
    logprobs: Option<u8>,
    prompt_logprobs: Option<u8>,
    return_token_ids: bool,
    /// Answers to each prompt that are given.
    n: u32,
    /// By prompt, where they are part of the answer.
    echoes: Vec<Echo>,
    /// By sequence: whether a chunk was written already. The first one carries the prompt.
    is_begun: Vec<bool>,
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
    stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<Vec<u32>>,
}

impl CompletionWire {
    pub(crate) fn new(
        served: &Served,
        options: &Options,
        echoes: Vec<Echo>,
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
            logprobs: options.sampling.top_logprobs,
            prompt_logprobs: options.prompt_logprobs,
            return_token_ids: options.return_token_ids,
            n: options.n,
            echoes,
            is_begun: Vec::new(),
        })
    }

    /// The prompt of a sequence, where it is part of the answer: its text, and its logprobs into
    /// `logprobs`.
    fn echo(
        &self,
        generation: &Generation,
        per_prompt: u32,
        logprobs: &mut CompletionLogprobs,
    ) -> Option<&str> {
        let echo = self.echoes.get((generation.index / per_prompt) as usize)?;
        if let Some(top) = self.logprobs {
            let places = generation.prompt.iter().zip(&generation.prompt_scores).zip(&echo.offsets);
            for ((id, score), offset) in places {
                logprobs.push(*id, score.as_ref(), *offset, top, &self.labels);
            }
        }
        Some(&echo.text)
    }

    fn choice(&self, index: u32, delta: Delta, mut logprobs: CompletionLogprobs) -> Choice {
        if let Some(top) = self.logprobs {
            logprobs.extend(&delta.tokens, top, &self.labels);
        }
        Choice {
            index,
            prompt_logprobs: None,
            prompt_token_ids: None,
            token_ids: self.ids(delta.tokens.iter().map(|token| token.id)),
            text: delta.text,
            logprobs: self.logprobs.is_some().then_some(logprobs),
            finish_reason: delta.finish.as_ref().map(Finish::as_str),
            stop_reason: delta.finish.and_then(Finish::stop_reason),
        }
    }

    fn ids(&self, ids: impl Iterator<Item = TokenId>) -> Option<Vec<u32>> {
        self.return_token_ids.then(|| ids.map(|id| id.0).collect())
    }

    fn whole_choice(&self, index: u32, answer: Answer, per_prompt: u32) -> Choice {
        let Answer { mut delta, generation } = answer;
        let mut logprobs = CompletionLogprobs::default();
        if let Some(text) = self.echo(&generation, per_prompt, &mut logprobs) {
            delta.text.insert_str(0, text);
        }
        let mut choice = self.choice(index, delta, logprobs);
        choice.prompt_token_ids = self.ids(generation.prompt.iter().copied());
        choice.prompt_logprobs = self.prompt_logprobs.map(|top| {
            PromptLogprobs::new(&generation.prompt, &generation.prompt_scores, top, &self.labels)
        });
        choice
    }
}

impl Wire for CompletionWire {
    /// The prompt's logprobs are not known yet: it is written before the first piece.
    fn opening(&mut self, choices: &Choices, _: UsageField, _: &mut Frames) {
        self.is_begun = vec![false; choices.len() as usize];
    }

    fn delta(&mut self, delta: Delta, from: &Generation, usage: UsageField, frames: &mut Frames) {
        let index = from.index;
        let is_first = !std::mem::replace(&mut self.is_begun[index as usize], true);
        let mut prompt_token_ids = None;
        let mut logprobs = CompletionLogprobs::default();
        if is_first {
            prompt_token_ids = self.ids(from.prompt.iter().copied());
            // A stream gives `n` answers to each prompt.
            if let Some(text) = self.echo(from, self.n, &mut logprobs) {
                let text = text.to_owned();
                let echoed = std::mem::take(&mut logprobs);
                let mut echo = self.choice(index, Delta { text, ..Delta::default() }, echoed);
                echo.prompt_token_ids = prompt_token_ids.take();
                frames.push(&Completion { head: &self.head, choices: vec![echo], usage });
            }
        }
        let mut choice = self.choice(index, delta, logprobs);
        choice.prompt_token_ids = prompt_token_ids;
        frames.push(&Completion { head: &self.head, choices: vec![choice], usage });
    }

    fn closing(&mut self, usage: Usage, frames: &mut Frames) {
        let usage = UsageField::Known(usage);
        frames.push(&Completion { head: &self.head, choices: Vec::new(), usage });
    }

    fn whole(&mut self, answers: Vec<Answer>, per_prompt: u32, usage: Usage) -> Response {
        let answers = if per_prompt > self.n { best(answers, per_prompt, self.n) } else { answers };
        let choices = (0..)
            .zip(answers)
            .map(|(index, answer)| self.whole_choice(index, answer, per_prompt))
            .collect();
        let usage = UsageField::Known(usage);
        axum::Json(Completion { head: &self.head, choices, usage }).into_response()
    }
}
