//! An engine that gives scripted tokens, and a client for the router over it.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request as HttpRequest, Response, StatusCode};
use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use oarlock_discovery::{InMemory, Member};
use oarlock_gateway::{GatewayConfig, router};
use oarlock_rpc::{EngineApi, EngineError, EventStream};
use oarlock_types::{
    BpeVocabulary, EngineDescription, EngineLimits, EngineState, EngineStats, EngineStatus,
    EventKind, Fingerprint, FinishReason, ModelCard, RankedToken, Rejected, Request, SampledToken,
    SamplingDefaults, TokenId, TokenKind, TokenScore, TokenizerSource, Usage,
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt;

/// Ends an answer.
pub(crate) const END: u32 = 256;
/// Tokens of one sequence at most.
pub(crate) const CONTEXT: u32 = 200;
pub(crate) const MODEL: &str = "org/fake";

const TEMPLATE: &str = "{% for m in messages %}{% if m.role == 'tool' and false %}{% endif %}\
    {{ m.role }}:{{ m.content }}{% for c in m.tool_calls %}[{{ c.function.arguments | tojson }}]{% endfor %}|\
    {% endfor %}{% if tools %}{{ tools | length }} tools|{% endif %}{% if note %}{{ note }}|{% endif %}\
    {% if add_generation_prompt %}>{% endif %}";

/// What the engine does with a request after its tokens.
#[derive(Clone, Debug)]
pub(crate) enum Then {
    Finish(FinishReason),
    /// An error in the stream.
    Fail(EngineError),
    /// The stream ends without a finish.
    Break,
    /// Nothing more ever comes.
    Hang,
    /// The engine's stream panics.
    Panic,
}

/// What the engine does.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) tokens: Vec<u32>,
    pub(crate) then: Then,
    pub(crate) cached_tokens: u32,
    pub(crate) refuse: Option<EngineError>,
    /// From this request on, the queue is full.
    pub(crate) refuse_from: Option<usize>,
    /// The token that begins a plain prompt.
    pub(crate) bos: Option<u32>,
    /// Other tokens for each choice.
    pub(crate) by_choice: Option<Vec<Vec<u32>>>,
    pub(crate) unavailable: bool,
    /// What the model recommends.
    pub(crate) defaults: SamplingDefaults,
}

pub(crate) struct FakeEngine {
    pub(crate) script: Mutex<Script>,
    pub(crate) requests: Mutex<Vec<Request>>,
    /// Streams that exist now.
    pub(crate) live: watch::Sender<usize>,
}

/// Tokens of `text`, one per byte, without an end.
pub(crate) fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

pub(crate) fn script(tokens: Vec<u32>) -> Script {
    let then = Then::Finish(FinishReason::Length);
    Script {
        tokens,
        then,
        cached_tokens: 0,
        refuse: None,
        refuse_from: None,
        bos: None,
        by_choice: None,
        unavailable: false,
        defaults: SamplingDefaults::default(),
    }
}

/// The token score that the engine reports for `id`.
pub(crate) fn score(id: u32, top: u8) -> TokenScore {
    let ranked = |rank: u32| RankedToken { token: TokenId(97 + rank), logprob: -0.1 - rank as f32 };
    TokenScore {
        logprob: -0.1 * id as f32,
        rank: 1,
        top: (0..u32::from(top)).map(ranked).collect(),
    }
}

fn vocabulary() -> BpeVocabulary {
    // One token per byte: id and byte are equal. GPT-2's alphabet shifts what is not printable.
    let mut shifted = (0x100..).filter_map(char::from_u32);
    let mut tokens: Vec<String> = (0..=255_u8)
        .map(|byte| match byte {
            0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte).to_string(),
            _ => shifted.next().unwrap().to_string(),
        })
        .collect();
    let mut kinds = vec![TokenKind::Normal; 256];
    for text in ["<|end|>", "<|start|>"] {
        tokens.push(text.to_owned());
        kinds.push(TokenKind::Control);
    }
    BpeVocabulary { pre: "gpt-2".to_owned(), tokens, kinds, merges: Vec::new() }
}

