//! Through real sockets: what one side says is what the other hears, and a dropped stream is noticed.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt as _};
use oarlock_rpc::{
    EngineApi, EngineClient, EngineError, EventStream, HeartbeatStream, LoadEvent, LoadStream,
    ResultStream, WorkerApi, WorkerClient, WorkerError, serve_engine, serve_worker,
};
use oarlock_types as t;
use proptest::prelude::*;
use tokio::net::UnixListener;
use tokio::sync::Notify;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Sends back what it is asked, and remembers whether its stream was dropped.
#[derive(Default)]
struct EchoEngine {
    events: Vec<t::EventKind>,
    endless: bool,
    dropped: Arc<Notify>,
    saw: std::sync::Mutex<Option<t::Request>>,
}

struct NotifyOnDrop(Arc<Notify>);

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl EngineApi for EchoEngine {
    fn describe(&self) -> BoxFuture<'_, Result<t::EngineDescription, EngineError>> {
        async { Ok(description()) }.boxed()
    }

    fn generate(&self, request: t::Request) -> BoxFuture<'_, Result<EventStream, EngineError>> {
        if request.tokens.is_empty() {
            return async { Err(EngineError::Rejected(queue_full())) }.boxed();
        }
        *self.saw.lock().unwrap() = Some(request);
        let guard = NotifyOnDrop(Arc::clone(&self.dropped));
        let events = stream::iter(self.events.clone().into_iter().map(Ok));
        let tail = if self.endless { stream::pending().boxed() } else { stream::empty().boxed() };
        let events = events.chain(tail).map(move |event| {
            let _ = &guard;
            event
        });
        async { Ok(events.boxed()) }.boxed()
    }

    fn status(&self) -> BoxFuture<'_, Result<t::EngineStatus, EngineError>> {
        async { Ok(status()) }.boxed()
    }
}

fn description() -> t::EngineDescription {
    t::EngineDescription {
        served_name: "demo".into(),
        card: t::ModelCard {
            architecture: "qwen2".into(),
            name: "Demo".into(),
            vocab_size: 3,
            context_length: 128,
            num_parameters: 1 << 40,
            tokenizer: Some(t::TokenizerSource::Bpe(t::BpeVocabulary {
                pre: "qwen2".into(),
                tokens: vec!["a".into(), "b".into(), "<|end|>".into()],
                kinds: vec![t::TokenKind::Normal, t::TokenKind::Byte, t::TokenKind::Control],
                merges: vec!["a b".into()],
            })),
            chat_template: Some("{{ messages }}".into()),
            eos_token_ids: vec![t::TokenId(2)],
            bos_token_id: Some(t::TokenId(0)),
            add_bos: true,
            sampling_defaults: t::SamplingDefaults {
                temperature: Some(0.5),
                top_k: Some(20),
                max_tokens: Some(7),
                ..t::SamplingDefaults::default()
            },
        },
        fingerprint: t::Fingerprint {
            weights: "w".into(),
            build: "b".into(),
            instruction_set: "i".into(),
        },
        limits: t::EngineLimits {
            max_sequence_tokens: 9,
            max_seqs: 8,
            max_queued: 7,
            max_top_logprobs: 6,
            max_queued_tokens: u64::MAX,
        },
    }
}

fn status() -> t::EngineStatus {
    t::EngineStatus {
        state: t::EngineState::Restarting { reason: "killed".into() },
        loading: t::LoadProgress { loaded_bytes: 1, total_bytes: 2 },
        worker_pids: vec![3, 4],
        stats: t::EngineStats {
            num_running: 5,
            generation_tokens: 6,
            rejected: 7,
            waiting_tokens: 8,
            ..Default::default()
        },
        step_time_us: t::Histogram { counts: [9; t::HISTOGRAM_BUCKETS], sum: 10 },
        step_tokens: t::Histogram { counts: [11; t::HISTOGRAM_BUCKETS], sum: 12 },
    }
}

fn queue_full() -> t::Rejected {
    t::Rejected::QueueTokensFull { limit: 7, retry_after_ms: 1500 }
}

fn score() -> t::TokenScore {
    let top = vec![t::RankedToken { token: t::TokenId(1), logprob: -0.1 }];
    t::TokenScore { logprob: f32::from_bits(0xbf80_0001), rank: 3, top }
}

