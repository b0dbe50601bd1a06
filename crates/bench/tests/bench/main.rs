//! The whole benchmark against a server whose every answer is known.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod fake_server;

use std::collections::BTreeSet;
use std::time::Duration;

use fake_server::{FakeServer, Fault, Script};
use oarlock_bench::{
    Arrivals, BenchError, CancellationToken, Endpoint, Length, Live, Options, Report, run,
};
use serde_json::Value;

fn ordinary() -> Script {
    Script { counts_tokens: true, models: vec!["m"], ..Script::default() }
}

fn options(server: &FakeServer) -> Options {
    Options {
        url: server.url.clone(),
        requests: Some(20),
        concurrency: vec![4],
        input: Length::Fixed(30),
        output: Length::Fixed(6),
        ..Options::default()
    }
}

async fn bench(options: &Options) -> Result<Report, BenchError> {
    run(options, &Live::default(), &CancellationToken::new()).await
}

#[tokio::test]
async fn every_request_and_token_is_counted() {
    let server = FakeServer::start(Script { overhead: 5, ..ordinary() }).await;
    let options = Options {
        endpoint: Endpoint::Chat,
        concurrency: vec![1, 4],
        warmup: 3,
        slo: "e2e=1m".parse().unwrap(),
        ..options(&server)
    };
    let report = bench(&options).await.unwrap();
    assert_eq!(report.runs.len(), 2);
    for run in &report.runs {
        assert_eq!((run.requests.ok, run.requests.failed), (20, 0));
        assert_eq!((run.output_tokens, run.cached_input_tokens), (120, 20));
        // The overhead of the template is part of the 30.
        assert_eq!(run.input_tokens, 600);
        assert_eq!(run.tokens_per_event, Some(1.0));
        assert_eq!(run.rates.goodput_requests_per_s, Some(run.rates.requests_per_s));
        assert_eq!(run.ttft_ms.unwrap().count, 20);
        assert_eq!(run.itl_ms.unwrap().count, 100);
        assert!(run.duration_s > 0.0 && run.rates.output_tokens_per_s > 0.0);
        let (ttft, e2e) = (run.ttft_ms.unwrap(), run.e2e_ms.unwrap());
        assert!(ttft.p50 <= e2e.max && ttft.p50 <= ttft.p99 && ttft.p99 <= ttft.max);
    }
    let requests = server.requests();
    assert_eq!(requests.len(), 43);
    for request in &requests {
        assert_eq!((&request["ignore_eos"], &request["min_tokens"]), (&true.into(), &6.into()));
        assert_eq!((&request["model"], &request["temperature"]), (&"m".into(), &0.0.into()));
    }
    let different: BTreeSet<String> = requests.iter().map(ToString::to_string).collect();
    assert_eq!(different.len(), 43, "no run may find the prompts of another in the cache");
}

#[tokio::test]
async fn a_seed_sends_the_same_requests_again() {
    let server = FakeServer::start(Script { has_tokenize: true, ..ordinary() }).await;
    let mut sent = Vec::new();
    for (seed, concurrency) in [(1, 1), (1, 5), (2, 1)] {
        let lengths = Length::Uniform(10, 50);
        let options = Options {
            seed,
            concurrency: vec![concurrency],
            input: lengths,
            output: Length::Uniform(2, 9),
            ..options(&server)
        };
        let before = server.requests().len();
        bench(&options).await.unwrap();
        let mut requests: Vec<String> =
            server.requests()[before..].iter().map(ToString::to_string).collect();
        requests.sort();
        sent.push(requests);
    }
    assert_eq!(sent[0], sent[1]);
    assert_ne!(sent[0], sent[2]);
}

#[tokio::test]
async fn prompts_are_token_ids_where_the_server_takes_them() {
    let server = FakeServer::start(Script { has_tokenize: true, ..ordinary() }).await;
    let report = bench(&options(&server)).await.unwrap();
    assert_eq!((report.prompts, report.runs[0].input_tokens), ("token ids", 600));
    let is_exact = |request: &Value| request["prompt"].as_array().unwrap().len() == 30;
    assert!(server.requests().iter().all(is_exact));

    // One that counts something on top (a beginning of sequence) gets words.
    let server = FakeServer::start(Script { has_tokenize: true, overhead: 1, ..ordinary() }).await;
    let report = bench(&options(&server)).await.unwrap();
    assert_eq!((report.prompts, report.runs[0].input_tokens), ("words", 600));
}

