//! A scrape of a live server, read by a real Prometheus parser.

use std::time::Duration;

use oarlock_testkit::{Server, ServerOptions, TinyModel, wait_until};
use serde_json::{Value, json};

use crate::disturbance::wait_for_rest;

const SCRIPT: &str = include_str!("metrics_parser.py");

fn completion(fields: &Value) -> Value {
    let mut request = json!({
        "model": "tiny", "prompt": "round and round the little wheel goes", "temperature": 0,
        "max_tokens": 8, "ignore_eos": true,
    });
    for (name, value) in fields.as_object().expect("fields") {
        request[name] = value.clone();
    }
    request
}

#[test]
fn a_scrape_is_what_prometheus_reads() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("tiny.gguf");
    TinyModel::default().write(&model).unwrap();
    let options = ServerOptions::new(&model).args(["--served-name", "tiny", "--threads", "1"]);
    let server = Server::start(&options).unwrap();
    let ask = |fields: &Value| {
        server.post("/v1/completions", &completion(fields)).ok_json()["choices"][0].clone()
    };
    // Two that run to their length; one that ends at a string of its own answer.
    let text = ask(&json!({}))["text"].as_str().unwrap().to_owned();
    assert_eq!(ask(&json!({}))["finish_reason"], "length");
    // A character that is not the first: the answer has at least two tokens then.
    let first = text.chars().next().unwrap();
    let stop = text.chars().find(|character| *character != first).unwrap().to_string();
    assert_eq!(ask(&json!({"stop": stop}))["finish_reason"], "stop");
    // One whose client goes away, one that is refused. The buffers on the way have no room for so much, so that
    // it cannot end before.
    let request = completion(&json!({"stream": true, "max_tokens": 900, "logprobs": 20}));
    let mut stream = server.stream("/v1/completions", &request);
    stream.next_json().expect("a first event");
    drop(stream);
    assert_eq!(server.post("/v1/completions", &completion(&json!({"n": -1}))).status, 400);
    wait_until("the cancelled request is counted", Duration::from_secs(20), || {
        let metrics = server.get("/metrics");
        metrics.text().contains(r#"model_name="tiny",finished_reason="abort"} 1"#)
    });
    wait_for_rest(&server);

    let Some(output) = oarlock_testkit::python(SCRIPT, &[&server.url()]) else { return };
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && printed.contains("all checks passed"),
        "{printed}\n{errors}"
    );
}
