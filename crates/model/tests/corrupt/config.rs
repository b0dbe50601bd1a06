//! Damaged `config.json` files.

use std::fs;

use oarlock_backend::quant::SplitMix;
use serde_json::{Value, json};

use crate::{attempt, clear_or_loaded, config_of, cuts, folder, not_a_file, refused};

const FILE: &str = "config.json";

/// Fields that decide a shape.
const COUNTS: [&str; 8] = [
    "hidden_size",
    "num_attention_heads",
    "num_hidden_layers",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "num_key_value_heads",
    "head_dim",
];

/// Values that no count has.
fn absurd() -> Vec<Value> {
    vec![
        json!(0),
        json!(-1),
        json!(0.5),
        json!(1e308),
        json!(-1e308),
        json!(1_u64 << 53),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1_u64 << 32),
        json!("4"),
        json!("many"),
        json!(true),
        json!([4]),
        json!({ "value": 4 }),
    ]
}

#[test]
fn counts_that_cannot_be() {
    for model in ["llama", "qwen2"] {
        let folder = folder(model);
        let right = config_of(folder.path());
        let put = |field: &str, value: Value| {
            let mut config = right.clone();
            config[field] = value;
            fs::write(folder.path().join(FILE), config.to_string()).unwrap();
        };
        for field in COUNTS {
            for value in absurd() {
                put(field, value);
                refused(folder.path(), &[field]);
            }
            // Numbers of some other model: the tensors do not fit, or the bounds of backends.
            for value in [1_u64, 2, 3, 7, 17, 1 << 10, 1 << 20, 1 << 24, (1 << 32) - 1] {
                put(field, json!(value));
                clear_or_loaded(folder.path(), &format!("{field} {value}"));
            }
            put(field, Value::Null);
            clear_or_loaded(folder.path(), &format!("{field} null"));
        }
        for field in ["rms_norm_eps", "rope_theta"] {
            for value in [
                json!(0),
                json!(-1e-6),
                json!("x"),
                json!([]),
                json!({}),
                json!(true),
                json!(1e308),
            ] {
                let mut config = right.clone();
                // Where it is nested, it counts there.
                config.as_object_mut().unwrap().remove("rope_parameters");
                config[field] = value;
                fs::write(folder.path().join(FILE), config.to_string()).unwrap();
                refused(folder.path(), &[field]);
            }
        }
    }
}

#[test]
fn other_fields_of_wrong_types() {
    let folder = folder("qwen2");
    let right = config_of(folder.path());
    let fields: Vec<String> = right.as_object().unwrap().keys().cloned().collect();
    for field in &fields {
        for value in absurd() {
            let mut config = right.clone();
            config[field] = value.clone();
            fs::write(folder.path().join(FILE), config.to_string()).unwrap();
            clear_or_loaded(folder.path(), &format!("{field} {value}"));
        }
        let mut config = right.clone();
        config.as_object_mut().unwrap().remove(field);
        fs::write(folder.path().join(FILE), config.to_string()).unwrap();
        clear_or_loaded(folder.path(), &format!("without {field}"));
    }
    for (field, value) in [
        ("eos_token_id", json!(-1)),
        ("eos_token_id", json!([2, "3"])),
        ("bos_token_id", json!(1e30)),
    ] {
        let mut config = right.clone();
        config[field] = value;
        fs::write(folder.path().join(FILE), config.to_string()).unwrap();
        refused(folder.path(), &[field]);
    }
}

#[test]
fn flipped_and_truncated() {
    let folder = folder("llama");
    let path = folder.path().join(FILE);
    let bytes = fs::read(&path).unwrap();
    let mut random = SplitMix(3);
    for round in 0..600 {
        let mut damaged = bytes.clone();
        damaged[random.next() as usize % bytes.len()] ^= 1 << (random.next() % 8);
        fs::write(&path, damaged).unwrap();
        clear_or_loaded(folder.path(), &format!("round {round}"));
    }
    for len in cuts(bytes.len()) {
        // A line's end may follow the last brace.
        if len + 2 < bytes.len() {
            fs::write(&path, &bytes[..len]).unwrap();
            refused(folder.path(), &[FILE]);
        }
    }
}

#[test]
fn configurations_that_are_none() {
    let folder = folder("llama");
    let path = folder.path().join(FILE);
    let bytes = fs::read(&path).unwrap();
    let deep = r#"{"a":"#.repeat(100_000);
    let numbers = format!(r#"{{"model_type":[{}0]}}"#, "0,".repeat(300_000));
    for text in ["{", "[]", "null", "7", "{}", "{\"model_type\":\"llama\"", &deep, &numbers] {
        fs::write(&path, text).unwrap();
        let error = attempt(folder.path()).unwrap_err();
        assert!(error.contains(FILE), "{error}");
        assert!(error.len() < 4096, "an error of {} bytes", error.len());
    }
    for (field, value) in [
        ("hidden_size", json!(vec![0; 10_000])),
        ("rms_norm_eps", json!("ä".repeat(1 << 18))),
        ("rope_scaling", json!(vec![0; 10_000])),
    ] {
        let mut config: Value = serde_json::from_slice(&bytes).unwrap();
        config[field] = value;
        fs::write(&path, config.to_string()).unwrap();
        let error = attempt(folder.path()).unwrap_err();
        assert!(error.contains(field), "{error:.200}");
        assert!(error.len() < 4096, "an error of {} bytes", error.len());
    }
    fs::write(&path, &bytes).unwrap();
    not_a_file(&path, folder.path());
    for name in ["generation_config.json", "tokenizer_config.json"] {
        for text in ["", "{", "[]", "7", "\u{0}"] {
            fs::write(folder.path().join(name), text).unwrap();
            refused(folder.path(), &[name]);
        }
        fs::write(folder.path().join(name), "{}").unwrap();
        not_a_file(&folder.path().join(name), folder.path());
    }
    attempt(folder.path()).unwrap();
}

/// Files beside the configuration take no trees of values: what nobody reads is passed over.
#[test]
fn companions_of_many_values() {
    let folder = folder("llama");
    let zeros = "0,".repeat(2 << 20);
    let empty = "{},".repeat(1 << 20);
    for (name, text) in [
        ("tokenizer_config.json", format!(r#"{{"a":[{zeros}0]}}"#)),
        ("tokenizer_config.json", format!(r#"{{"add_bos_token":[{zeros}0]}}"#)),
        ("tokenizer_config.json", format!(r#"{{"chat_template":[{zeros}0]}}"#)),
        ("tokenizer.json", format!(r#"{{"post_processor":[{zeros}0]}}"#)),
        (
            "tokenizer.json",
            format!(
                r#"{{"post_processor":{{"type":"TemplateProcessing","single":[{empty}{{}}]}}}}"#
            ),
        ),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        clear_or_loaded(folder.path(), name);
        fs::remove_file(path).unwrap();
    }
}