#[tokio::test]
async fn fields_that_a_server_refuses_are_left_out() {
    for (unknown, ignores_eos, has_usage) in [
        (vec!["min_tokens"], true, true),
        (vec!["min_tokens", "ignore_eos"], false, true),
        (vec!["min_tokens", "ignore_eos", "max_tokens"], false, true),
        (vec!["min_tokens", "ignore_eos", "stream_options"], false, false),
    ] {
        let script = Script { unknown_fields: unknown.clone(), ..ordinary() };
        let server = FakeServer::start(script).await;
        let options = Options { endpoint: Endpoint::Chat, ..options(&server) };
        let report = bench(&options).await.unwrap();
        assert_eq!(report.ignore_eos, ignores_eos, "{unknown:?}");
        let run = &report.runs[0];
        assert_eq!((run.requests.ok, run.output_tokens), (20, 120), "{unknown:?}");
        assert_eq!(run.requests.without_usage, if has_usage { 0 } else { 20 }, "{unknown:?}");
        let num_warnings = usize::from(!ignores_eos) + usize::from(!has_usage);
        assert_eq!(report.warnings.len(), num_warnings, "{:?}", report.warnings);
    }
}

#[tokio::test]
async fn failures_are_counted_by_kind_and_end_nothing() {
    let faults = vec![(7, Fault::ErrorEvent), (5, Fault::BreaksOff), (3, Fault::Busy)];
    let server = FakeServer::start(Script { faults, ..ordinary() }).await;
    let report =
        bench(&Options { requests: Some(30), warmup: 0, ..options(&server) }).await.unwrap();
    let run = &report.runs[0];
    let count = |kind: &str| run.errors[kind].count;
    // Of 30: 4 multiples of 7; 6 of 5; 10 of 3, less 15, 21 and 30.
    assert_eq!(count("error event"), 4);
    assert_eq!(count("disconnected"), 6);
    assert_eq!(count("http 429"), 7);
    assert_eq!((run.requests.ok, run.requests.failed), (13, 17));
    assert_eq!(run.errors["http 429"].example, "the queue is full");
    assert_eq!(run.output_tokens, 13 * 6);
    assert_eq!(report.total_failure(), None);
    let text = report.to_string();
    assert!(text.contains("7 × http 429: the queue is full"), "{text}");
}

#[tokio::test]
async fn when_all_fail_there_is_one_message() {
    let server = FakeServer::start(Script { faults: vec![(1, Fault::Busy)], ..ordinary() }).await;
    let report = bench(&options(&server)).await.unwrap();
    let message = report.total_failure().unwrap();
    assert!(message.contains("all 20 requests failed"), "{message}");
    assert!(message.contains("http 429: the queue is full"), "{message}");
}

#[tokio::test]
async fn conversations_grow_by_their_answers() {
    let server = FakeServer::start(ordinary()).await;
    let options = Options {
        endpoint: Endpoint::Chat,
        turns: 3,
        requests: Some(6),
        concurrency: vec![1],
        warmup: 0,
        output: Length::Fixed(2),
        ..options(&server)
    };
    let report = bench(&options).await.unwrap();
    assert_eq!(report.runs[0].requests.ok, 6);
    // 30 words each, and two words of each answer before.
    assert_eq!(report.runs[0].input_tokens, 2 * (30 + 62 + 94));
    let requests = server.requests();
    let messages: Vec<&Vec<Value>> =
        requests.iter().map(|request| request["messages"].as_array().unwrap()).collect();
    assert_eq!(messages.iter().map(|m| m.len()).collect::<Vec<_>>(), [1, 3, 5, 1, 3, 5]);
    assert_eq!(messages[1][1]["content"], " t0 t1");
    assert_eq!(messages[2][..3], messages[1][..]);
}

