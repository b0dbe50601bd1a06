//! One generation: drives the engine's events to text, stop strings and per-token records.

use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use oarlock_rpc::EventStream;
use oarlock_telemetry::{Ending, Finished, RequestRecorder};
use oarlock_text::{Detokenizer, StopMatcher, Tokenizer};
use oarlock_types::{
    CacheSalt, EventKind, FinishReason, Priority, Request, RequestId, SampledToken, SamplingParams,
    StopCriteria, TenantId, Tick, TokenId, TokenScore,
};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::app::App;
use crate::error::ApiError;
use crate::models::Served;
use crate::sampling::Options;

/// What to generate.
pub(crate) struct Job {
    pub(crate) prompt: Vec<TokenId>,
    pub(crate) sampling: SamplingParams,
    pub(crate) stop: Vec<String>,
    pub(crate) ignore_eos: bool,
    pub(crate) max_tokens: u32,
    pub(crate) prompt_logprobs: Option<u8>,
    /// Whether records of single tokens are wanted (logprobs, token ids).
    pub(crate) keep_tokens: bool,
    /// Characters of the answer before the first generated one (an echoed prompt).
    pub(crate) num_echo_chars: usize,
}

impl Job {
    /// A job with the shared options; `prompt` is checked and fits.
    pub(crate) fn new(prompt: Vec<TokenId>, max_tokens: u32, options: &Options) -> Self {
        Self {
            prompt,
            sampling: options.sampling.clone(),
            stop: options.stop.clone(),
            ignore_eos: options.ignore_eos,
            max_tokens,
            prompt_logprobs: None,
            keep_tokens: options.sampling.top_logprobs.is_some() || options.return_token_ids,
            num_echo_chars: 0,
        }
    }
}

/// A running generation. Dropping it cancels it.
pub(crate) struct Generation {
    /// `None` once nothing more is wanted from the engine.
    events: Option<EventStream>,
    /// An event that was looked at before the answer began.
    peeked: Option<EventKind>,
    text: Option<(Arc<Tokenizer>, Detokenizer)>,
    stop: StopMatcher,
    stop_token_ids: Vec<TokenId>,
    keep_tokens: bool,
    /// Records whose text is still held back.
    pending: Vec<GeneratedToken>,
    num_chars: usize,
    usage: TokenUsage,
    pub(crate) prompt: Vec<TokenId>,
    /// By prompt token, where they were asked for; the first token has none.
    pub(crate) prompt_scores: Vec<Option<TokenScore>>,
    recorder: RequestRecorder,
    max_tokens: u32,
    _in_flight: TaskTrackerToken,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    Stop,
    Length,
}

impl Finish {
    /// OpenAI's word.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

impl Generation {
    /// Hands the job to the engine and waits for its first event, so that a refusal is still an
    /// error status and not an event in a stream.
    pub(crate) async fn start(
        app: &App,
        served: &Served,
        job: Job,
        in_flight: TaskTrackerToken,
        arrived: Instant,
    ) -> Result<Self, ApiError> {
        let text = served
            .text
            .tokenizer()
            .ok()
            .map(|tokenizer| (Arc::clone(tokenizer), Detokenizer::new(true)));
        if text.is_none() && !job.stop.is_empty() {
            return Err(ApiError::invalid("stop", "this model gives token ids only"));
        }
        let stop_token_ids =
            if job.ignore_eos { Vec::new() } else { served.text.eos_token_ids.clone() };
        let deadline = app
            .config
            .request_timeout
            .map(|limit| Tick(u64::try_from(limit.as_micros()).unwrap_or(u64::MAX)));
        let request = Request {
            id: RequestId(0),
            num_prompt: job.prompt.len() as u32,
            tokens: job.prompt.clone(),
            sampling: job.sampling,
            stop: StopCriteria {
                max_tokens: job.max_tokens,
                stop_token_ids: stop_token_ids.clone(),
            },
            prompt_logprobs: job.prompt_logprobs,
            priority: Priority::default(),
            tenant: TenantId(0),
            salt: CacheSalt(0),
            deadline,
            group: None,
        };
        let events = served.engine.generate(request).await?;
        let recorder = app.metrics.request(&served.name, arrived);
        let num_scores = if job.prompt_logprobs.is_some() { job.prompt.len() } else { 0 };
        let mut generation = Self {
            events: Some(events),
            peeked: None,
            text,
            stop: StopMatcher::new(&job.stop, false),
            stop_token_ids,
            keep_tokens: job.keep_tokens,
            pending: Vec::new(),
            num_chars: job.num_echo_chars,
            usage: TokenUsage { prompt: job.prompt.len() as u32, ..TokenUsage::default() },
            prompt: job.prompt,
            prompt_scores: vec![None; num_scores],
            recorder,
            max_tokens: job.max_tokens,
            _in_flight: in_flight,
        };
        let first = generation.next_event().await?.ok_or_else(ApiError::engine_lost)?;
        if let EventKind::Finished { reason, usage } = &first
            && let Some(error) = ApiError::from_finish(reason)
        {
            generation.record(Ending::from(reason), Some(usage.preemptions));
            return Err(error);
        }
        generation.peeked = Some(first);
        Ok(generation)
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

    /// The whole answer.
    pub(crate) async fn collect(&mut self) -> Result<Delta, ApiError> {
        let mut whole = Delta::default();
        while let Some(delta) = self.next().await? {
            whole.text.push_str(&delta.text);
            whole.tokens.extend(delta.tokens);
            whole.finish = delta.finish;
        }
        Ok(whole)
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

    /// Counts how the sequence ended; only the first call does.
    fn record(&mut self, ending: Ending, preemptions: Option<u32>) {
        self.recorder.finished(Finished {
            ending,
            prompt_tokens: self.usage.prompt,
            generation_tokens: self.usage.completion,
            preemptions,
            n: Some(1),
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
        if self.keep_tokens {
            self.pending.push(GeneratedToken { id, score, text_offset: self.num_chars });
        }
        // The stopping token is reported, but not part of the text; the finish follows.
        if self.stop_token_ids.binary_search(&id).is_ok() {
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
        if self.stop.push(&piece, &mut text) {
            self.record(Ending::Stop, None);
            return Some(self.end(text, Finish::Stop));
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
        self.record(Ending::from(reason), Some(preemptions));
        if let Some(error) = ApiError::from_finish(reason) {
            return Err(error);
        }
        let mut finish = if *reason == FinishReason::Stop { Finish::Stop } else { Finish::Length };
        let mut piece = String::new();
        if let Some((_, detokenizer)) = &mut self.text {
            detokenizer.finish(&mut piece);
        }
        let mut text = String::new();
        if self.stop.push(&piece, &mut text) {
            finish = Finish::Stop;
        } else {
            self.stop.finish(&mut text);
        }
        Ok(self.end(text, finish))
    }

    /// The last piece; lets the engine's stream go, which cancels what may still run.
    fn end(&mut self, text: String, finish: Finish) -> Delta {
        self.events = None;
        Delta { text, tokens: std::mem::take(&mut self.pending), finish: Some(finish) }
    }
}