fn description(bos: Option<u32>, defaults: SamplingDefaults) -> EngineDescription {
    EngineDescription {
        served_name: MODEL.to_owned(),
        card: ModelCard {
            architecture: "fake".to_owned(),
            name: "Fake".to_owned(),
            vocab_size: 258,
            context_length: CONTEXT,
            num_parameters: 1,
            tokenizer: Some(TokenizerSource::Bpe(vocabulary())),
            chat_template: Some(TEMPLATE.to_owned()),
            eos_token_ids: vec![TokenId(END)],
            bos_token_id: bos.map(TokenId),
            add_bos: bos.is_some(),
            sampling_defaults: defaults,
        },
        fingerprint: Fingerprint {
            weights: "w".into(),
            build: "b".into(),
            instruction_set: "i".into(),
        },
        limits: EngineLimits {
            max_sequence_tokens: CONTEXT,
            max_seqs: 4,
            max_queued: 4,
            max_top_logprobs: 20,
            max_queued_tokens: 1 << 20,
        },
    }
}

/// Counts a stream for as long as it exists.
struct Live(watch::Sender<usize>);

impl Drop for Live {
    fn drop(&mut self) {
        self.0.send_modify(|live| *live -= 1);
    }
}

impl FakeEngine {
    pub(crate) fn new(script: Script) -> Arc<Self> {
        let live = watch::Sender::new(0);
        Arc::new(Self { script: Mutex::new(script), requests: Mutex::default(), live })
    }

    pub(crate) fn last_request(&self) -> Request {
        self.requests.lock().unwrap().last().unwrap().clone()
    }

    fn events(script: &Script, request: &Request) -> Vec<EventKind> {
        let mut events = vec![EventKind::Started { cached_tokens: script.cached_tokens }];
        if let Some(top) = request.prompt_logprobs {
            // In two parts, as chunks of a prompt give them.
            let scores: Vec<_> = request.tokens[1..].iter().map(|id| score(id.0, top)).collect();
            let (head, tail) = scores.split_at(scores.len() / 2);
            events.push(EventKind::PromptScores { first: 1, scores: head.to_vec() });
            events.push(EventKind::PromptScores {
                first: 1 + head.len() as u32,
                scores: tail.to_vec(),
            });
        }
        let finished = |reason| EventKind::Finished { reason, usage: Usage::default() };
        for (index, id) in script.tokens.iter().enumerate() {
            if index as u32 == request.stop.max_tokens {
                break;
            }
            let score = request.sampling.top_logprobs.map(|top| score(*id, top));
            events.push(EventKind::Token(SampledToken { token: TokenId(*id), score }));
            if request.stop.stop_token_ids.contains(&TokenId(*id)) {
                events.push(finished(FinishReason::Stop));
                return events;
            }
        }
        if let Then::Finish(reason) = &script.then {
            events.push(finished(reason.clone()));
        }
        events
    }
}

impl EngineApi for FakeEngine {
    fn describe(&self) -> BoxFuture<'_, Result<EngineDescription, EngineError>> {
        let script = self.script.lock().unwrap();
        let (unavailable, bos, defaults) = (script.unavailable, script.bos, script.defaults);
        Box::pin(async move {
            if unavailable {
                Err(EngineError::Unavailable("loading".to_owned()))
            } else {
                Ok(description(bos, defaults))
            }
        })
    }

    fn generate(&self, request: Request) -> BoxFuture<'_, Result<EventStream, EngineError>> {
        let mut script = self.script.lock().unwrap().clone();
        let mut requests = self.requests.lock().unwrap();
        if script.refuse_from.is_some_and(|first| requests.len() >= first) {
            let full = Rejected::QueueFull { limit: 4, retry_after_ms: 1000 };
            return Box::pin(async move { Err(EngineError::Rejected(full)) });
        }
        requests.push(request.clone());
        drop(requests);
        if let Some(by_choice) = &script.by_choice {
            script.tokens.clone_from(&by_choice[request.sampling.choice as usize]);
        }
        if let Some(error) = script.refuse {
            return Box::pin(async move { Err(error) });
        }
        let events = Self::events(&script, &request);
        self.live.send_modify(|live| *live += 1);
        let live = Live(self.live.clone());
        let is_over = matches!(events.last(), Some(EventKind::Finished { .. }));
        let tail = match script.then {
            _ if is_over => stream::empty().boxed(),
            Then::Fail(error) => stream::iter([Err(error)]).boxed(),
            Then::Hang => stream::pending().boxed(),
            Then::Panic => stream::poll_fn(|_| panic!("the script says so")).boxed(),
            _ => stream::empty().boxed(),
        };
        let events = stream::iter(events.into_iter().map(Ok)).chain(tail).map(move |event| {
            let _ = &live;
            event
        });
        Box::pin(async move { Ok(events.boxed()) })
    }

    fn status(&self) -> BoxFuture<'_, Result<EngineStatus, EngineError>> {
        let state = if self.script.lock().unwrap().unavailable {
            EngineState::Starting
        } else {
            EngineState::Ready
        };
        let stats = EngineStats { num_running: 1, ..EngineStats::default() };
        Box::pin(async move { Ok(EngineStatus { state, stats, ..EngineStatus::default() }) })
    }
}

