//! Models in several GGUF files: they are what one file would be, and what is wrong with them is said.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use oarlock_backend::OracleBackend;
use oarlock_model::Checkpoint;
use oarlock_testkit::GgufWriter;
use oarlock_types::{Shard, TokenId};

use crate::gguf_families::{LIMITS, NUM_BLOCKS, llama_with_factors};
use crate::scoring::Model;

const PARTS: usize = 3;

fn name(part: usize) -> String {
    format!("model-{part:05}-of-{PARTS:05}.gguf")
}

/// The parts of a model in a folder; the path of the first, which has tensors unless it is `bare`.
fn write(folder: &Path, file: GgufWriter, bare: bool) -> PathBuf {
    for (index, bytes) in file.finish_parts(PARTS, bare).into_iter().enumerate() {
        fs::write(folder.join(name(index + 1)), bytes).unwrap();
    }
    folder.join(name(1))
}

#[test]
fn parts_are_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.gguf");
    fs::write(&whole, llama_with_factors().finish()).unwrap();
    let whole = Checkpoint::open(&whole).unwrap();
    let tokens: Vec<_> = (0..40).map(|at| TokenId(3 + at * 29 % 300)).collect();
    let scores = |checkpoint: &Checkpoint| {
        let mut model = Model::load(checkpoint, OracleBackend::new(LIMITS), NUM_BLOCKS);
        model.score(&tokens[..39], 0, &tokens[1..], LIMITS.max_tokens)
    };
    for bare in [false, true] {
        let first = write(folder.path(), llama_with_factors(), bare);
        let parts = Checkpoint::open(&first).unwrap();
        let bytes = |checkpoint: &Checkpoint| checkpoint.shard_bytes(Shard::WHOLE);
        assert_eq!(bytes(&parts), bytes(&whole));
        let summary = parts.summary(&|kind| kind, 2).unwrap();
        assert_eq!((summary.files, summary.format), (PARTS, "gguf"));
        assert_eq!(parts.card().unwrap(), whole.card().unwrap());
        assert_eq!(scores(&parts), scores(&whole), "bare: {bare}");
    }
}

#[test]
fn every_file_counts_for_the_hash() {
    let folder = tempfile::tempdir().unwrap();
    let first = write(folder.path(), llama_with_factors(), false);
    let hash =
        || Checkpoint::open(&first).unwrap().hash(None, &AtomicBool::new(false), &|| ()).unwrap();
    let before = hash();
    assert_eq!(hash(), before);
    for part in 1..=PARTS {
        let path = folder.path().join(name(part));
        let mut bytes = fs::read(&path).unwrap();
        // In the last tensor, before the zeros that fill it up.
        let at = bytes.len() - 64;
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_ne!(hash(), before, "part {part}");
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
    }
}

#[test]
fn what_is_wrong_is_said() {
    let refused = |path: &Path, words: &[&str]| {
        let Err(error) = Checkpoint::open(path) else { panic!("{words:?}") };
        let error = error.to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
    };
    let place = || {
        let folder = tempfile::tempdir().unwrap();
        let first = write(folder.path(), llama_with_factors(), false);
        let [_, second, third] = [1, 2, 3].map(|part| folder.path().join(name(part)));
        (folder, first, second, third)
    };
    // Not the first, of another name, missing.
    let (folder, first, second, third) = place();
    refused(&second, &["00002-of-00003.gguf", "open the first one, model-00001-of-00003.gguf"]);
    let renamed = folder.path().join("renamed.gguf");
    fs::copy(&first, &renamed).unwrap();
    refused(&renamed, &["renamed.gguf", "part 1 of 3", "-00001-of-00003.gguf"]);
    fs::remove_file(&third).unwrap();
    refused(&first, &["model-00003-of-00003.gguf"]);
    // One in the place of another, or of another model.
    fs::copy(&second, &third).unwrap();
    refused(&first, &["model-00003-of-00003.gguf", "does not say that it is part 3 of 3"]);
    let (_folder, first, _, third) = place();
    let few = GgufWriter::default().u16("split.no", 2).u16("split.count", 3).finish();
    fs::write(&third, few).unwrap();
    refused(&first, &["split.tensors.count", "the 3 files have"]);
    let twice = GgufWriter::default()
        .u16("split.no", 2)
        .u16("split.count", 3)
        .tensor("output.weight", &[4], 0, &[0; 16])
        .finish();
    fs::write(&third, twice).unwrap();
    refused(&first, &["tensor output.weight", "in two files", "model-00003-of-00003.gguf"]);
    for (number, count) in [(-1, 3), (2, -3), (3, 3), (2, 4)] {
        let (_folder, first, _, third) = place();
        let value = |number: i32| number.to_le_bytes();
        let odd = GgufWriter::default()
            .raw_key("split.no", 5, &value(number))
            .raw_key("split.count", 5, &value(count))
            .finish();
        fs::write(&third, odd).unwrap();
        refused(&first, &["model-00003-of-00003.gguf", "does not say that it is part 3 of 3"]);
    }
    // Truncated, and claims without end.
    let (_folder, first, second, _) = place();
    let bytes = fs::read(&second).unwrap();
    fs::write(&second, &bytes[..bytes.len() - 1000]).unwrap();
    refused(&first, &["model-00002-of-00003.gguf", "truncated"]);
    let many = llama_with_factors().u32("split.count", u32::MAX).u32("split.no", 0).finish();
    fs::write(&first, many).unwrap();
    refused(&first, &["split.count", "4096 are possible"]);
}
