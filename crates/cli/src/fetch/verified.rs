//! The marker that says a file's hash was checked: `NAME.sha256`, with the hash, size and time.
//!
//! Hashing half a gigabyte at every start would cost more than loading it. The marker holds as
//! long as the file's size and modification time are those of the check.

use std::fmt::Write as _;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};

fn marker_path(file: &Path) -> PathBuf {
    let mut path = file.as_os_str().to_owned();
    path.push(".sha256");
    path.into()
}

/// `<sha256> <size in bytes> <modification time in ns since 1970>`.
fn marker_line(sha256: &str, metadata: &Metadata) -> io::Result<String> {
    let age = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(format!("{sha256} {} {}\n", metadata.len(), age.as_nanos()))
}

/// Whether `file` is there, was found to have this hash, and has not changed since.
pub(super) fn is_marked(file: &Path, sha256: &str) -> bool {
    let Ok(metadata) = fs::metadata(file) else { return false };
    let Ok(expected) = marker_line(sha256, &metadata) else { return false };
    fs::read_to_string(marker_path(file)).is_ok_and(|found| found == expected)
}

/// Notes that `file`, as it is now, has this hash.
pub(super) fn mark(file: &Path, sha256: &str) -> anyhow::Result<()> {
    let path = marker_path(file);
    let context = || format!("cannot write {}", path.display());
    let line = fs::metadata(file).and_then(|metadata| marker_line(sha256, &metadata));
    // A torn write leaves a marker that does not match: the file is hashed again, nothing worse.
    fs::write(&path, line.with_context(context)?).with_context(context)
}

/// The SHA-256 of a file in hexadecimal; `tick` learns the bytes read so far.
pub(super) fn sha256_of(path: &Path, tick: &mut dyn FnMut(u64)) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    let mut hash = Sha256::new();
    let mut total = 0;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..count]);
        total += count as u64;
        tick(total);
    }
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
