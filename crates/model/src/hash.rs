//! The hash of a file, the part of a replica's fingerprint that names its weights.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// BLAKE3 of the file, hexadecimal.
pub fn hash_file(path: &Path) -> io::Result<String> {
    hash(&File::open(path)?, &AtomicBool::new(false), &|| ())
}

/// BLAKE3 of an open file, hexadecimal; an error once `stop` is set; `progress` hears
/// of every mebibyte. Reads the file rather than a
/// mapping of it, so that its pages do not count as resident memory.
pub(crate) fn hash(file: &File, stop: &AtomicBool, progress: &dyn Fn()) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut offset = 0;
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let len = file.read_at(&mut buffer, offset)?;
        if len == 0 {
            return Ok(hasher.finalize().to_hex().to_string());
        }
        hasher.update(&buffer[..len]);
        progress();
        offset += len as u64;
    }
}
