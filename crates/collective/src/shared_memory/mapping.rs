//! The segment as it lies in memory: words that all ranks see, and each rank's two buffers.

#![expect(unsafe_code, reason = "memory that other processes write")]

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use memmap2::{MmapOptions, MmapRaw};
use oarlock_backend::Progress;

/// Values that a rank gives in one step. All ranks' buffers together stay in the second-level cache.
pub(super) const CHUNK: usize = 16 * 1024;

/// Distinguishes a segment from any other file; the last digits are the layout's version.
pub(super) const MAGIC: u64 = 0x6f61_726c_6f63_0001;

/// The first word of the file.
#[repr(C, align(128))]
pub(super) struct Header {
    pub(super) magic: AtomicU64,
    pub(super) epoch: AtomicU64,
    /// Why the group ended: the first who noticed writes it, all others report it.
    pub(super) failure: AtomicU64,
    pub(super) ranks: AtomicU32,
}

/// What a rank writes at every step and its peers spin on: one cache line (and its neighbour, which
/// processors fetch along).
#[repr(C, align(128))]
pub(super) struct Arrival {
    /// Steps that this rank has published. Peers sleep on it.
    pub(super) counter: AtomicU32,
    /// What it did there, for the last step of either parity.
    pub(super) operations: [AtomicU64; 2],
}

/// What is written seldom.
#[repr(C, align(128))]
pub(super) struct Status {
    pub(super) has_joined: AtomicU32,
    /// The rank that this one waits for, plus one; zero while it computes.
    pub(super) waiting_for: AtomicU32,
    /// How many peers sleep on this rank's counter.
    pub(super) sleepers: AtomicU32,
}

/// What the rank's threads advance while they compute.
#[repr(C, align(128))]
pub(super) struct Work(pub(super) AtomicU64);

/// One rank's words.
#[repr(C)]
pub(super) struct Control {
    pub(super) arrival: Arrival,
    pub(super) status: Status,
    pub(super) work: Work,
}

/// A mapped segment. All words are atomic; the buffers are plain memory whose turns the caller keeps.
#[derive(Debug)]
pub(super) struct Mapping {
    memory: MmapRaw,
    ranks: usize,
}

const CONTROLS: usize = size_of::<Header>();

fn buffers(ranks: usize) -> usize {
    (CONTROLS + ranks * size_of::<Control>()).next_multiple_of(4096)
}

/// Bytes of a segment.
pub(super) fn segment_bytes(ranks: usize) -> usize {
    buffers(ranks) + ranks * 2 * CHUNK * size_of::<f32>()
}

impl Mapping {
    /// `file` is as long as a segment of `ranks`, or this is an error.
    pub(super) fn new(file: &File, ranks: usize) -> io::Result<Self> {
        let bytes = segment_bytes(ranks);
        if file.metadata()?.len() != bytes as u64 {
            let message = format!("not a segment of {ranks} ranks: its length is another");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let memory = MmapOptions::new().len(bytes).map_raw(file)?;
        Ok(Self { memory, ranks })
    }

    #[expect(clippy::cast_ptr_alignment, reason = "a mapping begins at a page")]
    pub(super) fn header(&self) -> &Header {
        // SAFETY: the mapping is as long as a segment and begins at a page, it holds only atomics here,
        // for which any bytes are values, and it lives as long as the reference.
        unsafe { &*self.memory.as_ptr().cast::<Header>() }
    }

    #[expect(clippy::cast_ptr_alignment, reason = "a mapping begins at a page")]
    pub(super) fn control(&self, rank: usize) -> &Control {
        assert!(rank < self.ranks, "a rank of the group");
        // SAFETY: as in `header`; the array of controls begins after the header at a multiple of their
        // alignment and `rank` is one of it.
        unsafe { &*self.memory.as_ptr().add(CONTROLS).cast::<Control>().add(rank) }
    }

    fn buffer(&self, rank: usize, parity: usize) -> *mut f32 {
        assert!(rank < self.ranks && parity < 2, "a buffer of the group");
        let offset = buffers(self.ranks) + (rank * 2 + parity) * CHUNK * size_of::<f32>();
        // SAFETY: inside of the mapping, whose length `new` has checked, at a multiple of four.
        unsafe { self.memory.as_mut_ptr().add(offset).cast() }
    }

    /// What `rank` has given.
    ///
    /// # Safety
    ///
    /// No rank writes into this buffer for as long as the slice is used, and what was written into it
    /// happened before.
    pub(super) unsafe fn given(&self, rank: usize, parity: usize, len: usize) -> &[f32] {
        assert!(len <= CHUNK, "at most a chunk");
        // SAFETY: the buffer holds a chunk, any bits are a float, and the caller promises the rest.
        unsafe { std::slice::from_raw_parts(self.buffer(rank, parity), len) }
    }

    /// Where `rank` gives its values.
    ///
    /// # Safety
    ///
    /// Nobody else uses this buffer for as long as the slice is used.
    #[expect(clippy::mut_from_ref, reason = "the turns are kept between processes")]
    pub(super) unsafe fn to_give(&self, rank: usize, parity: usize, len: usize) -> &mut [f32] {
        assert!(len <= CHUNK, "at most a chunk");
        // SAFETY: the buffer holds a chunk, any bits are a float, and the caller promises the rest.
        unsafe { std::slice::from_raw_parts_mut(self.buffer(rank, parity), len) }
    }
}

/// A rank's count of work, which keeps the mapping alive.
struct SharedWork {
    mapping: Arc<Mapping>,
    rank: usize,
}

impl AsRef<AtomicU64> for SharedWork {
    fn as_ref(&self) -> &AtomicU64 {
        &self.mapping.control(self.rank).work.0
    }
}

/// The progress of `rank`.
pub(super) fn progress(mapping: &Arc<Mapping>, rank: usize) -> Progress {
    Progress::of(Arc::new(SharedWork { mapping: Arc::clone(mapping), rank }))
}