fn all_events() -> Vec<t::EventKind> {
    let reasons = [
        t::FinishReason::Stop,
        t::FinishReason::Length,
        t::FinishReason::Cancelled,
        t::FinishReason::Deadline,
        t::FinishReason::Failed(t::SlotError::InvalidLogits),
        t::FinishReason::Failed(t::SlotError::NothingAllowed),
        t::FinishReason::Failed(t::SlotError::Panicked("why".into())),
        t::FinishReason::Failed(t::SlotError::KillsWorkers),
        t::FinishReason::EngineLost,
    ];
    let usage =
        t::Usage { prompt_tokens: 1, cached_tokens: 2, completion_tokens: 3, preemptions: 4 };
    let mut events = vec![
        t::EventKind::Started { cached_tokens: 5 },
        t::EventKind::PromptScores { first: 1, scores: vec![score(), t::TokenScore::default()] },
        t::EventKind::Token(t::SampledToken { token: t::TokenId(9), score: Some(score()) }),
        t::EventKind::Token(t::SampledToken { token: t::TokenId(0), score: None }),
    ];
    events.extend(reasons.map(|reason| t::EventKind::Finished { reason, usage }));
    events
}

/// Serves `engine` in a temporary folder while `test` runs.
fn with_engine<F: Future<Output = ()>>(engine: Arc<EchoEngine>, test: impl FnOnce(PathBuf) -> F) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    runtime().block_on(async {
        let listener = UnixListener::bind(&socket).unwrap();
        let server = tokio::spawn(serve_engine(engine, listener, std::future::pending()));
        test(socket.clone()).await;
        server.abort();
    });
}

#[test]
fn descriptions_status_and_events_arrive_as_they_were_sent() {
    let engine = Arc::new(EchoEngine { events: all_events(), ..EchoEngine::default() });
    with_engine(Arc::clone(&engine), |socket| async move {
        let client = EngineClient::new(&socket);
        assert_eq!(client.describe().await.unwrap(), description());
        assert_eq!(client.status().await.unwrap(), status());
        let events: Vec<_> = client.generate(request()).await.unwrap().collect().await;
        let expected: Vec<_> = all_events().into_iter().map(Ok).collect();
        assert_eq!(events, expected);
        assert_eq!(engine.saw.lock().unwrap().take(), Some(request()));
    });
}

#[test]
fn a_rejection_keeps_its_reason() {
    with_engine(Arc::default(), |socket| async move {
        let client = EngineClient::new(&socket);
        let empty = t::Request { tokens: vec![], num_prompt: 0, ..request() };
        let error = client.generate(empty).await.err();
        assert_eq!(error, Some(EngineError::Rejected(queue_full())));
    });
}

#[test]
fn dropping_the_stream_drops_the_engines_stream() {
    let engine =
        Arc::new(EchoEngine { events: all_events(), endless: true, ..EchoEngine::default() });
    let dropped = Arc::clone(&engine.dropped);
    with_engine(engine, |socket| async move {
        let client = EngineClient::new(&socket);
        let mut events = client.generate(request()).await.unwrap();
        assert!(events.next().await.unwrap().is_ok());
        drop(events);
        tokio::time::timeout(Duration::from_secs(5), dropped.notified()).await.unwrap();
    });
}

#[test]
fn an_engine_that_is_not_there_is_unavailable() {
    runtime().block_on(async {
        let client = EngineClient::new(Path::new("/nonexistent/socket"));
        assert!(matches!(client.describe().await, Err(EngineError::Unavailable(_))));
    });
}

fn request() -> t::Request {
    t::Request {
        id: t::RequestId::default(),
        tokens: vec![t::TokenId(1), t::TokenId(4_000_000_000)],
        num_prompt: 1,
        sampling: t::SamplingParams {
            seed: u64::MAX,
            top_logprobs: Some(20),
            rules: Some(Arc::new(rules())),
            ..Default::default()
        },
        stop: t::StopCriteria { max_tokens: 5, stop_token_ids: vec![t::TokenId(2), t::TokenId(8)] },
        prompt_logprobs: Some(0),
        priority: t::Priority(3),
        tenant: t::TenantId(4),
        salt: t::CacheSalt(u64::MAX),
        deadline: Some(t::Tick(6)),
        group: Some(t::GroupId(u64::MAX)),
    }
}

