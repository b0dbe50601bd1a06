//! Every family through HTTP, on the CPU with one rank and two and on a simulated GPU: the tiny models agree
//! with what transformers computes of them, and their answers' bits depend on nothing but the request.

use std::path::Path;
use std::time::Instant;

use oarlock_testkit::{Server, ServerOptions, TINY_MODELS, TinyModel, fixture, fixture_json};
use serde_json::{Value, json};

use crate::alone;
use crate::disturbance::{PATIENT, post_in_company};

fn on_cpu(model: &str, arguments: &[&str]) -> Server {
    let common = ["--served-name=m", "--device=cpu", "--threads=2", PATIENT];
    let options = ServerOptions::new(fixture(&format!("tiny/{model}"))).args(common);
    Server::start(&options.args(arguments.iter().copied())).unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

pub(crate) fn cases(model: &str) -> Vec<Value> {
    cases_of(&format!("tiny/{model}"))
}

pub(crate) fn cases_of(folder: &str) -> Vec<Value> {
    let file = fixture_json(&format!("{folder}/expected.json"));
    let mut cases = file["cases"].as_array().unwrap().clone();
    // The longest prompt last.
    cases.sort_by_key(|case| case["prompt"].as_array().unwrap().len());
    cases
}

/// A reference's prompt and as many greedy tokens as it has.
fn request(case: &Value) -> Value {
    json!({
        "model": "m", "prompt": case["prompt"], "max_tokens": case["greedy24"].as_array().unwrap().len(),
        "temperature": 0, "logprobs": 20, "prompt_logprobs": 0, "return_token_ids": true, "ignore_eos": true,
    })
}

/// The choices of all cases, one after the other.
pub(crate) fn ask(server: &Server, cases: &[Value]) -> Vec<Value> {
    let post =
        |case| server.post("/v1/completions", &request(case)).ok_json()["choices"][0].clone();
    cases.iter().map(post).collect()
}

/// The same at once, and others with them.
pub(crate) fn ask_in_company(server: &Server, cases: &[Value]) -> Vec<Value> {
    let other = |other: usize| {
        let prompt: Vec<_> =
            (0..3 + other * 7 % 20).map(|at| 3 + (at * 31 + other * 17) % 300).collect();
        json!({"model": "m", "prompt": prompt, "max_tokens": 6, "seed": other})
    };
    let others: Vec<Value> = (0..9).map(other).collect();
    let requests: Vec<Value> = cases.iter().map(request).collect();
    let bodies = post_in_company(server, &requests, &others);
    bodies.into_iter().map(|mut body| body["choices"][0].take()).collect()
}

/// Distances of choices from the reference's logprobs, of prompts and of the eight most likely tokens after
/// them, ascending, and the greatest lead of a token that the reference chose and the model did not.
pub(crate) fn distances(cases: &[Value], choices: &[Value]) -> (Vec<f64>, f64) {
    let mut all = Vec::new();
    let mut lead = 0.0_f64;
    for (case, choice) in cases.iter().zip(choices) {
        let prompt = case["prompt"].as_array().unwrap();
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
        let greedy = case["greedy24"].as_array().unwrap();
        let chosen = choice["token_ids"].as_array().unwrap();
        assert_eq!(chosen.len(), greedy.len());
        if let Some(at) = chosen.iter().zip(greedy).position(|(ours, theirs)| ours != theirs) {
            lead = lead.max(margins[at]);
        }
    }
    all.sort_by(f64::total_cmp);
    (all, lead)
}

/// In float32 to 1e-3, greedy tokens wherever the reference's lead is greater.
pub(crate) fn assert_exact(what: &str, cases: &[Value], choices: &[Value]) {
    let (all, lead) = distances(cases, choices);
    let worst = all.last().expect("some values");
    eprintln!("{what}: {worst:.6} at worst of {}, lead {lead:.6}", all.len());
    assert!(*worst <= 1e-3 && lead <= 1e-3, "{what}: {worst}, {lead}");
}

/// In bfloat16 to 0.1 on average and 0.5 at the 99th percentile.
pub(crate) fn assert_near(what: &str, cases: &[Value], choices: &[Value]) {
    let (all, _) = distances(cases, choices);
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    let p99 = all[all.len() * 99 / 100];
    eprintln!("{what}: {mean:.4} on average, {p99:.4} at the 99th percentile of {}", all.len());
    assert!(mean <= 0.1 && p99 <= 0.5, "{what}: mean {mean}, p99 {p99}");
}

/// Token ids and every bit of the logprobs, which are written so that the decimal tells them.
pub(crate) fn assert_same(what: &str, found: &[Value], expected: &[Value]) {
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        for field in ["token_ids", "logprobs", "prompt_logprobs"] {
            assert!(found[field] == expected[field], "{what}: {field} of case {index} differ");
        }
    }
    assert_eq!(found.len(), expected.len());
}

