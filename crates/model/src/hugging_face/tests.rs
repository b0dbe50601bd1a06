//! Folders that are damaged, or not supported: each is refused with what is wrong, and where.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Tensors, tensor_table};
use crate::Checkpoint;

/// A copy of the tiny Qwen2 with some fields of its configuration replaced.
fn folder(changes: &Value) -> tempfile::TempDir {
    let source = oarlock_testkit::fixture("tiny/qwen2");
    let folder = tempfile::tempdir().unwrap();
    let mut config: Value =
        serde_json::from_slice(&fs::read(source.join("config.json")).unwrap()).unwrap();
    for (field, value) in changes.as_object().unwrap() {
        config[field] = value.clone();
    }
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    fs::copy(source.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    folder
}

fn refused(folder: &Path) -> String {
    Checkpoint::open(folder).err().expect("it cannot be served").to_string()
}

#[test]
fn what_is_not_supported_is_named() {
    for (changes, words) in [
        (json!({"model_type": "mamba"}), ["mamba", "llama, qwen2"]),
        (json!({"model_type": null}), ["model_type", "missing"]),
        (json!({"hidden_act": "relu"}), ["hidden_act", "silu"]),
        (json!({"use_sliding_window": true}), ["use_sliding_window", "not supported"]),
        (json!({"quantization_config": {"bits": 4}}), ["quantization_config", "GGUF"]),
        (json!({"rope_scaling": {"type": "yarn", "factor": 4.0}}), ["rope_scaling", "yarn"]),
        (json!({"rope_parameters": {"rope_type": "llama3"}}), ["rope_parameters", "llama3"]),
        (json!({"vocab_size": "many"}), ["vocab_size", "positive"]),
        (json!({"vocab_size": 4_000_000}), ["vocabulary", "more than"]),
        (json!({"num_attention_heads": 0}), ["num_attention_heads", "positive"]),
        (json!({"rms_norm_eps": -1}), ["rms_norm_eps", "positive"]),
        (json!({"num_key_value_heads": 3}), ["head_count_kv", "3 key heads"]),
        (json!({"head_dim": 24}), ["key_length", "multiple of 16"]),
        (json!({"mlp_bias": 1}), ["mlp_bias", "neither true nor false"]),
    ] {
        let error = refused(folder(&changes).path());
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
}

#[test]
fn files_that_are_missing_or_damaged_are_named() {
    let whole = folder(&json!({}));
    let path = |name: &str| whole.path().join(name);
    assert!(Checkpoint::open(whole.path()).is_ok());
    let weights = fs::read(path("model.safetensors")).unwrap();
    fs::write(path("model.safetensors"), &weights[..weights.len() - 1]).unwrap();
    let error = refused(whole.path());
    assert!(error.contains("model.safetensors") && error.contains("header"), "{error}");
    fs::write(path("model.safetensors"), b"").unwrap();
    assert!(refused(whole.path()).contains("empty"));
    fs::remove_file(path("model.safetensors")).unwrap();
    assert!(refused(whole.path()).contains("neither model.safetensors nor"));
    let index = |map: &Value| {
        let text = json!({"weight_map": map}).to_string();
        fs::write(path("model.safetensors.index.json"), text).unwrap();
        refused(whole.path())
    };
    assert!(index(&json!({})).contains("0 files"));
    assert!(index(&json!({"a": "../secret"})).contains("weight_map.a"));
    assert!(index(&json!({"a": "gone.safetensors"})).contains("gone.safetensors"));
    fs::write(path("config.json"), "{").unwrap();
    assert!(refused(whole.path()).contains("config.json"));
    fs::remove_file(path("config.json")).unwrap();
    assert!(refused(whole.path()).contains("no config.json"));
}

/// Weights may lie in several files, and hash by all of them.
#[test]
fn several_files_are_one_model() {
    let whole = folder(&json!({}));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let hash = |path: &Path| Checkpoint::open(path).unwrap().hash(&stop, &|| ()).unwrap();
    let before = hash(whole.path());
    let bytes = fs::read(whole.path().join("model.safetensors")).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut map = serde_json::Map::new();
    for (index, file) in ["a.safetensors", "b.safetensors"].into_iter().enumerate() {
        let part = all.tensors().into_iter().enumerate().filter(|(at, _)| at % 2 == index);
        let part: Vec<_> = part.map(|(_, tensor)| tensor).collect();
        map.extend(part.iter().map(|(name, _)| (name.clone(), json!(file))));
        fs::write(whole.path().join(file), safetensors::serialize(part, None).unwrap()).unwrap();
    }
    fs::remove_file(whole.path().join("model.safetensors")).unwrap();
    let index = json!({ "weight_map": map }).to_string();
    fs::write(whole.path().join("model.safetensors.index.json"), index).unwrap();
    let checkpoint = Checkpoint::open(whole.path()).unwrap();
    let original = Checkpoint::open(&oarlock_testkit::fixture("tiny/qwen2")).unwrap();
    for name in original.tensor_names() {
        assert_eq!(checkpoint.tensor(name).unwrap().data, original.tensor(name).unwrap().data);
    }
    assert_ne!(hash(whole.path()), before);
}

proptest! {
    /// Damaged headers are errors, and point nowhere outside of the file.
    #[test]
    fn flipped_bytes_never_panic(at in 0_usize..6000, byte in any::<u8>(), cut in 0_usize..2) {
        let path = oarlock_testkit::fixture("tiny/llama-tied-mqa/model.safetensors");
        let mut bytes = fs::read(path).unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        bytes.truncate(bytes.len() - cut);
        let mut tensors = Tensors::new();
        if tensor_table(&bytes, 0, &mut tensors).is_ok() {
            prop_assert!(tensors.values().all(|tensor| tensor.info.range.end <= bytes.len()));
        }
    }
}
