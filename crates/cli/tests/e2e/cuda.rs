//! The CUDA backend behind the whole server, on simulated GPUs: the tiny models agree with their references,
//! and an answer's bits depend on nothing but the request.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use oarlock_testkit::{
    Server, ServerOptions, Signal, binary, fixture, fixture_json, simulated_gpus, wait_until,
};
use serde_json::{Value, json};

use crate::alone;
use crate::contract::signal_all;

const MODELS: [&str; 3] = ["llama", "qwen2", "llama-tied-mqa"];

fn serve(model: &str, dtype: &str, seed: u64, arguments: &[&str]) -> Server {
    let common = ["--served-name", "m", "--device", "cuda", "--dtype", dtype];
    // A simulated step takes its time, above all where others compute, too.
    let patient = ["--stall-seconds", "60", "--kv-cache-tokens", "4096"];
    let options = ServerOptions::new(fixture(&format!("tiny/{model}")))
        .args(common)
        .args(patient)
        .args(arguments.iter().copied())
        .env("OARLOCK_SIMGPU", "1x4GiB")
        .env("OARLOCK_SIMGPU_SEED", &seed.to_string());
    Server::start(&on_device(options)).unwrap()
}

/// With the simulated driver, unless `cargo xtask gpu-test` asks for the real one.
fn on_device(options: ServerOptions) -> ServerOptions {
    if std::env::var_os("OARLOCK_TEST_REAL_GPU").is_some() {
        return options;
    }
    options.env("LD_LIBRARY_PATH", simulated_gpus().to_str().unwrap())
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// Distances of a model's logprobs from the reference's, prompts and the top eight after them, and the
/// greatest lead of a token that the reference chose and the model did not.
fn distances(server: &Server, model: &str) -> (Vec<f64>, f64) {
    let mut all = Vec::new();
    let mut lead = 0.0_f64;
    for case in fixture_json(&format!("tiny/{model}/expected.json"))["cases"].as_array().unwrap() {
        let prompt = case["prompt"].as_array().unwrap();
        let greedy = case["greedy24"].as_array().unwrap();
        let body = json!({
            "model": "m", "prompt": prompt, "max_tokens": greedy.len(), "temperature": 0,
            "logprobs": 20, "prompt_logprobs": 0, "return_token_ids": true, "ignore_eos": true,
        });
        let body = server.post("/v1/completions", &body).ok_json();
        let choice = &body["choices"][0];
        let scored = choice["prompt_logprobs"].as_array().unwrap().iter().skip(1);
        let scored = scored.zip(&prompt[1..]).map(|(entry, token)| &entry[token.to_string()]);
        let ours = scored.map(|entry| entry["logprob"].as_f64().unwrap());
        let theirs = floats(&case["prompt_logprobs"]);
        all.extend(ours.zip(&theirs).map(|(ours, theirs)| (ours - theirs).abs()));
        let top = &choice["logprobs"]["top_logprobs"][0];
        let ids = case["top8_ids"].as_array().unwrap();
        for (id, theirs) in ids.iter().zip(floats(&case["top8_logprobs"])) {
            let ours = top[format!("token_id:{id}")].as_f64().expect("among twenty");
            all.push((ours - theirs).abs());
        }
        let margins = floats(&case["greedy_margins"]);
        let chosen = choice["token_ids"].as_array().unwrap();
        if let Some(at) = chosen.iter().zip(greedy).position(|(ours, theirs)| ours != theirs) {
            lead = lead.max(margins[at]);
        }
    }
    (all, lead)
}

/// Mean, 99th percentile and greatest.
fn summary(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    [mean, values[values.len() * 99 / 100], values[values.len() - 1]]
}

#[test]
fn float32_agrees_with_the_references() {
    let _turn = alone();
    for model in MODELS {
        // What the references are of: see `crates/model/tests/tiny_hub.rs`.
        let server = serve(model, "float32", 1, &["--rope-frequencies", "bfloat16"]);
        let (distances, lead) = distances(&server, model);
        let [mean, p99, worst] = summary(distances);
        eprintln!("{model}: mean {mean:.6}, p99 {p99:.6}, worst {worst:.6}; lead {lead:.6}");
        assert!(worst <= 1e-3 && lead <= 1e-3, "{model}: {worst}, {lead}");
    }
}

#[test]
fn bfloat16_is_near_the_references() {
    let _turn = alone();
    for model in MODELS {
        let server = serve(model, "bfloat16", 2, &["--rope-frequencies", "bfloat16"]);
        let [mean, p99, worst] = summary(distances(&server, model).0);
        eprintln!("{model}: mean {mean:.4}, p99 {p99:.4}, worst {worst:.4}");
        assert!(mean <= 0.1 && p99 <= 0.5, "{model}: mean {mean}, p99 {p99}");
    }
}

/// What must not depend on anything but the request; logprobs are written so that they tell every bit.
fn answer(body: &Value) -> [Value; 2] {
    let choice = &body["choices"][0];
    [choice["token_ids"].clone(), choice["logprobs"].clone()]
}

fn request(len: usize, salt: u64, max_tokens: u32) -> Value {
    let mix = |at: usize| (at as u64 + 1 + salt * 7919).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
    let prompt: Vec<u64> = (0..len).map(|at| 3 + mix(at) % 317).collect();
    json!({
        "model": "m", "prompt": prompt, "max_tokens": max_tokens, "temperature": salt % 2, "seed": salt,
        "top_p": 0.9, "logprobs": 5, "return_token_ids": true, "ignore_eos": true,
    })
}

/// Alone, from a warm cache, in company and in chunks, each on devices with another schedule.
fn contract(model: &str, dtype: &str) {
    let _turn = alone();
    let requests: Vec<_> =
        [(5, 0), (5, 1), (300, 2), (300, 3)].map(|(len, salt)| request(len, salt, 6)).to_vec();
    let ask = |server: &Server| -> Vec<[Value; 2]> {
        let ask = |request| answer(&server.post("/v1/completions", request).ok_json());
        requests.iter().map(ask).collect()
    };
    let server = serve(model, dtype, 3, &["--step-tokens", "512"]);
    let expected = ask(&server);
    assert!(ask(&server) == expected, "{model}, {dtype}: a warm cache changes bits");
    drop(server);
    let server = serve(model, dtype, 4, &["--step-tokens", "512"]);
    // The worker stands still until all are there.
    signal_all(&server, Signal::STOP);
    let crowd: Vec<[Value; 2]> = thread::scope(|scope| {
        let post = |request: Value| answer(&server.post("/v1/completions", &request).ok_json());
        for other in 0..12 {
            scope.spawn(move || post(request(3 + other * 7 % 20, 1000 + other as u64, 6)));
        }
        let ours: Vec<_> =
            requests.iter().cloned().map(|one| scope.spawn(move || post(one))).collect();
        let all = 12.0 + requests.len() as f64;
        wait_until("all are there", Duration::from_secs(20), || {
            let count = |state| server.metric(&format!("oarlock_num_requests_{state}"));
            count("running") + count("waiting") >= all
        });
        assert_eq!(server.metric("oarlock_generation_tokens_total"), 0.0, "nobody was early");
        signal_all(&server, Signal::CONT);
        ours.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert!(crowd == expected, "{model}, {dtype}: company changes bits");
    drop(server);
    for chunk in ["7", "64"] {
        let server = serve(model, dtype, 5, &["--chunk-tokens", chunk]);
        assert!(ask(&server) == expected, "{model}, {dtype}: chunks of {chunk} change bits");
    }
}

#[test]
fn bits_depend_on_the_request_alone() {
    contract("llama", "bfloat16");
    contract("qwen2", "bfloat16");
    contract("llama-tied-mqa", "bfloat16");
}

#[test]
fn bits_depend_on_the_request_alone_in_float32() {
    contract("llama", "float32");
}

/// A context that a kernel broke ends its rank, which is replaced; answers go on as if nothing had been.
#[test]
fn a_broken_device_is_replaced() {
    if std::env::var_os("OARLOCK_TEST_REAL_GPU").is_some() {
        eprintln!("skipped: a real device is not broken on purpose");
        return;
    }
    let _turn = alone();
    let requests: Vec<_> = (0..3).map(|salt| request(20, salt, 12)).collect();
    let ask = |server: &Server| -> Vec<[Value; 2]> {
        thread::scope(|scope| {
            let post = |one| answer(&server.post("/v1/completions", one).ok_json());
            let asking: Vec<_> =
                requests.iter().map(|one| scope.spawn(move || post(one))).collect();
            asking.into_iter().map(|one| one.join().unwrap()).collect()
        })
    };
    let whole = serve("llama", "bfloat16", 6, &[]);
    let expected = ask(&whole);
    drop(whole);
    let options = ServerOptions::new(fixture("tiny/llama"))
        .args(["--served-name", "m", "--device", "cuda", "--stall-seconds", "60"])
        .args(["--kv-cache-tokens", "4096"])
        .env("OARLOCK_SIMGPU", "1x4GiB")
        // Some steps into the answers.
        .env("OARLOCK_SIMGPU_BREAKS_AT", "200");
    let server = Server::start(&on_device(options)).unwrap();
    assert!(ask(&server) == expected, "a broken device changes an answer");
    assert!(server.metric("oarlock_worker_restarts_total") >= 1.0, "{}", server.log());
    let log = server.log();
    assert!(log.contains("broken on purpose") && log.contains("CUDA_ERROR_LAUNCH_FAILED"), "{log}");
}

/// Without a driver, `auto` says nothing and computes; `cuda` says what is missing.
#[test]
fn a_machine_without_a_driver() {
    let _turn = alone();
    let model = fixture("tiny/llama");
    let mut child = Command::new(binary())
        .args(["serve", "--port", "0", "--device", "cuda", "--model"])
        .arg(&model)
        .env("LD_LIBRARY_PATH", "")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > Duration::from_secs(20) {
            child.kill().unwrap();
            child.wait().unwrap();
            eprintln!("skipped: this machine has a CUDA driver");
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
    let mut message = String::new();
    child.stderr.take().unwrap().read_to_string(&mut message).unwrap();
    assert!(message.contains("--device cuda: no CUDA driver"), "{message}");
    let options = ServerOptions::new(model)
        .args(["--served-name", "m", "--device", "auto"])
        .env("LD_LIBRARY_PATH", "");
    let server = Server::start(&options).unwrap();
    server.post("/v1/completions", &request(5, 0, 2)).ok_json();
    assert!(!server.log().to_lowercase().contains("cuda"), "{}", server.log());
}

/// `auto` takes the CPU where CUDA could not: here, for two ranks.
#[test]
fn auto_takes_what_is_enough() {
    let _turn = alone();
    for (ranks, device) in [("1", "cuda-"), ("2", "cpu-")] {
        let options = ServerOptions::new(fixture("tiny/llama"))
            .args(["--served-name", "m", "--device", "auto", "--tensor-parallel", ranks])
            .args(["--stall-seconds", "60", "--kv-cache-tokens", "4096"])
            .env("OARLOCK_SIMGPU", "1x4GiB");
        let server = Server::start(&on_device(options)).unwrap();
        assert!(server.log().contains(&format!("instruction_set={device}")), "{}", server.log());
    }
}

/// A device that breaks at once says so in the driver's words.
#[test]
fn the_first_error_is_told() {
    if std::env::var_os("OARLOCK_TEST_REAL_GPU").is_some() {
        eprintln!("skipped: a real device is not broken on purpose");
        return;
    }
    let _turn = alone();
    let options = ServerOptions::new(fixture("tiny/llama"))
        .args(["--served-name", "m", "--device", "cuda", "--kv-cache-tokens", "4096"])
        .env("OARLOCK_SIMGPU", "1x4GiB")
        .env("OARLOCK_SIMGPU_BREAKS_AT", "1");
    let server = Server::start(&on_device(options)).unwrap();
    let failed = server.post("/v1/completions", &request(20, 0, 4));
    assert_eq!(failed.status, 500, "{}", failed.text());
    let log = server.log();
    assert!(log.contains("CUDA_ERROR_LAUNCH_FAILED") && !log.contains("panicked"), "{log}");
}