#[tokio::test]
async fn an_open_loop_sends_all_and_keeps_to_its_limit() {
    let server = FakeServer::start(ordinary()).await;
    for (requests_per_s, concurrency) in [(f64::INFINITY, vec![]), (500.0, vec![2])] {
        let arrivals = Some(Arrivals { requests_per_s, burstiness: 1.0 });
        let report = bench(&Options { arrivals, concurrency, ..options(&server) }).await.unwrap();
        let run = &report.runs[0];
        assert_eq!((run.requests.ok, run.output_tokens), (20, 120));
        assert!(run.arrivals.is_some() && run.rates.steady_output_tokens_per_s.is_none());
        if requests_per_s.is_finite() {
            // Twenty intervals of 2 ms on average, at this seed.
            assert!(run.duration_s > 0.01, "{}", run.duration_s);
        }
    }
}

#[tokio::test]
async fn exactly_as_many_requests_are_sent_as_were_asked_for() {
    let server = FakeServer::start(ordinary()).await;
    let arrivals = Some(Arrivals { requests_per_s: f64::INFINITY, burstiness: 1.0 });
    for arrivals in [None, arrivals] {
        let before = server.requests().len();
        let options = Options {
            endpoint: Endpoint::Chat,
            turns: 4,
            requests: Some(10),
            concurrency: vec![1],
            arrivals,
            ..options(&server)
        };
        let report = bench(&options).await.unwrap();
        assert_eq!(report.runs[0].requests.ok, 10);
        let requests = &server.requests()[before..];
        let messages = requests.iter().map(|request| request["messages"].as_array().unwrap().len());
        // The one before is the warm-up, and the last conversation is the shorter one.
        assert_eq!(messages.collect::<Vec<_>>(), [1, 1, 3, 5, 7, 1, 3, 5, 7, 1, 3]);
    }
}

