//! The public gRPC API: the same requests, checks and limits as over HTTP, in other shapes.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use oarlock_rpc::{
    InferenceApi, InferenceError, InferenceEvent, InferenceEvents, InferencePrompt,
    InferenceRequest, InferenceToken, ServedModel, StopCause, TokenizeText, Tokenized,
};
use oarlock_types::{EngineState, TokenId, TokenScore};
use tokio::time::{MissedTickBehavior, interval};

use crate::app::App;
use crate::budget::Reserved;
use crate::caller::Caller;
use crate::choices::Choices;
use crate::error::ApiError;
use crate::generate::{Delta, Finish, GeneratedToken, Generation, StopReason};
use crate::health::statuses;
use crate::inference_fields::{chat_work, conversation_fields, generate_fields, request_work};
use crate::logprobs::Labels;
use crate::models::Served;
use crate::prompts::{Encoding, Prompt, encode_prompt};
use crate::sampling::Options;
use crate::stream::unique_id;
use crate::{chat, completions};

/// How often the health service looks at the engines.
const HEALTH_INTERVAL: Duration = Duration::from_millis(500);

/// The gateway as gRPC sees it.
pub(crate) struct Inference {
    app: App,
}

/// A call that runs.
struct Running {
    choices: Choices,
    labels: Labels,
    options: Options,
    /// Events that were made and not given yet.
    ready: std::collections::VecDeque<InferenceEvent>,
    is_over: bool,
}

impl Inference {
    pub(crate) fn new(app: App) -> Arc<Self> {
        Arc::new(Self { app })
    }

    async fn start(
        &self,
        caller: Caller,
        request: InferenceRequest,
    ) -> Result<InferenceEvents, ApiError> {
        let is_chat = matches!(request.prompt, InferencePrompt::Chat(_));
        let work = request_work(&request);
        let _values = self.reserve(work.bytes_as_json())?;
        let app = App::clone(&self.app);
        let convert = move || generate_fields(request, &app.config.request);
        let fields = self.app.compute(work.num_bytes, convert).await??;
        let (served, options, choices) = if is_chat {
            let chat::RunningChat { served, options, choices } =
                chat::start(&self.app, caller, fields).await?;
            (served, options, choices)
        } else {
            let completions::RunningCompletion { served, options, choices, .. } =
                completions::start(&self.app, caller, fields).await?;
            (served, options, choices)
        };
        let running = Running::new(&served, options, choices)?;
        let events = stream::unfold(Some(running), |running| async move {
            let mut running = running?;
            match running.next().await {
                Ok(Some(event)) => Some((Ok(event), Some(running))),
                Ok(None) => None,
                Err(error) => Some((Err(error.into()), None)),
            }
        });
        Ok(events.boxed())
    }

    async fn encode(&self, request: TokenizeText) -> Result<Tokenized, ApiError> {
        let _in_flight = self.app.admit()?;
        let served = self.app.models.find(&request.model).await?;
        let prompt = match request.prompt {
            InferencePrompt::Text(text) => {
                let add_bos = request.add_special_tokens.unwrap_or(true);
                let encoding = Encoding { add_bos, truncate: None, field: "text" };
                encode_prompt(&self.app, &served, Prompt::Text(text), encoding).await?
            }
            InferencePrompt::Chat(conversation) => {
                let work = chat_work(&conversation);
                let _values = self.reserve(work.bytes_as_json())?;
                let app = App::clone(&self.app);
                let convert = move || conversation_fields(conversation, &app.config.request);
                let conversation = self.app.compute(work.num_bytes, convert).await??;
                chat::encode_chat(&self.app, &served, conversation, None).await?
            }
            InferencePrompt::Tokens(_) => return Err(ApiError::missing("text")),
        };
        let token_ids = prompt.tokens.into_iter().map(|token| token.0).collect();
        Ok(Tokenized { token_ids, max_model_len: served.limits.max_sequence_tokens })
    }

    /// Memory for what a request becomes.
    fn reserve(&self, bytes: usize) -> Result<Reserved, ApiError> {
        let mut reserved = Reserved::default();
        let has_room = self.app.bodies.grow(&mut reserved, bytes);
        has_room.then_some(reserved).ok_or_else(ApiError::bodies_full)
    }

    async fn is_ready(&self) -> bool {
        if self.app.is_draining() {
            return false;
        }
        let statuses = statuses(&self.app).await;
        statuses.iter().any(|(_, status)| {
            status.as_ref().is_ok_and(|status| status.state == EngineState::Ready)
        })
    }
}

impl InferenceApi for Inference {
    type Caller = Caller;

