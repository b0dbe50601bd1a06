//! Folders that are damaged, or not supported: each is refused with what is wrong, and where.

use std::fs;
use std::path::Path;

use oarlock_backend::{BackendLimits, OracleBackend};
use oarlock_types::{SamplingDefaults, TokenId};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Names, tensor_table};
use crate::tensors::Tensors;
use crate::{Checkpoint, families};

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

fn map_of(index: &str) -> serde_json::Map<String, Value> {
    let index: Value = serde_json::from_str(index).unwrap();
    index["weight_map"].as_object().unwrap().clone()
}

fn refused(folder: &Path) -> String {
    Checkpoint::open(folder).err().expect("it cannot be served").to_string()
}

#[test]
fn what_is_not_supported_is_named() {
    for (changes, words) in [
        (json!({"model_type": "mamba"}), ["mamba", "llama, mistral, mixtral, qwen2"]),
        (json!({"model_type": null}), ["model_type", "missing"]),
        (json!({"hidden_act": "relu"}), ["hidden_act", "silu"]),
        (json!({"use_sliding_window": 1}), ["use_sliding_window", "neither"]),
        (json!({"use_sliding_window": true, "layer_types": ["full"]}), ["layer_types", "full"]),
        (
            json!({"use_sliding_window": true, "layer_types": ["full_attention"]}),
            ["layer_types", "1 types for 3 layers"],
        ),
        (json!({"quantization_config": {"bits": 4}}), ["quantization_config", "GGUF"]),
        (json!({"rope_scaling": {"type": "yarn", "factor": -4.0}}), ["rope_scaling.factor", "-4"]),
        (json!({"rope_scaling": {"type": "linear"}}), ["rope_scaling.factor", "missing"]),
        (json!({"rope_scaling": {"type": "spiral"}}), ["rope_scaling", "spiral"]),
        (
            json!({"rope_parameters": {"rope_type": "llama3"}}),
            ["rope_parameters.low_freq_factor", "missing"],
        ),
        (
            json!({"rope_parameters": {"rope_type": "longrope", "short_factor": [1], "long_factor": [1]}}),
            ["1 factors", "8 pairs"],
        ),
        (json!({"vocab_size": "many"}), ["vocab_size", "positive"]),
        (json!({"vocab_size": 4_000_000}), ["vocabulary", "more than"]),
        (json!({"num_attention_heads": 0}), ["num_attention_heads", "positive"]),
        (json!({"rms_norm_eps": -1}), ["rms_norm_eps", "positive"]),
        (json!({"num_key_value_heads": 3}), ["head_count_kv", "3 key heads"]),
        (json!({"head_dim": 24}), ["key_length", "multiple of 16"]),
        (json!({"attention_bias": 1}), ["attention_bias", "neither true nor false"]),
        (json!({"rope_scaling": {"factor": 4.0}}), ["rope_scaling.rope_type", "factor"]),
        (json!({"rope_scaling": 4.0}), ["rope_scaling", "not an object"]),
        (
            json!({"rope_parameters": null, "partial_rotary_factor": 0.3}),
            ["partial_rotary_factor", "4 of 16"],
        ),
        (json!({"hidden_act": 7}), ["hidden_act", "7"]),
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
    assert!(error.contains("model.safetensors") && error.contains("truncated"), "{error}");
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

/// A folder of the tiny Qwen2 with its tensors changed.
fn with_tensors(
    changes: &Value,
    change: impl Fn(&str) -> Option<String>,
    extra: &[(&str, &str)],
) -> tempfile::TempDir {
    let folder = folder(changes);
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let copies = extra.iter().map(|(name, of)| ((*name).to_owned(), all.tensor(of).unwrap()));
    let kept = all.tensors().into_iter().filter_map(|(name, data)| Some((change(&name)?, data)));
    let tensors: Vec<_> = kept.chain(copies).collect();
    fs::write(path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    folder
}

fn load(folder: &Path) -> Result<(), String> {
    let limits = BackendLimits { max_tokens: 4, max_gathered: 4, max_chunks: 1, max_positions: 32 };
    let mut backend = OracleBackend::new(limits);
    let checkpoint = Checkpoint::open(folder).map_err(|error| error.to_string())?;
    let alone = Box::new(oarlock_collective::Alone);
    let loaded = crate::load(&checkpoint, &mut backend, alone, 2, &mut |_| ());
    loaded.map(drop).map_err(|error| error.to_string())
}

/// The output layer is the embedding where the configuration says so, and nowhere else.
#[test]
fn a_missing_output_layer_is_not_replaced() {
    const HEAD: &str = "lm_head.weight";
    const EMBEDDING: &str = "model.embed_tokens.weight";
    let same = |name: &str| Some(name.to_owned());
    let without = |name: &str| (name != HEAD).then(|| name.to_owned());
    let (tied, untied) =
        (json!({"tie_word_embeddings": true}), json!({"tie_word_embeddings": false}));
    load(with_tensors(&tied, without, &[]).path()).unwrap();
    load(with_tensors(&tied, without, &[(HEAD, EMBEDDING)]).path()).unwrap();
    load(with_tensors(&untied, without, &[(HEAD, EMBEDDING)]).path()).unwrap();
    for silent in [untied, json!({"tie_word_embeddings": null})] {
        let error = load(with_tensors(&silent, without, &[]).path()).unwrap_err();
        assert!(error.contains(HEAD) && error.contains("missing"), "{error}");
    }
    let odd = [("model.layers.0.self_attn.rotary_emb.inv_freq", "model.norm.weight")];
    load(with_tensors(&json!({}), same, &odd).path()).unwrap();
    let strange = load(with_tensors(&json!({}), same, &[("visual.patch", EMBEDDING)]).path());
    assert!(strange.unwrap_err().contains("visual.patch"));
    // Layers of another naming are missing.
    let renamed = with_tensors(&json!({}), |name| Some(name.replace("o_proj", "dense")), &[]);
    let error = refused(renamed.path());
    assert!(error.contains("self_attn.o_proj") && error.contains("missing"), "{error}");
}

/// A plain prompt begins with the bos token where the tokenizer's configuration or its template says so.
#[test]
fn the_first_token_is_what_the_tokenizer_says() {
    let special =
        |name: &str, id: u32| json!({ (name): {"id": name, "ids": [id], "tokens": [name]} });
    let template = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [], "special_tokens": special("<s>", 7),
    });
    let sequence = json!({"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]});
    let trailing = json!({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}]});
    let bos = |processor: &Value, config: &Value, id: &Value| {
        let folder = folder(&json!({ "bos_token_id": id }));
        let tokenizer = json!({ "post_processor": processor });
        fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        let card = Checkpoint::open(folder.path()).unwrap().card();
        card.map(|card| card.bos_token_id.filter(|_| card.add_bos)).map_err(|e| e.to_string())
    };
    let (silent, yes, no) =
        (json!({}), json!({"add_bos_token": true}), json!({"add_bos_token": false}));
    let seven = Ok(Some(TokenId(7)));
    assert_eq!(bos(&template, &silent, &json!(7)), seven);
    assert_eq!(bos(&sequence, &silent, &Value::Null), seven);
    assert_eq!(bos(&trailing, &silent, &json!(7)), Ok(None));
    assert_eq!(bos(&Value::Null, &silent, &json!(7)), Ok(None));
    assert_eq!(bos(&Value::Null, &yes, &json!(7)), seven);
    assert_eq!(bos(&template, &no, &json!(7)), Ok(None));
    assert!(bos(&Value::Null, &yes, &Value::Null).unwrap_err().contains("add_bos_token"));
}

#[test]
fn recommended_sampling_is_in_the_card() {
    let folder = folder(&json!({}));
    let card = |text: &Value| {
        fs::write(folder.path().join("generation_config.json"), text.to_string()).unwrap();
        let card = Checkpoint::open(folder.path()).unwrap().card();
        card.map(|card| card.sampling_defaults).map_err(|error| error.to_string())
    };
    let all = json!({"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0, "repetition_penalty": 1.05,
        "max_new_tokens": 2048, "do_sample": true, "pad_token_id": 7});
    let want = SamplingDefaults {
        temperature: Some(0.6),
        top_k: Some(20),
        top_p: Some(0.95),
        min_p: Some(0.0),
        repetition_penalty: Some(1.05),
        max_tokens: Some(2048),
    };
    assert_eq!(card(&all), Ok(want));
    assert_eq!(card(&json!({"temperature": null})), Ok(SamplingDefaults::default()));
    assert_eq!(card(&json!({"top_k": -1})).unwrap().top_k, Some(0));
    for (bad, words) in [
        (json!({"temperature": -1}), "temperature: -1 is not from 0 to 2"),
        (json!({"top_p": "most"}), "top_p"),
        (json!({"top_k": 2.5}), "top_k"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
    ] {
        let error = card(&bad).unwrap_err();
        assert!(error.contains(words) && error.contains("remove it"), "{error}");
    }
}

/// What decides answers is part of the hash.
#[test]
fn texts_count_in_the_hash() {
    let whole = folder(&json!({}));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let hash = || Checkpoint::open(whole.path()).unwrap().hash(None, &stop, &|| ()).unwrap();
    let mut seen = vec![hash()];
    for name in super::TEXT_FILES.iter().skip(1) {
        fs::write(whole.path().join(name), "{}").unwrap();
        seen.push(hash());
    }
    fs::write(whole.path().join("generation_config.json"), r#"{"eos_token_id": 3}"#).unwrap();
    seen.push(hash());
    let distinct: std::collections::BTreeSet<_> = seen.iter().collect();
    assert_eq!(distinct.len(), seen.len());
}

/// Weights may lie in several files, and hash by all of them.
#[test]
fn several_files_are_one_model() {
    let whole = folder(&json!({}));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let hash = |path: &Path| Checkpoint::open(path).unwrap().hash(None, &stop, &|| ()).unwrap();
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
    fs::write(whole.path().join("model.safetensors.index.json"), &index).unwrap();
    // A tensor that the index has must be where it says.
    let mut wrong = map_of(&index);
    wrong.insert("lm_head.bias".to_owned(), json!("a.safetensors"));
    let write = |map| {
        let text = json!({ "weight_map": map }).to_string();
        fs::write(whole.path().join("model.safetensors.index.json"), text).unwrap();
    };
    write(wrong);
    assert!(refused(whole.path()).contains("lm_head.bias"));
    write(map_of(&index));
    // Another model beside it leaves open which one is meant.
    fs::write(whole.path().join("model.safetensors"), &bytes).unwrap();
    assert!(refused(whole.path()).contains("remove one"));
    fs::remove_file(whole.path().join("model.safetensors")).unwrap();
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
        let names = Names(families::of_model_type("llama").unwrap());
        if tensor_table(&bytes, 0, names, &mut tensors).is_ok() {
            prop_assert!(tensors.values().all(|tensor| tensor.info.range.end <= bytes.len()));
        }
    }
}