#[tokio::test]
async fn streams_are_not_all_busy_before_the_slowest_has_had_a_token() {
    let server = FakeServer::start(Script { num_hanging: 1, ..ordinary() }).await;
    let (live, cancel) = (Live::default(), CancellationToken::new());
    let options = Options { warmup: 0, concurrency: vec![2], ..options(&server) };
    let stop = async {
        while live.current().num_ok() < 19 {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
    };
    let (report, ()) = tokio::join!(run(&options, &live, &cancel), stop);
    let run = &report.unwrap().runs[0];
    assert_eq!(run.requests.ok, 19);
    assert_eq!(run.rates.steady_output_tokens_per_s, None, "one stream had no token at all");
}

#[tokio::test]
async fn waiting_for_a_place_is_part_of_the_latency_of_what_arrives() {
    let delay = Duration::from_millis(20);
    let server = FakeServer::start(Script { delay, ..ordinary() }).await;
    let arrivals = Some(Arrivals { requests_per_s: 1e6, burstiness: 1.0 });
    let overloaded = Options {
        arrivals,
        concurrency: vec![1],
        requests: Some(5),
        slo: "ttft=50ms".parse().unwrap(),
        ..options(&server)
    };
    let report = bench(&overloaded).await.unwrap();
    let run = &report.runs[0];
    assert_eq!(run.requests.ok, 5);
    // All five are due within 0.1 ms, and one is answered every 20 ms.
    let (ttft, e2e, wait) =
        (run.ttft_ms.unwrap(), run.e2e_ms.unwrap(), run.client_wait_ms.unwrap());
    assert!(ttft.max >= 97.0 && e2e.max >= ttft.max && ttft.mean >= 57.0, "{ttft:?}");
    assert!(wait.max >= 77.0 && wait.max <= ttft.max && wait.count == 5, "{wait:?}");
    let good = run.rates.goodput_requests_per_s.unwrap() * run.duration_s;
    assert!(good < 2.5, "at most two of the five were answered in time: {good}");
    let text = report.to_string();
    assert!(text.contains("client wait   mean "), "{text}");
    let json: Value = serde_json::from_str(&report.to_json()).unwrap();
    assert!(json["runs"][0]["client_wait_ms"]["p99"].as_f64().unwrap() >= 57.0);

    // Streams that ask when they are ready never wait.
    let report = bench(&Options { arrivals: None, ..overloaded }).await.unwrap();
    assert!(report.runs[0].client_wait_ms.is_none() && !report.to_string().contains("client wait"));
}

#[tokio::test]
async fn what_was_due_and_found_no_place_is_counted() {
    let server = FakeServer::start(Script { num_hanging: 1, ..ordinary() }).await;
    let options = Options {
        arrivals: Some(Arrivals { requests_per_s: f64::INFINITY, burstiness: 1.0 }),
        concurrency: vec![1],
        requests: Some(5),
        warmup: 0,
        duration: Some(Duration::from_millis(500)),
        // Longer, so that the first one keeps its place until the end.
        timeout: Duration::from_secs(2),
        ..options(&server)
    };
    let report = bench(&options).await.unwrap();
    let requests = report.runs[0].requests;
    assert_eq!((requests.ok, requests.failed, requests.never_sent), (0, 1, 4));
    assert_eq!(server.requests().len(), 1, "none starts after the end");
    let text = report.to_string();
    assert!(text.contains("never sent    4 were due"), "{text}");
}

#[tokio::test]
async fn a_duration_ends_a_run_and_a_cancelled_one_reports_what_it_has() {
    let server = FakeServer::start(ordinary()).await;
    let limited =
        Options { requests: None, duration: Some(Duration::from_millis(200)), ..options(&server) };
    let report = bench(&limited).await.unwrap();
    assert!(report.runs[0].requests.ok > 0 && report.runs[0].duration_s < 5.0);

    let server = FakeServer::start(Script { num_hanging: usize::MAX, ..ordinary() }).await;
    let (live, cancel) = (Live::default(), CancellationToken::new());
    let endless = Options { warmup: 0, ..options(&server) };
    let stop = async {
        while live.current().num_running() < 4 {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
    };
    let (report, ()) = tokio::join!(run(&endless, &live, &cancel), stop);
    let report = report.unwrap();
    assert!(report.interrupted);
    assert_eq!((report.runs[0].requests.ok, report.runs[0].requests.failed), (0, 0));
    assert_eq!(report.total_failure(), None);
    let error = run(&endless, &live, &cancel).await.unwrap_err();
    assert!(matches!(error, BenchError::Interrupted), "{error}");
    // Enough for the requests that only look at the server.
    let late = Options { timeout: Duration::from_secs(2), requests: Some(2), ..endless };
    let report = bench(&late).await.unwrap();
    assert_eq!(report.runs[0].errors["timeout"].count, 2);
}

#[tokio::test]
async fn what_cannot_work_is_said_before_anything_is_measured() {
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    let error = bench(&Options { url: url.clone(), ..Options::default() }).await.unwrap_err();
    assert!(matches!(error, BenchError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&url), "{error}");

    let server = FakeServer::start(Script { models: vec!["a", "b"], ..ordinary() }).await;
    let error = bench(&options(&server)).await.unwrap_err();
    assert_eq!(error.to_string(), "--model is needed: the server lists a, b");
    assert!(bench(&Options { model: Some("b".into()), ..options(&server) }).await.is_ok());

    let server = FakeServer::start(Script { key: Some("secret"), ..ordinary() }).await;
    let error = bench(&options(&server)).await.unwrap_err();
    assert!(error.to_string().contains("--api-key"), "{error}");
    let with_key = Options { api_key: Some("secret".into()), ..options(&server) };
    assert!(bench(&with_key).await.is_ok());

    let script = Script { unknown_fields: vec!["temperature"], ..ordinary() };
    let server = FakeServer::start(script).await;
    let error = bench(&options(&server)).await.unwrap_err();
    assert!(error.to_string().contains("unknown field temperature"), "{error}");
}

#[tokio::test]
async fn the_report_is_one_json_object() {
    let server = FakeServer::start(ordinary()).await;
    let report = bench(&options(&server)).await.unwrap();
    let json: Value = serde_json::from_str(&report.to_json()).unwrap();
    let run = &json["runs"][0];
    assert_eq!((&run["requests"]["ok"], &run["concurrency"]), (&20.into(), &4.into()));
    for figure in ["requests_per_s", "output_tokens_per_s", "total_tokens_per_s"] {
        assert!(run[figure].as_f64().unwrap() > 0.0, "{figure}");
    }
    for latency in ["ttft_ms", "itl_ms", "tpot_ms", "e2e_ms"] {
        assert!(run[latency]["p99"].as_f64().unwrap() >= run[latency]["p50"].as_f64().unwrap());
    }
    assert!(run["goodput_requests_per_s"].is_null());
}
