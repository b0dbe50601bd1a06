//! Damaged models: whatever is wrong with a file, opening, describing and loading it ends with an error that
//! names the file, field or tensor, or with a model; never with a panic, and never with much more memory than
//! the file has bytes.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(unsafe_code, reason = "a counting allocator")]

#[path = "corrupt/allocator.rs"]
mod allocator;
#[path = "corrupt/config.rs"]
mod config;
#[path = "corrupt/gguf.rs"]
mod gguf;
#[path = "corrupt/index.rs"]
mod index;
#[path = "corrupt/safetensors.rs"]
mod safetensors_files;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use oarlock_backend::{BackendLimits, OracleBackend};
use oarlock_collective::Alone;
use oarlock_model::{Checkpoint, load};
use oarlock_testkit::fixture;
use serde_json::Value;
use tempfile::TempDir;

/// What a file may cost in memory for each of its bytes: the weights once, and its header as a tree of values.
const MEMORY_PER_BYTE: usize = 24;
/// What a `config.json` may cost besides, for each of its bytes, of which there may be a mebibyte: a list of
/// zeros has two bytes for each and becomes 72, in memory that doubles as it grows.
const MEMORY_PER_CONFIG_BYTE: usize = 100;
/// What any file may cost.
const MEMORY_BASE: usize = 4 << 20;

/// Opens, describes and loads a model, in bounded memory.
fn attempt(path: &Path) -> Result<(), String> {
    let size = bytes_of(path);
    let (result, peak) = allocator::peak_of(|| {
        let checkpoint = Checkpoint::open(path).map_err(|error| error.to_string())?;
        checkpoint.card().map_err(|error| error.to_string())?;
        let limits =
            BackendLimits { max_tokens: 4, max_gathered: 1, max_chunks: 1, max_positions: 32 };
        let mut backend = OracleBackend::new(limits);
        let model = load(&checkpoint, &mut backend, Box::new(Alone), 2, &mut |_| ());
        model.map(drop).map_err(|error| error.to_string())
    });
    let config = bytes_of(&path.join("config.json")).min(1 << 20);
    let allowed = MEMORY_BASE + MEMORY_PER_BYTE * size + MEMORY_PER_CONFIG_BYTE * config;
    assert!(peak <= allowed, "{peak} bytes of memory for {size} in files: {result:?}");
    result
}

/// Bytes of a file, or of all files in a folder.
fn bytes_of(path: &Path) -> usize {
    let Ok(info) = fs::metadata(path) else { return 0 };
    if info.is_file() {
        return info.len() as usize;
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| fs::metadata(entry.path()).ok())
        .map(|info| info.len() as usize)
        .sum()
}

/// An error, or a model: an error must say what it is about.
fn clear_or_loaded(path: &Path, what: &str) {
    if let Err(error) = attempt(path) {
        let file = path.display().to_string();
        let subjects = [&file, "tensor ", "metadata key ", "architecture ", "weight "];
        assert!(subjects.iter().any(|subject| error.contains(subject)), "{what}: {error}");
    }
}

/// An error with all of these words.
fn refused(path: &Path, words: &[&str]) {
    let error = attempt(path).expect_err(&words.join(", "));
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

/// A copy of a tiny model's folder.
fn folder(model: &str) -> TempDir {
    let source = fixture(&format!("tiny/{model}"));
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(source.join(name), folder.path().join(name)).unwrap();
    }
    folder
}

/// A folder's configuration.
fn config_of(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

/// Lengths at which a file of `len` bytes may be cut: many at its beginning, some of all others.
fn cuts(len: usize) -> impl Iterator<Item = usize> {
    let dense = 0..len.min(200);
    let sparse = (200..len).step_by((len / 150).max(1));
    dense.chain(sparse).chain([len.saturating_sub(40), len - 2, len - 1])
}

/// Puts other things in the place of a file: each is refused with its name.
fn not_a_file(path: &Path, model: &Path) {
    let name = path.file_name().unwrap().to_str().unwrap();
    let aside: PathBuf = path.with_extension("aside");
    fs::rename(path, &aside).unwrap();
    fs::create_dir(path).unwrap();
    refused(model, &[name]);
    fs::remove_dir(path).unwrap();
    symlink(path, path).unwrap();
    refused(model, &[name]);
    fs::remove_file(path).unwrap();
    symlink("/dev/zero", path).unwrap();
    refused(model, &[name]);
    fs::remove_file(path).unwrap();
    fs::write(path, b"").unwrap();
    refused(model, &[name]);
    fs::write(path, [0xff, 0xfe, 0x80].repeat(100)).unwrap();
    refused(model, &[name]);
    fs::rename(&aside, path).unwrap();
}

#[test]
fn the_undamaged_ones_load() {
    for model in ["llama", "qwen2", "llama-tied-mqa"] {
        attempt(&fixture(&format!("tiny/{model}"))).unwrap();
    }
    attempt(&fixture("tiny-gemma3/model.gguf")).unwrap();
}