fn rules() -> t::LogitRules {
    t::LogitRules {
        allowed: vec![t::TokenId(1), t::TokenId(2)],
        bad_words: vec![vec![t::TokenId(3)], vec![t::TokenId(4), t::TokenId(3)]],
        min_tokens: 5,
        min_tokens_banned: vec![t::TokenId(6)],
        bias: vec![(t::TokenId(7), -100.0), (t::TokenId(9), 0.5)],
        repetition_penalty: 1.1,
        frequency_penalty: -0.5,
        presence_penalty: 2.0,
    }
}

/// A worker that answers each plan with the plan's own numbers.
#[derive(Default)]
struct EchoWorker {
    asked: std::sync::Mutex<Option<t::LoadOptions>>,
}

impl WorkerApi for EchoWorker {
    fn identify(&self) -> t::WorkerIdentity {
        t::WorkerIdentity { host: "here".into(), pid: 12 }
    }

    fn listen(&self, local: bool) -> Result<Vec<String>, WorkerError> {
        if local {
            Ok(vec!["127.0.0.1:1".into(), "[::1]:2".into()])
        } else {
            Err(WorkerError::Failed("no port".into()))
        }
    }

    fn watch(&self, interval: Duration) -> HeartbeatStream {
        let progress = interval.as_millis() as u64;
        let beat = t::Heartbeat { progress, waiting_for: Some(3), step: t::StepId(4) };
        stream::iter([Ok(beat), Ok(t::Heartbeat { waiting_for: None, ..beat })]).boxed()
    }

    fn load(&self, options: t::LoadOptions) -> LoadStream {
        if options.model == "/bad" {
            return stream::iter([Err(WorkerError::Failed("no such file".into()))]).boxed();
        }
        *self.asked.lock().unwrap() = Some(options.clone());
        let limits = options.limits;
        let progress = t::LoadProgress { loaded_bytes: 1, total_bytes: 2 };
        let described = t::WorkerDescription {
            card: description().card,
            fingerprint: description().fingerprint,
            limits,
            memory_bytes: 77,
        };
        stream::iter([Ok(LoadEvent::Progress(progress)), Ok(LoadEvent::Done(Box::new(described)))])
            .boxed()
    }

    fn execute(&self, plans: BoxStream<'static, Result<t::StepPlan, WorkerError>>) -> ResultStream {
        plans.map(|plan| plan.map(|plan| echo(&plan))).boxed()
    }
}

fn echo(plan: &t::StepPlan) -> t::StepResult {
    let slot = |chunk: &t::Chunk| t::SlotResult {
        slot: chunk.slot,
        outcome: match chunk.len % 3 {
            0 => Ok(None),
            1 => Ok(Some(t::SampledToken { token: t::TokenId(chunk.start), score: Some(score()) })),
            _ => Err(t::SlotError::Panicked(format!("{plan:?}"))),
        },
        prompt_scores: vec![score(); chunk.score_end.saturating_sub(chunk.score_start) as usize],
    };
    t::StepResult {
        step: plan.step,
        slots: plan.chunks.iter().map(slot).collect(),
        elapsed_us: plan.epoch.0,
    }
}

