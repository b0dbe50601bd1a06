//! The CUDA backend behind the whole server, on simulated GPUs: the tiny models agree with their references,
//! and an answer's bits depend on nothing but the request.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use oarlock_testkit::{
    PATIENCE, Server, ServerOptions, TINY_MODELS, binary, fixture, simulated_gpus,
};
use serde_json::{Value, json};

use crate::alone;
use crate::families::{ask, ask_in_company, assert_exact, assert_near, assert_same, cases};

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
    // Two servers with a simulated device each share two cores.
    Server::start(&on_device(options).timeout(3 * PATIENCE)).unwrap()
}

/// With the simulated driver, unless `cargo xtask gpu-test` asks for the real one.
fn on_device(options: ServerOptions) -> ServerOptions {
    if std::env::var_os("OARLOCK_TEST_REAL_GPU").is_some() {
        return options;
    }
    options.env("LD_LIBRARY_PATH", simulated_gpus().to_str().unwrap())
}

/// Two models at a time: a simulated device has one thread.
fn for_every_model(check: fn(&str)) {
    let models = Mutex::new(TINY_MODELS.iter());
    let next = || models.lock().unwrap().next();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(model) = next() {
                    check(model);
                }
            });
        }
    });
}

#[test]
fn float32_agrees_with_the_references() {
    let _turn = alone();
    for_every_model(|model| {
        let begin = Instant::now();
        let cases = cases(model);
        let server = serve(model, "float32", 1, &[]);
        assert_exact(&format!("{model} in float32"), &cases, &ask_in_company(&server, &cases));
        eprintln!("{model}: {:.1} s", begin.elapsed().as_secs_f32());
    });
}

/// In company; then alone, in chunks and on a device with another schedule, and from a warm cache.
#[test]
fn bfloat16_is_near_the_references_and_bits_depend_on_the_request_alone() {
    let _turn = alone();
    for_every_model(|model| {
        let begin = Instant::now();
        let cases = cases(model);
        let server = serve(model, "bfloat16", 2, &["--step-tokens", "512"]);
        let near = ask_in_company(&server, &cases);
        assert_near(&format!("{model} in bfloat16"), &cases, &near);
        drop(server);
        let server = serve(model, "bfloat16", 3, &["--chunk-tokens", "64"]);
        // Steps of one row take as long as those of many here: the two longest prompts are enough.
        let longest = cases.len() - 2..cases.len();
        for what in ["alone, chunks of 64", "a warm cache"] {
            let alone = ask(&server, &cases[longest.clone()]);
            assert_same(&format!("{model}, {what}"), &alone, &near[longest.clone()]);
        }
        eprintln!("{model}: {:.1} s", begin.elapsed().as_secs_f32());
    });
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
    for words in ["broken on purpose", "CUDA_ERROR_LAUNCH_FAILED"] {
        server.wait_for_log(words);
    }
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
        server.wait_for_log(&format!("instruction_set={device}"));
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
    server.wait_for_log("CUDA_ERROR_LAUNCH_FAILED");
    assert!(!server.log().contains("panicked"), "{}", server.log());
}