/// A router over one engine.
pub(crate) struct Client {
    pub(crate) engine: Arc<FakeEngine>,
    pub(crate) discovery: InMemory,
    pub(crate) router: Router,
}

pub(crate) fn client(script: Script) -> Client {
    client_with(script, GatewayConfig::default())
}

pub(crate) fn client_with(script: Script, config: GatewayConfig) -> Client {
    let engine = FakeEngine::new(script);
    let discovery = InMemory::default();
    let member = Member { id: "e0".into(), served_name: MODEL.into(), engine: engine.clone() };
    discovery.register(member);
    let router = router(discovery.view(), config);
    Client { engine, discovery, router }
}

impl Client {
    pub(crate) async fn send(&self, request: HttpRequest<Body>) -> Response<Body> {
        self.router.clone().oneshot(request).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, String) {
        text_of(self.send(HttpRequest::get(path).body(Body::empty()).unwrap()).await).await
    }

    pub(crate) async fn post_text(&self, path: &str, body: String) -> (StatusCode, String) {
        let request = HttpRequest::post(path).header("content-type", "application/json");
        text_of(self.send(request.body(Body::from(body)).unwrap()).await).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let (status, text) = self.post_text(path, body.to_string()).await;
        let json = serde_json::from_str(&text).unwrap_or_else(|_| panic!("not JSON: {text}"));
        (status, json)
    }

    /// A chat request with the given further fields.
    pub(crate) async fn chat(&self, fields: &Value) -> (StatusCode, Value) {
        self.post("/v1/chat/completions", &chat_body(fields)).await
    }

    /// A completion of the given prompt, with further fields.
    pub(crate) async fn complete(&self, fields: &Value) -> (StatusCode, Value) {
        self.post("/v1/completions", &completion_body(fields)).await
    }

    /// Waits until the engine has no stream.
    pub(crate) async fn idle(&self) {
        self.engine.live.subscribe().wait_for(|live| *live == 0).await.unwrap();
    }
}

pub(crate) async fn text_of(response: Response<Body>) -> (StatusCode, String) {
    let status = response.status();
    let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

fn with(mut body: Value, fields: &Value) -> Value {
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

pub(crate) fn chat_body(fields: &Value) -> Value {
    with(
        json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "seed": 7}),
        fields,
    )
}

pub(crate) fn completion_body(fields: &Value) -> Value {
    with(json!({"model": MODEL, "prompt": "ab", "seed": 7}), fields)
}

/// The JSON of all events of a stream, without the final `[DONE]`, which must be there.
pub(crate) fn frames(text: &str) -> Vec<Value> {
    let body =
        text.strip_suffix("data: [DONE]\n\n").unwrap_or_else(|| panic!("not complete: {text}"));
    body.split_terminator("\n\n")
        .map(|frame| serde_json::from_str(frame.strip_prefix("data: ").unwrap()).unwrap())
        .collect()
}

/// Shortens the fields that all objects of one answer share to the object's type.
pub(crate) fn redact(text: &str) -> String {
    let mut redacted = text.to_owned();
    while let Some(start) = redacted.find("\"id\":\"") {
        let object = redacted[start..].split("\"object\":\"").nth(1).unwrap();
        let object = object.split('"').next().unwrap().to_owned();
        let end = start + redacted[start..].find("\"choices\"").unwrap();
        redacted.replace_range(start..end, &format!("{object} "));
    }
    redacted
}