fn arbitrary_plan() -> impl Strategy<Value = t::StepPlan> {
    let start = (
        any::<u32>(),
        prop::collection::vec(any::<u32>(), 0..20),
        any::<Option<u8>>(),
        any::<u64>(),
    );
    let start = start.prop_map(|(slot, tokens, logprobs, seed)| t::SlotStart {
        slot: t::SlotId(slot),
        num_prompt: tokens.len() as u32,
        tokens: tokens.into_iter().map(t::TokenId).collect(),
        sampling: t::SamplingParams {
            seed,
            temperature: 0.3,
            top_logprobs: logprobs,
            ..Default::default()
        },
        prompt_logprobs: logprobs,
    });
    let blocks =
        (any::<u32>(), prop::collection::vec(any::<u32>(), 0..9)).prop_map(|(slot, blocks)| {
            t::NewBlocks {
                slot: t::SlotId(slot),
                blocks: blocks.into_iter().map(t::BlockId).collect(),
            }
        });
    let chunk = (any::<u32>(), any::<u32>(), any::<u32>(), any::<bool>(), 0..5_u32);
    let chunk = chunk.prop_map(|(slot, start, len, sample, scored)| t::Chunk {
        slot: t::SlotId(slot),
        start,
        len,
        sample,
        score_start: 7,
        score_end: 7 + scored,
    });
    let release = prop::collection::vec(any::<u32>().prop_map(t::SlotId), 0..5);
    let starts = prop::collection::vec(start, 0..4);
    let blocks = prop::collection::vec(blocks, 0..4);
    let chunks = prop::collection::vec(chunk, 0..6);
    (any::<u64>(), any::<u64>(), release, starts, blocks, chunks).prop_map(
        |(epoch, step, release, start, blocks, chunks)| t::StepPlan {
            epoch: t::Epoch(epoch),
            step: t::StepId(step),
            release,
            start,
            blocks,
            chunks,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn plans_reach_the_worker_and_results_come_back(
        plans in prop::collection::vec(arbitrary_plan(), 1..8),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        runtime().block_on(async {
            let worker = Arc::new(EchoWorker::default());
            let listener = UnixListener::bind(&socket).unwrap();
            let server = tokio::spawn(serve_worker(worker, listener, std::future::pending()));
            let mut client = WorkerClient::new(&socket);
            let limits = t::WorkerLimits { epoch: t::Epoch(9), num_slots: 2, ..Default::default() };
            let bad = t::LoadOptions { model: "/bad".into(), limits, ..Default::default() };
            let refused = client.load(&bad, |_| ()).await;
            assert_eq!(refused, Err(WorkerError::Failed("no such file".into())));
            let mut progress = Vec::new();
            let described = {
                let good = t::LoadOptions { model: "/m".into(), ..bad };
                client.load(&good, |p| progress.push(p)).await.unwrap()
            };
            assert_eq!((described.limits, progress.len()), (limits, 1));
            let (sender, mut results) = client.execute().await.unwrap();
            for plan in &plans {
                sender.send(plan).unwrap();
                assert_eq!(results.next().await.unwrap().unwrap(), echo(plan));
            }
            server.abort();
        });
    }
}

/// What an engine and its ranks tell each other besides plans.
#[test]
fn ranks_are_asked_and_told_everything() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    runtime().block_on(async {
        let worker = Arc::new(EchoWorker::default());
        let listener = UnixListener::bind(&socket).unwrap();
        let serving = serve_worker(Arc::clone(&worker) as _, listener, std::future::pending());
        let server = tokio::spawn(serving);
        let mut client = WorkerClient::new(&socket);
        let identity = t::WorkerIdentity { host: "here".into(), pid: 12 };
        assert_eq!(client.identify().await, Ok(identity));
        assert_eq!(client.listen(true).await.unwrap(), ["127.0.0.1:1", "[::1]:2"]);
        assert_eq!(client.listen(false).await, Err(WorkerError::Failed("no port".into())));
        let beats: Vec<_> =
            client.watch(Duration::from_millis(77)).await.unwrap().collect::<Vec<_>>().await;
        let beat = t::Heartbeat { progress: 77, waiting_for: Some(3), step: t::StepId(4) };
        assert_eq!(beats, [Ok(beat), Ok(t::Heartbeat { waiting_for: None, ..beat })]);
        let tcp = t::GroupLink::Tcp {
            addresses: vec![vec!["a:1".into(), "b:2".into()], vec![]],
            secret: *b"0123456789abcdef",
        };
        for (ranks, link) in [
            (1, t::GroupLink::Alone),
            (2, t::GroupLink::SharedMemory("/m".into())),
            (2, tcp.clone()),
        ] {
            let options = t::LoadOptions {
                model: "/m".into(),
                limits: t::WorkerLimits { epoch: t::Epoch(9), ..Default::default() },
                shard: t::Shard { rank: ranks - 1, ranks },
                link,
                stall_ms: 10_000,
                ranks_on_host: ranks,
                hash_weights: true,
            };
            client.load(&options, |_| ()).await.unwrap();
            assert_eq!(worker.asked.lock().unwrap().take(), Some(options));
        }
        // What cannot be is refused by its field.
        for (shard, link, field) in [
            (t::Shard { rank: 0, ranks: 3 }, t::GroupLink::Alone, "ranks"),
            (t::Shard { rank: 2, ranks: 2 }, t::GroupLink::Alone, "rank"),
            (t::Shard { rank: 1, ranks: 2 }, t::GroupLink::Alone, "link"),
            (t::Shard { rank: 1, ranks: 4 }, tcp, "peers"),
        ] {
            let options = t::LoadOptions { shard, link, ..Default::default() };
            let refused = client.load(&options, |_| ()).await;
            let Err(WorkerError::Protocol(message)) = refused else { panic!("{refused:?}") };
            assert!(message.contains(field), "{message}");
        }
        server.abort();
    });
}
