//! Damaged safetensors files.

use std::fs;
use std::path::Path;

use oarlock_backend::quant::SplitMix;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors, serialize};
use tempfile::TempDir;

use crate::{attempt, clear_or_loaded, cuts, folder, not_a_file, refused};

const FILE: &str = "model.safetensors";

fn bytes_of(folder: &TempDir) -> Vec<u8> {
    fs::read(folder.path().join(FILE)).unwrap()
}

fn put(folder: &TempDir, bytes: &[u8]) {
    fs::write(folder.path().join(FILE), bytes).unwrap();
}

/// A file with this header and so many bytes of data.
fn file_of(header: &[u8], data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, &vec![0; data]].concat()
}

#[test]
fn flipped_bits() {
    for (seed, model) in ["llama", "qwen2"].into_iter().enumerate() {
        let folder = folder(model);
        let bytes = bytes_of(&folder);
        let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let mut random = SplitMix(seed as u64);
        for round in 0..1000 {
            let range = if round % 8 == 0 { bytes.len() } else { header };
            let mut damaged = bytes.clone();
            for _ in 0..=random.next() % 2 {
                damaged[random.next() as usize % range] ^= 1 << (random.next() % 8);
            }
            put(&folder, &damaged);
            clear_or_loaded(folder.path(), &format!("{model}, round {round}"));
        }
    }
}

#[test]
fn truncated_or_longer() {
    let folder = folder("llama");
    let bytes = bytes_of(&folder);
    for len in cuts(bytes.len()) {
        put(&folder, &bytes[..len]);
        refused(folder.path(), &[FILE]);
    }
    put(&folder, &[&bytes[..], &[0]].concat());
    refused(folder.path(), &[FILE]);
}

#[test]
fn headers_of_any_claimed_length() {
    let folder = folder("llama");
    let bytes = bytes_of(&folder);
    let right = u64::from_le_bytes(*bytes.first_chunk().unwrap());
    for len in [
        0,
        1,
        right - 1,
        right + 1,
        bytes.len() as u64,
        100_000_001,
        1 << 62,
        u64::MAX - 7,
        u64::MAX,
    ] {
        put(&folder, &[&len.to_le_bytes(), &bytes[8..]].concat());
        refused(folder.path(), &[FILE]);
    }
}

#[test]
fn headers_that_are_no_header() {
    let folder = folder("llama");
    let deep = "[".repeat(200_000);
    let deep_objects = r#"{"a":"#.repeat(100_000);
    for header in [
        "",
        "{",
        "[]",
        "null",
        "7",
        "\"text\"",
        "{}",
        &deep,
        &deep_objects,
        r#"{"__metadata__":{"format":7}}"#,
        r#"{"__metadata__":[]}"#,
        r#"{"a":7}"#,
        r#"{"a":{"dtype":"BF16","shape":[2]}}"#,
        r#"{"a":{"dtype":"BF16","shape":2,"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4,8]}}"#,
        r#"{"a":{"dtype":"BF16","shape":[2],"data_offsets":"0-4"}}"#,
    ] {
        put(&folder, &file_of(header.as_bytes(), 4));
        refused(folder.path(), &[FILE]);
    }
    put(&folder, &file_of(b"{\"a\xff\":{}}", 4));
    refused(folder.path(), &[FILE]);
}

