//! The hash of a file, the part of a replica's fingerprint that names its weights.
//!
//! BLAKE3 is a tree: the two halves of a file hash apart, so that threads take subtrees of it and the result is
//! that of one thread.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::available_parallelism;

use blake3::Hasher;
use blake3::hazmat::{
    ChainingValue, HasherExt as _, Mode, left_subtree_len, merge_subtrees_non_root,
    merge_subtrees_root,
};

use crate::HashCache;

/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;
/// Bytes of a subtree that a thread takes; a power of two.
const SUBTREE: u64 = 16 << 20;
/// Threads at most: four read as fast as most disks.
const MAX_THREADS: usize = 4;

/// BLAKE3 of the file, hexadecimal; from the cache, if there is one and it has it.
pub fn hash_file(path: &Path, cache: Option<&HashCache>) -> io::Result<String> {
    hash(&File::open(path)?, cache, &AtomicBool::new(false), &|| ())
}

/// BLAKE3 of an open file, hexadecimal, from the cache if that has it; an error once `stop` is set; `progress` hears
/// of every mebibyte that the caller's thread hashes. Takes half of the machine's cores at most, since weights are
/// packed meanwhile. Reads the file rather than a mapping of it, so that its pages do not count as resident memory.
pub(crate) fn hash(
    file: &File,
    cache: Option<&HashCache>,
    stop: &AtomicBool,
    progress: &dyn Fn(),
) -> io::Result<String> {
    let take = || {
        let cores = available_parallelism().map_or(1, usize::from);
        let source = Source { file, len: file.metadata()?.len(), stop };
        source.hash(SUBTREE, (cores / 2).clamp(1, MAX_THREADS), progress)
    };
    match cache {
        Some(cache) => cache.hash_of(file, take),
        None => take(),
    }
}

/// A file that is hashed.
struct Source<'a> {
    file: &'a File,
    len: u64,
    stop: &'a AtomicBool,
}

impl Source<'_> {
    fn hash(&self, subtree: u64, threads: usize, progress: &dyn Fn()) -> io::Result<String> {
        if self.len <= subtree {
            let mut hasher = Hasher::new();
            self.update(&mut hasher, 0..self.len, &mut vec![0; PIECE], progress)?;
            return Ok(hasher.finalize().to_hex().to_string());
        }
        let mut subtrees = Vec::new();
        subtrees.resize_with(self.len.div_ceil(subtree) as usize, OnceLock::new);
        let next = AtomicUsize::new(0);
        let work = |progress: &dyn Fn()| -> io::Result<()> {
            let mut piece = vec![0; PIECE];
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(place) = subtrees.get(index) else { return Ok(()) };
                let start = index as u64 * subtree;
                let mut hasher = Hasher::new();
                hasher.set_input_offset(start);
                let range = start..self.len.min(start + subtree);
                self.update(&mut hasher, range, &mut piece, progress)?;
                // Each place is taken once.
                let _ = place.set(hasher.finalize_non_root());
            }
        };
        let work = &work;
        std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(move || work(&|| ()))).collect();
            let own = work(progress);
            let results = helpers.into_iter().map(|helper| match helper.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            std::iter::once(own).chain(results).collect::<io::Result<()>>()
        })?;
        let values: Vec<_> = subtrees.into_iter().filter_map(OnceLock::into_inner).collect();
        let (left, right) = halves(&values, self.len, subtree);
        Ok(merge_subtrees_root(&left, &right, Mode::Hash).to_hex().to_string())
    }

    /// Hashes a range of the file.
    fn update(
        &self,
        hasher: &mut Hasher,
        range: std::ops::Range<u64>,
        piece: &mut [u8],
        progress: &dyn Fn(),
    ) -> io::Result<()> {
        let mut offset = range.start;
        while offset < range.end {
            if self.stop.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let wanted = piece.len().min((range.end - offset) as usize);
            let len = self.file.read_at(&mut piece[..wanted], offset)?;
            if len == 0 {
                // It is shorter than it was.
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            hasher.update(&piece[..len]);
            progress();
            offset += len as u64;
        }
        Ok(())
    }
}

/// The values of the two halves of a tree over `len` bytes, of which these are the subtrees.
fn halves(subtrees: &[ChainingValue], len: u64, subtree: u64) -> (ChainingValue, ChainingValue) {
    let left = left_subtree_len(len);
    let (first, second) = subtrees.split_at((left / subtree) as usize);
    (whole(first, left, subtree), whole(second, len - left, subtree))
}

fn whole(subtrees: &[ChainingValue], len: u64, subtree: u64) -> ChainingValue {
    if let [one] = subtrees {
        return *one;
    }
    let (left, right) = halves(subtrees, len, subtree);
    merge_subtrees_non_root(&left, &right, Mode::Hash)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn subtrees_and_threads_make_no_difference() {
        for len in [0_usize, 1, 1024, 4096, 4097, 8192, 20_000, 32_768, 32_769, 100_001] {
            let bytes: Vec<u8> = (0..len).map(|index| ((index * index) >> 3) as u8).collect();
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            let want = blake3::hash(&bytes).to_hex().to_string();
            let stop = AtomicBool::new(false);
            let source = Source { file: &file, len: len as u64, stop: &stop };
            for (subtree, threads) in [(1024, 1), (4096, 3), (1 << 20, 2)] {
                assert_eq!(source.hash(subtree, threads, &|| ()).unwrap(), want, "{len} bytes");
            }
            assert_eq!(hash(&file, None, &stop, &|| ()).unwrap(), want);
            if len > 0 {
                stop.store(true, Ordering::Relaxed);
                source.hash(1024, 2, &|| ()).unwrap_err();
                stop.store(false, Ordering::Relaxed);
                let longer = Source { file: &file, len: len as u64 + 1, stop: &stop };
                longer.hash(1024, 2, &|| ()).unwrap_err();
            }
        }
    }
}
