//! Files of `crates/testkit/fixtures`, and exact numbers from JSON.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The folders of `fixtures/tiny`: small models of every family with what transformers computes of them.
pub const TINY_MODELS: [&str; 11] = [
    "llama",
    "llama-tied-mqa",
    "llama3-rope",
    "mistral-swa",
    "mixtral",
    "qwen2",
    "qwen3",
    "qwen3-moe",
    "gemma2",
    "gemma3",
    "phi3",
];

/// The path of a file in `crates/testkit/fixtures`. Panics where there is no such file.
pub fn fixture(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name);
    assert!(path.exists(), "there is no fixture {}", path.display());
    path
}

/// A fixture that is JSON.
pub fn fixture_json(name: &str) -> Value {
    let path = fixture(name);
    let text = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The `f32` that was written as this number, to the bit.
///
/// A server writes the shortest decimal that reads back as its `f32`. `value` holds the `f64`
/// nearest to that decimal, whose own shortest form is the same decimal again; reading it as `f32`
/// rounds once, where a cast from `f64` would round a second time.
pub fn f32_of(value: &Value) -> f32 {
    match value {
        Value::Number(number) => {
            number.to_string().parse().unwrap_or_else(|error| panic!("{number}: {error}"))
        }
        other => panic!("expected a number, found {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixtures_are_here() {
        assert!(fixture("tokenization.json").is_file());
        let generation = fixture_json("qwen2.5-coder-0.5b/generation.json");
        assert!(generation["cases"].as_array().is_some_and(|cases| !cases.is_empty()));
    }

    #[test]
    fn numbers_come_back_to_the_bit() {
        let mut bits = 0x0000_0001_u32;
        while bits < 0x7f80_0000 {
            let number = f32::from_bits(bits);
            let text = serde_json::to_string(&-number).expect("a finite number");
            let value: Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(f32_of(&value).to_bits(), (-number).to_bits(), "{text}");
            // A step that visits all exponents and many last digits.
            bits += 104_729;
        }
        assert_eq!(f32_of(&serde_json::json!(0)).to_bits(), 0);
    }
}