    fn generate(
        self: Arc<Self>,
        caller: Caller,
        request: InferenceRequest,
    ) -> BoxFuture<'static, Result<InferenceEvents, InferenceError>> {
        async move { self.start(caller, request).await.map_err(Into::into) }.boxed()
    }

    fn tokenize(
        self: Arc<Self>,
        _: Caller,
        request: TokenizeText,
    ) -> BoxFuture<'static, Result<Tokenized, InferenceError>> {
        async move { self.encode(request).await.map_err(Into::into) }.boxed()
    }

    fn models(
        self: Arc<Self>,
        _: Caller,
    ) -> BoxFuture<'static, Result<Vec<ServedModel>, InferenceError>> {
        async move {
            let mut models = std::collections::BTreeMap::new();
            for member in self.app.view.snapshot().values() {
                let served = self.app.models.served(member).await.ok();
                let max_model_len = served.map(|served| served.limits.max_sequence_tokens);
                models.entry(member.served_name.clone()).or_insert(max_model_len);
            }
            let models = models.into_iter();
            Ok(models.map(|(name, max_model_len)| ServedModel { name, max_model_len }).collect())
        }
        .boxed()
    }

    fn health(self: Arc<Self>) -> BoxStream<'static, bool> {
        let mut ticks = interval(HEALTH_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let changes = stream::unfold((self, ticks, None), |(this, mut ticks, last)| async move {
            loop {
                ticks.tick().await;
                let now = this.is_ready().await;
                if last != Some(now) {
                    return Some((now, (this, ticks, Some(now))));
                }
            }
        });
        changes.boxed()
    }
}

impl Running {
    fn new(served: &Served, options: Options, choices: Choices) -> Result<Self, ApiError> {
        let prompt = choices.prompts().first().filter(|_| options.return_token_ids);
        let started = InferenceEvent::Started {
            id: unique_id("gen")?,
            model: served.name.clone(),
            system_fingerprint: served.text.system_fingerprint.clone(),
            seed: options.seed,
            prompt_token_ids: prompt
                .map(|prompt| prompt.iter().map(|token| token.0).collect())
                .unwrap_or_default(),
        };
        let labels = Labels { tokenizer: served.text.tokenizer().ok().cloned(), as_ids: false };
        Ok(Self { choices, labels, options, ready: [started].into(), is_over: false })
    }

    async fn next(&mut self) -> Result<Option<InferenceEvent>, ApiError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            if self.is_over {
                return Ok(None);
            }
            let Self { choices, labels, options, ready, .. } = self;
            let given = choices
                .next(|delta, from, _| push_delta(delta, from, options, labels, ready))
                .await?;
            if given.is_none() {
                self.is_over = true;
                let usage = self.choices.usage();
                self.ready.push_back(InferenceEvent::Usage {
                    prompt_tokens: usage.prompt,
                    completion_tokens: usage.completion,
                    cached_tokens: usage.cached,
                });
            }
        }
    }
}

fn push_delta(
    delta: Delta,
    from: &Generation,
    options: &Options,
    labels: &Labels,
    ready: &mut std::collections::VecDeque<InferenceEvent>,
) {
    let index = from.index;
    let top = options.sampling.top_logprobs;
    let token = |token: &GeneratedToken| scored(token.id, token.score.as_ref(), top, labels);
    let tokens: Vec<InferenceToken> = delta.tokens.iter().map(token).collect();
    if !delta.text.is_empty() || !tokens.is_empty() {
        ready.push_back(InferenceEvent::Piece { index, text: delta.text, tokens });
    }
    let Some(finish) = delta.finish else { return };
    let stop = match finish {
        Finish::Length => None,
        Finish::Stop(StopReason::EndOfSequence) => Some(StopCause::EndOfSequence),
        Finish::Stop(StopReason::Token(id)) => Some(StopCause::Token(id)),
        Finish::Stop(StopReason::Text(text)) => Some(StopCause::Text(text)),
    };
    let places = from.prompt.iter().zip(&from.prompt_scores);
    let prompt_tokens = places
        .filter(|_| options.prompt_logprobs.is_some())
        .map(|(id, score)| scored(*id, score.as_ref(), options.prompt_logprobs, labels))
        .collect();
    ready.push_back(InferenceEvent::Finished { index, stop, prompt_tokens });
}

fn scored(
    id: TokenId,
    score: Option<&TokenScore>,
    top: Option<u8>,
    labels: &Labels,
) -> InferenceToken {
    let score = score.filter(|_| top.is_some());
    let likely = score.map_or(&[][..], |score| &score.top).iter().take(top.unwrap_or(0).into());
    InferenceToken {
        id: id.0,
        text: labels.text(id),
        logprob: score.map(|score| score.logprob),
        top: likely
            .map(|ranked| (ranked.token.0, labels.text(ranked.token), ranked.logprob))
            .collect(),
    }
}
