//! One sequence: drives the engine's events to text, stop strings and per-token records.

use std::sync::Arc;

use futures::StreamExt;
use oarlock_rpc::EventStream;
use oarlock_telemetry::{Ending, Finished, RequestRecorder};
use oarlock_text::{Detokenizer, StopMatcher, Tokenizer};
use oarlock_types::{EventKind, FinishReason, SampledToken, TokenId, TokenScore};

use crate::error::ApiError;
use crate::settings::Settings;

/// A running sequence. Dropping it cancels it.
pub(crate) struct Generation {
    /// Which sequence of its request: by prompt, then by choice.
    pub(crate) index: u32,
    /// `None` once nothing more is wanted from the engine.
    events: Option<EventStream>,
    /// An event that was looked at before the answer began.
    peeked: Option<EventKind>,
    text: Option<(Arc<Tokenizer>, Detokenizer)>,
    stop: StopMatcher,
    settings: Arc<Settings>,
    /// Records whose text is still held back.
    pending: Vec<GeneratedToken>,
    num_chars: usize,
    last_token: Option<TokenId>,
    usage: TokenUsage,
    pub(crate) prompt: Arc<[TokenId]>,
    /// By prompt token, where they were asked for; the first token has none.
    pub(crate) prompt_scores: Vec<Option<TokenScore>>,
    recorder: RequestRecorder,
    max_tokens: u32,
    n: Option<u32>,
}

/// Token counts so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TokenUsage {
    pub(crate) prompt: u32,
    /// Of the prompt, tokens that came from the prefix cache.
    pub(crate) cached: u32,
    pub(crate) completion: u32,
}

/// One generated token.
#[derive(Clone, Debug)]
pub(crate) struct GeneratedToken {
    pub(crate) id: TokenId,
    pub(crate) score: Option<TokenScore>,
    /// Characters of the answer's text before it.
    pub(crate) text_offset: usize,
}

/// A further piece of the answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Delta {
    pub(crate) text: String,
    pub(crate) tokens: Vec<GeneratedToken>,
    pub(crate) finish: Option<Finish>,
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    /// By a stop string, by a token that the client named, or by the model itself.
    Stop(StopReason),
    Length,
}

/// What ended an answer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(untagged)]
pub(crate) enum StopReason {
    /// The model's own end of sequence: null.
    EndOfSequence,
    /// A token of `stop_token_ids`.
    Token(u32),
    /// A string of `stop`.
    Text(String),
}

impl Finish {
    /// OpenAI's word.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Stop(_) => "stop",
            Self::Length => "length",
        }
    }

    /// vLLM's `stop_reason`.
    pub(crate) fn stop_reason(self) -> Option<StopReason> {
        match self {
            Self::Stop(StopReason::EndOfSequence) | Self::Length => None,
            Self::Stop(reason) => Some(reason),
        }
    }
}

/// What a sequence is, besides its settings.
pub(crate) struct Sequence {
    /// Which one of its request: by prompt, then by choice.
    pub(crate) index: u32,
    pub(crate) prompt: Arc<[TokenId]>,
    /// Whether its prompt is scored.
    pub(crate) has_scores: bool,
    /// Characters of the answer before the first generated one (an echoed prompt).
    pub(crate) num_echo_chars: usize,
    pub(crate) max_tokens: u32,
    /// The request's `n`, on its first sequence.
    pub(crate) n: Option<u32>,
}

impl Generation {
    /// A sequence whose engine's stream is `events`.
    pub(crate) fn new(
        sequence: Sequence,
        events: EventStream,
        settings: Arc<Settings>,
        recorder: RequestRecorder,
    ) -> Self {
        let Sequence { index, prompt, has_scores, num_echo_chars, max_tokens, n } = sequence;
        let text = settings.tokenizer.as_ref().map(|tokenizer| {
            (Arc::clone(tokenizer), Detokenizer::new(settings.skip_special_tokens))
        });
        Self {
            index,
            events: Some(events),
            peeked: None,
            text,
            stop: StopMatcher::new(&settings.stop, settings.include_stop),
            pending: Vec::new(),
            num_chars: num_echo_chars,
            last_token: None,
            usage: TokenUsage { prompt: prompt.len() as u32, ..TokenUsage::default() },
            prompt_scores: vec![None; if has_scores { prompt.len() } else { 0 }],
            prompt,
            settings,
            recorder,
            max_tokens,
            n,
        }
    }

    /// Waits for the first event, so that a refusal is still an error status and not an event in a
    /// stream.
    pub(crate) async fn begin(&mut self) -> Result<(), ApiError> {
        let first = self.next_event().await?;
        match &first {
            Some(EventKind::Started { .. }) => self.recorder.started(),
            Some(EventKind::Finished { reason, usage }) => {
                if let Some(error) = ApiError::from_finish(reason) {
                    self.record(Ending::from(reason), Some(usage.preemptions));
                    return Err(error);
                }
            }
            _ => {}
        }
        self.peeked = first;
        Ok(())
    }

