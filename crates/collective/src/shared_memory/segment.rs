//! The file behind a group's memory, as the engine makes it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::mapping::{MAGIC, Mapping, segment_bytes};
use crate::tree;

/// Where a group's counters begin: a little before they wrap around, so that every group shows that
/// they may.
pub(super) const FIRST_STEP: u32 = u32::MAX - 20;

/// A fresh segment for one epoch of one group. Dropping it removes the name; ranks that have joined keep
/// the memory.
#[derive(Debug)]
pub struct Segment {
    path: PathBuf,
}

impl Segment {
    /// Makes a segment in `folder`, which should be one in memory: `/dev/shm`. Its memory is reserved, so
    /// that a full folder is an error here and no signal later. Only this user may open it.
    pub fn create(folder: &Path, ranks: u32, epoch: u64) -> io::Result<Self> {
        tree::assert_size(ranks);
        let mut name = [0; 16];
        getrandom::fill(&mut name).map_err(io::Error::other)?;
        let path = folder.join(format!("oarlock-{:032x}", u128::from_le_bytes(name)));
        let file = open().create_new(true).mode(0o600).open(&path)?;
        // From here on an error removes the file.
        let segment = Self { path };
        let bytes = segment_bytes(ranks as usize) as u64;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes)?;
        let mapping = Mapping::new(&file, ranks as usize)?;
        for rank in 0..ranks as usize {
            let counter = &mapping.control(rank).arrival.counter;
            counter.store(FIRST_STEP, Ordering::Relaxed);
        }
        let header = mapping.header();
        header.ranks.store(ranks, Ordering::Relaxed);
        header.epoch.store(epoch, Ordering::Relaxed);
        header.magic.store(MAGIC, Ordering::Release);
        Ok(segment)
    }

    /// What ranks join.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // Whoever removed it before us did what we want.
        let _ = fs::remove_file(&self.path);
    }
}

fn open() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    options
}

/// Opens and checks a segment of `ranks` ranks of `epoch`.
pub(super) fn map(path: &Path, ranks: u32, epoch: u64) -> io::Result<(File, Mapping)> {
    let file = open().open(path)?;
    let metadata = file.metadata()?;
    let invalid = |message: String| Err(io::Error::new(io::ErrorKind::InvalidData, message));
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return invalid("belongs to another user".to_owned());
    }
    let mapping = Mapping::new(&file, ranks as usize)?;
    let header = mapping.header();
    let magic = header.magic.load(Ordering::Acquire);
    if magic != MAGIC {
        return invalid(format!("no segment of this version: {magic:016x}, not {MAGIC:016x}"));
    }
    let (its_ranks, its_epoch) =
        (header.ranks.load(Ordering::Relaxed), header.epoch.load(Ordering::Relaxed));
    if (its_ranks, its_epoch) != (ranks, epoch) {
        return invalid(format!(
            "a segment of {its_ranks} ranks and epoch {its_epoch}, not of {ranks} and {epoch}"
        ));
    }
    Ok((file, mapping))
}
