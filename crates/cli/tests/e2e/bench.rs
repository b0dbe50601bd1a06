//! `oarlock bench` against a server of the tiny model.

use std::process::{Command, Output};

use oarlock_testkit::{Server, ServerOptions, TinyModel, binary};
use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    Command::new(binary())
        .arg("bench")
        .args(arguments)
        .env_remove("OPENAI_API_KEY")
        .output()
        .unwrap()
}

fn report(arguments: &[&str]) -> Value {
    let output = bench(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(errors.is_empty(), "no progress line without a terminal: {errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn bench_measures_a_server() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("tiny.gguf");
    TinyModel::default().write(&model).unwrap();
    let options = ServerOptions::new(&model).args(["--served-name", "tiny", "--threads", "1"]);
    let server = Server::start(&options).unwrap();
    let url = server.url();
    let file = folder.path().join("figures.json");
    let common = ["--url", &url, "--json", "--requests", "12", "--output", file.to_str().unwrap()];

    let lengths = ["--concurrency", "1,4", "--input-len", "40", "--output-len", "8..16"];
    let generated = server.metric("oarlock_generation_tokens_total");
    let figures = report(&[&common[..], &lengths].concat());
    assert_eq!((&figures["model"], &figures["prompts"]), (&"tiny".into(), &"token ids".into()));
    let runs = figures["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2);
    for run in runs {
        assert_eq!((&run["requests"]["ok"], &run["requests"]["failed"]), (&12.into(), &0.into()));
        assert_eq!(run["input_tokens"], 12 * 40);
        let output_tokens = run["output_tokens"].as_u64().unwrap();
        assert!((12 * 8..=12 * 16).contains(&output_tokens), "{output_tokens}");
        assert!(run["ttft_ms"]["p99"].as_f64().unwrap() > 0.0);
    }
    let counted: u64 = runs.iter().map(|run| run["output_tokens"].as_u64().unwrap()).sum();
    let generated = server.metric("oarlock_generation_tokens_total") - generated;
    // Beside what is measured: a warm-up of at most 16 and a few probes.
    assert!((counted as f64..counted as f64 + 24.0).contains(&generated), "{counted} {generated}");
    let written: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(written, figures);

    let prefix = ["--request-rate", "inf", "--shared-prefix-len", "64", "--input-len", "20"];
    let figures =
        report(&[&common[..], &prefix, &["--output-len", "4", "--slo", "e2e=1m"]].concat());
    let run = &figures["runs"][0];
    assert_eq!(run["input_tokens"], 12 * 84);
    // Four blocks of the prefix, for all but those that ran together with the first.
    assert!(run["cached_input_tokens"].as_u64().unwrap() >= 64, "{run}");
    assert_eq!(run["goodput_requests_per_s"], run["requests_per_s"]);

    let text = bench(&["--url", &url, "--requests", "4", "--output-len", "4", "--input-len", "9"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("4 ok, 0 failed") && text.contains("TTFT"), "{text}");
    server.stop(std::time::Duration::from_secs(10));
    let output = bench(&["--url", &url]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(message.contains("cannot reach") && message.contains(&url), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
}