    /// The next piece; `None` after the one with a finish reason. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<Delta>, ApiError> {
        while let Some(event) = self.next_event().await? {
            let delta = match event {
                EventKind::Started { cached_tokens } => {
                    self.recorder.started();
                    self.usage.cached = cached_tokens;
                    None
                }
                EventKind::PromptScores { first, scores } => {
                    self.keep_scores(first, scores)?;
                    None
                }
                EventKind::Token(sampled) => self.on_token(sampled),
                EventKind::Finished { reason, usage } => {
                    Some(self.on_finish(&reason, usage.preemptions)?)
                }
            };
            if delta.is_some() {
                return Ok(delta);
            }
        }
        Ok(None)
    }

    /// Token counts; final once an answer's last piece was given.
    pub(crate) fn usage(&self) -> TokenUsage {
        self.usage
    }

    async fn next_event(&mut self) -> Result<Option<EventKind>, ApiError> {
        if let Some(event) = self.peeked.take() {
            return Ok(Some(event));
        }
        let Some(events) = &mut self.events else { return Ok(None) };
        let error = match events.next().await {
            Some(Ok(event)) => return Ok(Some(event)),
            Some(Err(error)) => error.into(),
            None => ApiError::engine_lost(),
        };
        self.record(Ending::Error, None);
        Err(error)
    }

    /// Its request was refused after all: it counts nowhere.
    pub(crate) fn refused(&mut self) {
        self.recorder.refused();
    }

    /// Counts how the sequence ended; only the first call does.
    fn record(&mut self, ending: Ending, preemptions: Option<u32>) {
        self.recorder.finished(Finished {
            ending,
            prompt_tokens: self.usage.prompt,
            generation_tokens: self.usage.completion,
            preemptions,
            n: self.n,
            max_tokens: self.max_tokens,
        });
    }

    fn keep_scores(&mut self, first: u32, scores: Vec<TokenScore>) -> Result<(), ApiError> {
        let start = first as usize;
        let places = self.prompt_scores.get_mut(start..start.saturating_add(scores.len()));
        let places = places.ok_or_else(|| {
            tracing::error!(
                first,
                count = scores.len(),
                "scores for prompt tokens that do not exist"
            );
            ApiError::internal("The engine gave an answer that cannot be understood")
        })?;
        for (place, score) in places.iter_mut().zip(scores) {
            *place = Some(score);
        }
        Ok(())
    }

    fn on_token(&mut self, sampled: SampledToken) -> Option<Delta> {
        self.recorder.token();
        self.usage.completion += 1;
        let SampledToken { token: id, score } = sampled;
        self.last_token = Some(id);
        if self.settings.keep_tokens {
            self.pending.push(GeneratedToken { id, score, text_offset: self.num_chars });
        }
        // The stopping token is reported, but not part of the text; the finish follows.
        if self.settings.ends_with(id) && !self.settings.include_stop {
            return None;
        }
        let mut piece = String::new();
        let mut is_held = false;
        if let Some((tokenizer, detokenizer)) = &mut self.text {
            detokenizer.push(tokenizer, id, &mut piece);
            is_held = detokenizer.is_pending();
        }
        self.num_chars += piece.chars().count();
        let mut text = String::new();
        if self.usage.completion <= self.settings.min_tokens {
            // Before the least length, a stop string is text like any other.
            text = piece;
        } else if self.stop.push(&piece, &mut text) {
            let reason = self.stop.found().map(|stop| self.settings.stop[stop].clone());
            let reason = reason.map_or(StopReason::EndOfSequence, StopReason::Text);
            self.record(Ending::Stop, None);
            return Some(self.end(text, Finish::Stop(reason)));
        }
        is_held |= self.stop.is_holding();
        let has_something = !text.is_empty() || (!is_held && !self.pending.is_empty());
        has_something.then(|| Delta {
            text,
            tokens: std::mem::take(&mut self.pending),
            finish: None,
        })
    }

    fn on_finish(&mut self, reason: &FinishReason, preemptions: u32) -> Result<Delta, ApiError> {
        if let Some(error) = ApiError::from_finish(reason) {
            self.record(Ending::from(reason), Some(preemptions));
            return Err(error);
        }
        let mut finish = Finish::Length;
        if *reason == FinishReason::Stop {
            finish = Finish::Stop(self.settings.stop_reason(self.last_token));
        }
        let mut piece = String::new();
        if let Some((_, detokenizer)) = &mut self.text {
            detokenizer.finish(&mut piece);
        }
        let mut text = String::new();
        if self.stop.push(&piece, &mut text) {
            let reason = self.stop.found().map(|stop| self.settings.stop[stop].clone());
            finish = Finish::Stop(reason.map_or(StopReason::EndOfSequence, StopReason::Text));
        } else {
            self.stop.finish(&mut text);
        }
        let ending = if finish == Finish::Length { Ending::Length } else { Ending::Stop };
        self.record(ending, Some(preemptions));
        Ok(self.end(text, finish))
    }

    /// The last piece; lets the engine's stream go, which cancels what may still run.
    fn end(&mut self, text: String, finish: Finish) -> Delta {
        self.events = None;
        Delta { text, tokens: std::mem::take(&mut self.pending), finish: Some(finish) }
    }
}
