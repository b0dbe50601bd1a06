//! `oarlock inspect`, and checkpoints that are damaged: what is said before anything is served.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use oarlock_testkit::{Server, ServerOptions, binary, fixture};
use serde_json::{Value, json};

use crate::alone;
use crate::families::{ask, assert_near, assert_same, cases_of};

fn inspect(path: &Path, arguments: &[&str]) -> Output {
    Command::new(binary()).arg("inspect").arg(path).args(arguments).output().unwrap()
}

#[test]
fn checkpoints_are_described() {
    let output = inspect(&fixture("tiny/qwen3-moe"), &["--json", "--kv-cache-tokens=1000"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&all["family"], &all["architecture"]), (&json!("Qwen3-MoE"), &json!("qwen3_moe")));
    assert_eq!((&all["parameters"], &all["context_length"]), (&json!(338_048), &json!(512)));
    assert_eq!(all["types"][0]["name"], "BF16");
    let experts = json!({"experts": 8, "experts_per_token": 2, "feed_forward": 48, "layers": 3});
    assert_eq!(all["experts"], experts);
    let degrees = all["tensor_parallel"].as_array().unwrap();
    let ranks: Vec<_> = degrees.iter().map(|degree| degree["ranks"].as_u64().unwrap()).collect();
    assert_eq!(ranks, [1, 2, 4]);
    let bytes = |at: usize, name: &str| degrees[at][name].as_u64().unwrap();
    assert_eq!(bytes(0, "read_bytes"), all["bytes"].as_u64().unwrap());
    assert!(bytes(1, "read_bytes") < bytes(0, "read_bytes") * 6 / 10);
    // Three layers of two heads of 32 keys and values in two bytes.
    assert_eq!(bytes(0, "kv_bytes_per_token"), 3 * 2 * 2 * 32 * 2);
    let total = bytes(0, "weight_bytes") + 1000 * bytes(0, "kv_bytes_per_token");
    assert_eq!(bytes(0, "total_bytes"), total);
    let quantized = inspect(&fixture("tiny/llama"), &["--json", "--quantize=q8_0"]);
    let quantized: Value = serde_json::from_slice(&quantized.stdout).unwrap();
    let plain = inspect(&fixture("tiny/llama"), &["--json"]);
    let plain: Value = serde_json::from_slice(&plain.stdout).unwrap();
    let weights = |all: &Value| all["tensor_parallel"][0]["weight_bytes"].as_u64().unwrap();
    assert!(weights(&quantized) < weights(&plain) * 7 / 10, "{quantized}");
    // 64 columns of a row-parallel layer are two blocks of 32, 160 are five.
    assert_eq!(quantized["tensor_parallel"].as_array().unwrap().len(), 1);
    let text = inspect(&fixture("tiny/gemma2"), &[]);
    let text = String::from_utf8(text.stdout).unwrap();
    for words in [
        "Gemma 2 (gemma2)",
        "24 positions in 2 layers",
        "tied to the embedding",
        "--tensor-parallel",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

/// A copy of a folder in which one file's bytes are changed.
fn damaged(file: &str, change: impl Fn(&mut Vec<u8>)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        let mut bytes = fs::read(fixture("tiny/llama").join(name)).unwrap();
        if name == file {
            change(&mut bytes);
        }
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

/// A server ends with the same words that inspecting gives, at once.
#[test]
fn damaged_checkpoints_are_refused_by_name() {
    let replace = |bytes: &mut Vec<u8>, from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = bytes.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    };
    let truncated = damaged("model.safetensors", |bytes| bytes.truncate(bytes.len() - 100));
    let renamed =
        damaged("model.safetensors", |bytes| replace(bytes, "1.mlp.up_proj", "1.mlp.up_pr0j"));
    let reshaped = damaged("model.safetensors", |bytes| replace(bytes, "[64,160]", "[160,64]"));
    let hostile = damaged("model.safetensors", |bytes| bytes[..8].fill(0xff));
    let wider = damaged("config.json", |bytes| {
        replace(bytes, "\"hidden_size\": 64", "\"hidden_size\": 96");
    });
    for (folder, words) in [
        (truncated, ["model.safetensors", "truncated"]),
        (renamed, ["model.layers.1.mlp.up_proj.weight", "missing"]),
        (reshaped, ["mlp.down_proj.weight", "expected 64x160"]),
        (hostile, ["model.safetensors", "header"]),
        (wider, ["model.embed_tokens.weight", "expected 320x96"]),
    ] {
        let output = inspect(folder.path(), &[]);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
        let serve = Command::new(binary())
            .args(["serve", "--port=0", "--device=cpu", "--model"])
            .arg(folder.path())
            .output()
            .unwrap();
        let log = String::from_utf8(serve.stderr).unwrap();
        assert!(!serve.status.success() && !log.contains("panicked"), "{log}");
        assert!(words.iter().all(|word| log.contains(word)), "{log}");
    }
}

/// Weights that are quantized at load are near the reference, and have the same bits in chunks and, where their
/// width has whole blocks for two ranks, on two, of experts as well. What experts lose is the model crate's to say:
/// a choice that rounding swaps is far off.
#[test]
fn quantizing_at_load() {
    let _turn = alone();
    for (name, is_near, ranks) in [
        ("tiny/qwen3", true, "1"),
        ("relatives/llama-blocks", true, "2"),
        ("relatives/qwen3-moe-blocks", false, "2"),
    ] {
        let serve = |arguments: &[&str]| {
            let options = ServerOptions::new(fixture(name));
            let options = options.args(["--served-name=m", "--device=cpu", "--quantize=q8_0"]);
            Server::start(&options.args(arguments.iter().copied())).unwrap()
        };
        let cases = cases_of(name);
        let server = serve(&[]);
        server.wait_for_log("-q8_0");
        let whole = ask(&server, &cases);
        if is_near {
            assert_near(&format!("{name}, q8_0 at load"), &cases, &whole);
        }
        drop(server);
        let cut = serve(&["--tensor-parallel", ranks, "--chunk-tokens=7"]);
        let what = format!("{name}, q8_0 at load, {ranks} ranks, chunks of 7");
        assert_same(&what, &ask(&cut, &cases), &whole);
    }
}