/// One rank and two; alone, from a warm cache, in company and in chunks.
fn on_the_cpu(model: &str) {
    let begin = Instant::now();
    let cases = cases(model);
    let server = on_cpu(model, &["--dtype=float32"]);
    let exact = ask(&server, &cases);
    assert_exact(&format!("{model} in float32"), &cases, &exact);
    drop(server);
    let server = on_cpu(model, &["--dtype=float32", "--tensor-parallel=2", "--chunk-tokens=64"]);
    let two_ranks = ask(&server, &cases);
    assert_exact(&format!("{model} in float32 on two ranks"), &cases, &two_ranks);
    assert_same(&format!("{model} in float32, two ranks, chunks of 64"), &two_ranks, &exact);
    drop(server);
    let server = on_cpu(model, &["--step-tokens=1024"]);
    let near = ask(&server, &cases);
    assert_near(&format!("{model} in bfloat16"), &cases, &near);
    assert_same(&format!("{model}, a warm cache"), &ask(&server, &cases), &near);
    drop(server);
    let server = on_cpu(model, &["--tensor-parallel=2", "--chunk-tokens=7"]);
    let crowd = ask_in_company(&server, &cases);
    assert_same(&format!("{model}, two ranks in company, chunks of 7"), &crowd, &near);
    assert_same(&format!("{model}, two ranks, warm"), &ask(&server, &cases), &near);
    eprintln!("{model}: {:.1} s", begin.elapsed().as_secs_f32());
}

#[test]
fn every_family_agrees_with_its_reference_on_the_cpu() {
    let _turn = alone();
    for model in TINY_MODELS {
        on_the_cpu(model);
    }
}

/// A model in several files answers as the same one in a single file, and has its name.
#[test]
fn files_of_several_parts_are_one_model() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("tiny.gguf");
    TinyModel::default().write(&whole).unwrap();
    TinyModel::default().write_parts(folder.path(), 3).unwrap();
    let answer = |path: &Path| {
        let server = Server::start(&ServerOptions::new(path)).unwrap();
        assert_eq!(server.get("/v1/models").ok_json()["data"][0]["id"], "tiny");
        let request = json!({
            "model": "tiny", "prompt": "Once upon", "max_tokens": 12, "temperature": 0, "logprobs": 3,
        });
        server.post("/v1/completions", &request).ok_json()["choices"].clone()
    };
    assert_eq!(answer(&folder.path().join("tiny-00001-of-00003.gguf")), answer(&whole));
    let second = folder.path().join("tiny-00002-of-00003.gguf");
    let error = Server::start(&ServerOptions::new(second)).err().unwrap().to_string();
    assert!(error.contains("open the first one, tiny-00001-of-00003.gguf"), "{error}");
}

/// Relatives whose references have angles as people run models: `stored` is for references of models that were
/// cast as a whole.
#[test]
fn buffers_are_rounded_where_it_is_asked_for() {
    let _turn = alone();
    let model = fixture("relatives/qwen2-yarn");
    let cases = cases_of("relatives/qwen2-yarn");
    let serve = |model: &Path, arguments: &[&str]| {
        let options = ServerOptions::new(model).args(["--served-name=m", "--dtype=float32"]);
        Server::start(&options.args(arguments.iter().copied())).unwrap()
    };
    let server = serve(&model, &["--buffer-dtype=float32"]);
    let exact = ask(&server, &cases);
    assert_exact("relatives/qwen2-yarn", &cases, &exact);
    drop(server);
    let server = serve(&model, &[]);
    server.wait_for_log("rounded to bfloat16");
    let rounded = ask(&server, &cases);
    let (all, _) = distances(&cases, &rounded);
    assert!(*all.last().unwrap() > 1e-3, "rounding makes a difference");
}
