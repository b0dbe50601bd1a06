//! A weight file mapped into memory; the crate's only `unsafe`.
#![expect(unsafe_code, reason = "mapping a file and dropping mapped pages have no safe interface")]

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use memmap2::{Mmap, UncheckedAdvice};

use crate::ModelError;

/// A read-only mapping of a whole file.
pub(crate) struct Mapping {
    map: Mmap,
    file: File,
}

impl Mapping {
    /// Maps the file at `path`.
    fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the mapping is read-only and private to this process. As with every user of mapped
        // weights, a file that someone truncates while it is loaded can end the worker by SIGBUS; the
        // engine restarts it, and its fingerprint changes with the file.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Self { map, file })
    }

    /// The mapped file itself, whatever its name leads to by now.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// The file's bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Tells the kernel that the pages wholly inside `range` are no longer needed, so that packed weights do not
    /// count twice in the resident memory. Reading them again is allowed and slow.
    pub(crate) fn drop_pages(&self, range: Range<usize>) {
        let page = largest_page_size();
        let start = range.start.next_multiple_of(page);
        let end = range.end / page * page;
        if start < end {
            // SAFETY: the pages are clean pages of a read-only file mapping: dropping them loses
            // nothing, a later read faults them in again with the same contents.
            // An error changes nothing but memory use.
            let _ = unsafe {
                self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start)
            };
        }
    }
}

/// Maps a file of weights.
pub(crate) fn map(path: &Path) -> Result<Mapping, ModelError> {
    let io_error = |source| ModelError::Io { path: path.to_owned(), source };
    let info = std::fs::metadata(path).map_err(io_error)?;
    let wrong =
        |reason: &str| Err(ModelError::Format { path: path.to_owned(), reason: reason.to_owned() });
    if !info.is_file() {
        return wrong("it is neither a regular file nor a folder");
    }
    if info.len() == 0 {
        return wrong("it is empty");
    }
    Mapping::open(path).map_err(io_error)
}

/// Size of a page: 4 KiB on x86-64, up to 64 KiB elsewhere; the largest is right for all.
fn largest_page_size() -> usize {
    64 << 10
}
