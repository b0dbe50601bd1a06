//! Models in several files, whose index or files are damaged.

use std::fs;
use std::os::unix::fs::symlink;

use oarlock_backend::quant::SplitMix;
use safetensors::{SafeTensors, serialize};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::{attempt, clear_or_loaded, cuts, folder, not_a_file, refused};

const INDEX: &str = "model.safetensors.index.json";
const FILES: [&str; 3] =
    ["model-1-of-3.safetensors", "model-2-of-3.safetensors", "model-3-of-3.safetensors"];

/// The tiny Llama in three files, and its map.
fn sharded() -> (TempDir, Map<String, Value>) {
    let folder = folder("llama");
    let whole = folder.path().join("model.safetensors");
    let bytes = fs::read(&whole).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = all.tensors();
    tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut map = Map::new();
    for (index, file) in FILES.into_iter().enumerate() {
        let part: Vec<_> = tensors.iter().skip(index).step_by(3).cloned().collect();
        map.extend(part.iter().map(|(name, _)| (name.clone(), json!(file))));
        fs::write(folder.path().join(file), serialize(part, None).unwrap()).unwrap();
    }
    fs::remove_file(whole).unwrap();
    put(&folder, &json!({ "metadata": { "total_size": 1 }, "weight_map": map }));
    attempt(folder.path()).unwrap();
    (folder, map)
}

fn put(folder: &TempDir, index: &Value) {
    fs::write(folder.path().join(INDEX), index.to_string()).unwrap();
}

#[test]
fn names_that_lead_elsewhere() {
    let (folder, map) = sharded();
    let outside = tempfile::tempdir().unwrap();
    fs::copy(folder.path().join(FILES[0]), outside.path().join(FILES[0])).unwrap();
    let absolute = outside.path().join(FILES[0]);
    for file in [
        "../x",
        "..",
        ".",
        "",
        "/",
        "a/b.safetensors",
        "./model-1-of-3.safetensors",
        "model-1-of-3.safetensors/",
        absolute.to_str().unwrap(),
    ] {
        let mut map = map.clone();
        map.insert("lm_head.weight".to_owned(), json!(file));
        put(&folder, &json!({ "weight_map": map }));
        refused(folder.path(), &[INDEX, "lm_head.weight"]);
    }
    for file in ["gone.safetensors", "nul\0byte", "\u{202e}gpj.exe", &"long".repeat(1000)] {
        let mut map = map.clone();
        map.insert("lm_head.weight".to_owned(), json!(file));
        put(&folder, &json!({ "weight_map": map }));
        refused(folder.path(), &[folder.path().to_str().unwrap()]);
    }
}

#[test]
fn indexes_that_contradict_the_files() {
    let (folder, map) = sharded();
    let names: Vec<&String> = map.keys().collect();
    for name in &names {
        let mut wrong = map.clone();
        let file = FILES.into_iter().find(|file| json!(file) != map[*name]).unwrap();
        wrong.insert((*name).clone(), json!(file));
        put(&folder, &json!({ "weight_map": wrong }));
        refused(folder.path(), &[name, file]);
    }
    let mut more = map.clone();
    more.insert("model.layers.7.mlp.up_proj.weight".to_owned(), json!(FILES[0]));
    put(&folder, &json!({ "weight_map": more }));
    refused(folder.path(), &["model.layers.7.mlp.up_proj.weight", FILES[0]]);
    // A tensor that two files have.
    put(&folder, &json!({ "weight_map": map }));
    fs::copy(folder.path().join(FILES[0]), folder.path().join("model-4.safetensors")).unwrap();
    let mut more = map.clone();
    more.insert("copy".to_owned(), json!("model-4.safetensors"));
    put(&folder, &json!({ "weight_map": more }));
    refused(folder.path(), &["two files"]);
    // A file that is not named is not read, and what is missing then is.
    let mut fewer = map.clone();
    fewer.retain(|_, file| *file != json!(FILES[1]));
    put(&folder, &json!({ "weight_map": fewer }));
    refused(folder.path(), &["tensor ", "missing"]);
}

#[test]
fn indexes_that_are_no_index() {
    let (folder, map) = sharded();
    let path = folder.path().join(INDEX);
    let deep = r#"{"weight_map":"#.repeat(50_000);
    for text in ["", "{", "[]", "null", "{}", r#"{"weight_map":7}"#, r#"{"weight_map":[]}"#, &deep]
    {
        fs::write(&path, text).unwrap();
        refused(folder.path(), &[INDEX]);
    }
    for file in [json!(7), json!(null), json!([FILES[0]]), json!({})] {
        put(&folder, &json!({ "weight_map": { "lm_head.weight": file } }));
        refused(folder.path(), &[INDEX, "expected a string"]);
    }
    put(&folder, &json!({ "weight_map": {} }));
    refused(folder.path(), &[INDEX]);
    let many: Map<String, Value> =
        (0..5000).map(|file| (file.to_string(), json!(format!("{file}.safetensors")))).collect();
    put(&folder, &json!({ "weight_map": many }));
    refused(folder.path(), &[INDEX, "5000 files"]);
    // Large, and without a map: what a tree of values costs.
    for filler in ["0,", "{},", "[],", "\"\","] {
        let list = filler.repeat(200_000);
        fs::write(&path, format!(r#"{{"a":[{}]}}"#, list.trim_end_matches(','))).unwrap();
        refused(folder.path(), &[INDEX, "weight_map"]);
    }
    put(&folder, &json!({ "weight_map": map }));
    not_a_file(&path, folder.path());
    not_a_file(&folder.path().join(FILES[1]), folder.path());
    attempt(folder.path()).unwrap();
}

#[test]
fn flipped_and_truncated() {
    let (folder, _) = sharded();
    let mut random = SplitMix(11);
    for name in [INDEX, FILES[0], FILES[2]] {
        let path = folder.path().join(name);
        let bytes = fs::read(&path).unwrap();
        for round in 0..150 {
            let mut damaged = bytes.clone();
            let at = random.next() as usize % bytes.len().min(1000);
            damaged[at] ^= 1 << (random.next() % 8);
            fs::write(&path, damaged).unwrap();
            clear_or_loaded(folder.path(), &format!("{name}, round {round}"));
        }
        for len in cuts(bytes.len()).step_by(9) {
            fs::write(&path, &bytes[..len]).unwrap();
            refused(folder.path(), &[name]);
        }
        fs::write(&path, bytes).unwrap();
    }
    // A file may be a link, as in the hub's cache, but not one that leads nowhere.
    let path = folder.path().join(FILES[0]);
    let blob = folder.path().join("blob");
    fs::rename(&path, &blob).unwrap();
    symlink("blob", &path).unwrap();
    attempt(folder.path()).unwrap();
    fs::remove_file(blob).unwrap();
    refused(folder.path(), &[FILES[0]]);
}
