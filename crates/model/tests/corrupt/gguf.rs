//! Damaged GGUF files.

use std::fs;
use std::path::{Path, PathBuf};

use oarlock_backend::quant::SplitMix;
use oarlock_testkit::{GgufWriter, TinyModel, fixture};
use tempfile::TempDir;

use crate::{attempt, clear_or_loaded, cuts, not_a_file, refused};

/// Both tiny models: with a tokenizer and quantized weights, and with everything that Gemma 3 has.
fn models() -> [Vec<u8>; 2] {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    TinyModel::default().write(&path).unwrap();
    [fs::read(path).unwrap(), fs::read(fixture("tiny-gemma3/model.gguf")).unwrap()]
}

/// A place for damaged files.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("damaged.gguf")
    }

    fn refused(&self, bytes: &[u8], words: &[&str]) {
        fs::write(self.path(), bytes).unwrap();
        refused(&self.path(), words);
    }

    fn clear_or_loaded(&self, bytes: &[u8], what: &str) {
        fs::write(self.path(), bytes).unwrap();
        clear_or_loaded(&self.path(), what);
    }
}

/// Where the bytes after a string with its length are.
fn after(bytes: &[u8], text: &str) -> usize {
    let wanted = [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let at = bytes.windows(wanted.len()).position(|window| window == wanted);
    at.unwrap_or_else(|| panic!("no {text}")) + wanted.len()
}

/// The bytes with others in their place.
fn with(bytes: &[u8], at: usize, new: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

#[test]
fn flipped_bits() {
    let place = Place::new();
    for (model, bytes) in models().iter().enumerate() {
        let mut random = SplitMix(model as u64);
        for round in 0..1500 {
            // Most of a header is near the beginning.
            let range = if round % 4 == 0 { bytes.len() } else { bytes.len().min(6000) };
            let mut damaged = bytes.clone();
            for _ in 0..=random.next() % 2 {
                damaged[random.next() as usize % range] ^= 1 << (random.next() % 8);
            }
            place.clear_or_loaded(&damaged, &format!("model {model}, round {round}"));
        }
    }
}

#[test]
fn truncated() {
    let place = Place::new();
    for bytes in models() {
        for len in cuts(bytes.len()) {
            // The last tensor may be followed by zeros up to the next multiple.
            if len + 32 <= bytes.len() {
                place.refused(&bytes[..len], &["damaged.gguf"]);
            } else {
                place.clear_or_loaded(&bytes[..len], "cut near its end");
            }
        }
    }
}

#[test]
fn counts_beyond_the_file() {
    let place = Place::new();
    let [bytes, _] = models();
    for claim in [1_u64 << 60, u64::MAX, 1 << 32, 1 << 62] {
        let claim = claim.to_le_bytes();
        place.refused(&with(&bytes, 8, &claim), &["damaged.gguf", "tensors", "room for"]);
        place.refused(&with(&bytes, 16, &claim), &["damaged.gguf", "metadata keys", "room for"]);
        place.refused(&with(&bytes, 24, &claim), &["damaged.gguf", "string", "room for"]);
        let tokens = after(&bytes, "tokenizer.ggml.tokens");
        let words = &["tokenizer.ggml.tokens", "array elements", "room for"];
        place.refused(&with(&bytes, tokens + 8, &claim), words);
    }
}

/// An array of `levels` arrays inside of each other.
fn nested(levels: usize) -> Vec<u8> {
    let level = [&9_u32.to_le_bytes()[..], &1_u64.to_le_bytes()].concat();
    [level.repeat(levels), [&0_u32.to_le_bytes()[..], &0_u64.to_le_bytes()].concat()].concat()
}

#[test]
fn arrays_that_are_deep_or_large() {
    let place = Place::new();
    for levels in [4, 100, 100_000] {
        let file = GgufWriter::default().raw_key("deep", 9, &nested(levels)).finish();
        place.refused(&file, &["deep", "nested"]);
    }
    // Each has an architecture that is refused only after all is read.
    for (kind, width) in [(0_u32, 1), (7, 1), (2, 2), (4, 4), (6, 4), (10, 8), (8, 8), (9, 12)] {
        let count = (1_usize << 21) / width;
        let head = [&kind.to_le_bytes()[..], &(count as u64).to_le_bytes()].concat();
        let file = GgufWriter::default()
            .raw_key("long", 9, &[head, vec![0; count * width]].concat())
            .string("general.architecture", "none such")
            .finish();
        place.refused(&file, &["none such"]);
    }
    // Every level claims as much as there is room for.
    let mut greedy = Vec::new();
    for _ in 0..4 {
        greedy.extend([&9_u32.to_le_bytes()[..], &20_000_u64.to_le_bytes()].concat());
    }
    greedy.resize(1 << 20, 0xff);
    place.refused(&GgufWriter::default().raw_key("greedy", 9, &greedy).finish(), &["greedy"]);
}

#[test]
fn tensors_that_cannot_be() {
    let place = Place::new();
    let [bytes, _] = models();
    let name = "blk.0.attn_q.weight";
    let entry = after(&bytes, name);
    let dimensions = |values: [u64; 2]| values.map(u64::to_le_bytes).concat();
    let damaged = |at: usize, new: &[u8]| with(&bytes, entry + at, new);
    for (dims, word) in [
        ([u64::MAX, 2], name),
        ([1 << 63, 1 << 63], name),
        ([64, 1 << 60], name),
        ([64, 0], "is empty"),
        ([0, 64], "is empty"),
        ([63, 64], name),
        ([128, 32], name),
        ([32, 64], name),
    ] {
        place.refused(&damaged(4, &dimensions(dims)), &[word, name]);
    }
    for count in [0_u32, 5, u32::MAX] {
        place.refused(&damaged(0, &count.to_le_bytes()), &[name, "dimensions"]);
    }
    for kind in [16_u32, 9, 99, u32::MAX] {
        place.refused(&damaged(20, &kind.to_le_bytes()), &[name, "type"]);
    }
    for offset in [u64::MAX - 31, 1 << 62, bytes.len() as u64 / 32 * 32] {
        place.refused(&damaged(24, &offset.to_le_bytes()), &[name]);
    }
    place.refused(&damaged(24, &7_u64.to_le_bytes()), &[name, "aligned"]);
    // Into the middle of another tensor, which both would then be read from.
    place.refused(&damaged(24, &0_u64.to_le_bytes()), &[name, "overlap"]);
    let at = entry - name.len();
    place.refused(&with(&bytes, at, b"blk.7"), &["blk.0.attn_q.weight", "missing"]);
    place.refused(&with(&bytes, at, b"blk.1"), &["blk.1.attn_q.weight", "twice"]);
    place.refused(&with(&bytes, at, &[0xff]), &["damaged.gguf", "UTF-8"]);
}

#[test]
fn numbers_that_cannot_be() {
    let place = Place::new();
    let prefixes = ["qwen2", "gemma3"];
    for (bytes, prefix) in models().iter().zip(prefixes) {
        for key in [
            "context_length",
            "embedding_length",
            "block_count",
            "feed_forward_length",
            "attention.head_count",
            "attention.head_count_kv",
            "attention.layer_norm_rms_epsilon",
            "rope.freq_base",
        ] {
            let key = format!("{prefix}.{key}");
            let at = after(bytes, &key);
            // Of any of these types, whose values are as long: u32, i32, f32.
            for kind in [4_u32, 5, 6] {
                for value in [0_u32, 1, 3, 1 << 20, 1 << 31, u32::MAX, 0x7f80_0000, 0xbf80_0000] {
                    let new = [kind.to_le_bytes(), value.to_le_bytes()].concat();
                    place.clear_or_loaded(&with(bytes, at, &new), &format!("{key} {kind} {value}"));
                }
            }
            if key.contains("epsilon") {
                // -1, infinity, 0.
                for value in [0xbf80_0000_u32, 0x7f80_0000, 0] {
                    let new = [6_u32.to_le_bytes(), value.to_le_bytes()].concat();
                    place.refused(&with(bytes, at, &new), &[&key]);
                }
            }
            if !key.contains("rope") && !key.contains("epsilon") {
                let zero = [4_u32.to_le_bytes(), [0; 4]].concat();
                place.refused(&with(bytes, at, &zero), &[&key, "0"]);
            }
        }
    }
}

#[test]
fn other_things_than_files() {
    let place = Place::new();
    let path = place.path();
    fs::write(&path, &models()[0]).unwrap();
    attempt(&path).unwrap();
    not_a_file(&path, &path);
    refused(Path::new("/nowhere/model.gguf"), &["/nowhere/model.gguf"]);
}
