//! The hash of a weight file, the part of a replica's fingerprint that names its weights.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// BLAKE3 of the file, hexadecimal. Reads the file rather than its mapping, so that the pages do not
/// count as resident memory.
pub fn hash_file(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let len = file.read(&mut buffer)?;
        if len == 0 {
            return Ok(hasher.finalize().to_hex().to_string());
        }
        hasher.update(&buffer[..len]);
    }
}