#[test]
fn places_and_shapes_that_cannot_be() {
    let folder = folder("llama");
    for (dtype, shape, offsets) in [
        ("BF16", "[2]", "[0,8]"),
        ("BF16", "[2]", "[4,8]"),
        ("BF16", "[2]", "[4,0]"),
        ("BF16", "[2]", "[-4,0]"),
        ("BF16", "[2]", "[0.0,4.0]"),
        ("BF16", "[2]", "[0,18446744073709551615]"),
        ("BF16", "[2]", "[0,1e300]"),
        ("BF16", "[-2]", "[0,4]"),
        ("BF16", "[2.5]", "[0,4]"),
        ("BF16", "[4611686018427387904,4]", "[0,4]"),
        ("BF16", "[18446744073709551615,18446744073709551615]", "[0,4]"),
        ("BF16", "[9223372036854775809]", "[0,4]"),
        ("BF16", "[0]", "[0,4]"),
        ("I16", "[2]", "[0,4]"),
        ("F8_E4M3", "[4]", "[0,4]"),
        ("BOOL", "[4]", "[0,4]"),
        ("F128", "[2]", "[0,4]"),
        ("", "[2]", "[0,4]"),
    ] {
        let header =
            format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#);
        put(&folder, &file_of(header.as_bytes(), 4));
        refused(folder.path(), &[FILE]);
    }
    let entry = |name: &str, from: usize, to: usize| {
        format!(r#""{name}":{{"dtype":"BF16","shape":[2],"data_offsets":[{from},{to}]}}"#)
    };
    for (first, second) in [
        (entry("a", 0, 4), entry("b", 0, 4)),
        (entry("a", 0, 4), entry("b", 2, 6)),
        (entry("a", 0, 4), entry("b", 6, 10)),
        (entry("a", 0, 4), entry("b", 8, 12)),
        (entry("a", 0, 4), entry("a", 4, 8)),
    ] {
        put(&folder, &file_of(format!("{{{first},{second}}}").as_bytes(), 8));
        refused(folder.path(), &[FILE]);
    }
}

/// What a header costs in memory is bounded by its length, whatever it is full of.
#[test]
fn long_headers() {
    let folder = folder("llama");
    let entry = |index: usize| {
        format!(
            r#""{index}":{{"dtype":"BF16","shape":[],"data_offsets":[{},{}]}}"#,
            2 * index,
            2 * index + 2
        )
    };
    let tensors = 20_000;
    let many: Vec<String> = (0..tensors).map(entry).collect();
    let ones = vec!["1"; 500_000].join(",");
    let metadata: Vec<String> = (0..60_000).map(|index| format!(r#""{index}":"""#)).collect();
    for (header, data) in [
        (format!("{{{}}}", many.join(",")), 2 * tensors),
        (format!(r#"{{"a":{{"dtype":"BF16","shape":[{ones}],"data_offsets":[0,2]}}}}"#), 2),
        (format!(r#"{{"a":{{"dtype":[{ones}],"shape":[1],"data_offsets":[0,2]}}}}"#), 2),
        (format!(r#"{{"a":{{"unknown":[{ones}],"shape":[1],"data_offsets":[0,2]}}}}"#), 2),
        (format!(r#"{{"__metadata__":{{{}}}}}"#, metadata.join(",")), 0),
        (format!(r#"{{"{}":{{}}}}"#, "a".repeat(1 << 20)), 0),
    ] {
        put(&folder, &file_of(header.as_bytes(), data));
        let error = attempt(folder.path()).unwrap_err();
        assert!(error.contains(FILE) || error.contains("tensor "), "{error}");
        assert!(error.len() < 4096, "an error of {} bytes", error.len());
    }
}

type Tensor<'a> = (String, TensorView<'a>);

/// The tiny Llama with its list of tensors changed, and what the message must have.
fn changed(change: impl for<'a> Fn(&mut Vec<Tensor<'a>>), words: &[&str]) {
    let folder = folder("llama");
    let bytes = bytes_of(&folder);
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = all.tensors();
    change(&mut tensors);
    put(&folder, &serialize(tensors, None).unwrap());
    refused(folder.path(), words);
}

/// The tensor as another type or shape, with the same bytes.
fn reshape(tensor: &mut TensorView<'_>, dtype: Dtype, shape: Vec<usize>) {
    let data = tensor.data().to_vec().leak();
    *tensor = TensorView::new(dtype, shape, data).unwrap();
}

#[test]
fn tensors_that_are_wrong_missing_or_left_over() {
    let folder = folder("llama");
    let bytes = bytes_of(&folder);
    let names: Vec<String> =
        SafeTensors::deserialize(&bytes).unwrap().names().into_iter().map(str::to_owned).collect();
    for name in &names {
        changed(|tensors| tensors.retain(|(own, _)| own != name), &[name, "missing"]);
        let renamed = |tensors: &mut Vec<Tensor<'_>>| {
            let tensor = tensors.iter_mut().find(|(own, _)| own == name).unwrap();
            tensor.0.push_str(".old");
        };
        changed(renamed, &[name]);
        let flattened = |tensors: &mut Vec<Tensor<'_>>| {
            let (_, tensor) = tensors.iter_mut().find(|(own, _)| own == name).unwrap();
            let len = tensor.shape().iter().product::<usize>();
            let (dtype, shape) = (tensor.dtype(), vec![2, len / 2]);
            reshape(tensor, dtype, shape);
        };
        changed(flattened, &[name, "shape"]);
        let other_type = |tensors: &mut Vec<Tensor<'_>>| {
            let (_, tensor) = tensors.iter_mut().find(|(own, _)| own == name).unwrap();
            let shape = tensor.shape().to_vec();
            reshape(tensor, Dtype::I16, shape);
        };
        changed(other_type, &[name, "I16"]);
    }
    changed(
        |tensors| {
            let copy = tensors[0].1.clone();
            tensors.push(("model.layers.0.self_attn.extra.weight".to_owned(), copy));
        },
        &["self_attn.extra.weight"],
    );
    // The same name of ours twice.
    changed(
        |tensors| {
            let copy = tensors[0].1.clone();
            tensors.push(("blk.0.attn_q.weight".to_owned(), copy));
        },
        &["attn_q"],
    );
}

#[test]
fn other_things_than_files() {
    let folder = folder("llama");
    not_a_file(&folder.path().join(FILE), folder.path());
    attempt(folder.path()).unwrap();
    refused(Path::new("/nowhere/folder"), &["/nowhere/folder"]);
    let empty = tempfile::tempdir().unwrap();
    refused(empty.path(), &[empty.path().to_str().unwrap(), "config.json"]);
}
