//! What stops a kernel, and where.

use std::fmt;

use thiserror::Error;

/// A kernel was stopped: what happened, and which instruction of which thread did it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Name of the entry.
    pub kernel: String,
    /// `%ctaid` of the block.
    pub block: [u32; 3],
    /// `%tid` of the thread.
    pub thread: [u32; 3],
    /// Line of the PTX text, from 1; 0 when no instruction is to blame.
    pub line: u32,
    /// Text of the instruction.
    pub instruction: String,
    /// What it did.
    pub what: FaultKind,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [bx, by, bz] = self.block;
        let [tx, ty, tz] = self.thread;
        write!(f, "{}: {}", self.kernel, self.what)?;
        if self.line > 0 {
            write!(f, " in block ({bx}, {by}, {bz}), thread ({tx}, {ty}, {tz}), ")?;
            write!(f, "PTX line {}: {}", self.line, self.instruction)?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

/// Where an address points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// The device's memory (also `.const`).
    Global,
    /// A block's memory.
    Shared,
    /// A thread's own memory.
    Local,
    /// A kernel's parameters.
    Param,
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Global => "global",
            Self::Shared => "shared",
            Self::Local => "local",
            Self::Param => "parameter",
        })
    }
}

/// What a thread did that no kernel may do.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FaultKind {
    /// Outside every allocation, or in one that was freed.
    #[error("out of bounds: {len} bytes at {address:#x} of {space} memory")]
    OutOfBounds {
        /// Which memory.
        space: Space,
        /// First byte of the access.
        address: u64,
        /// Its length.
        len: u32,
    },
    /// The address is no multiple of what the access needs.
    #[error("misaligned: {len} bytes at {address:#x} of {space} memory")]
    Misaligned {
        /// Which memory.
        space: Space,
        /// First byte of the access.
        address: u64,
        /// Its length, to which it must be aligned.
        len: u32,
    },
    /// A byte that nobody wrote was read.
    #[error("uninitialized: {len} bytes read at {address:#x} of {space} memory")]
    Uninitialized {
        /// Which memory.
        space: Space,
        /// First byte of the access.
        address: u64,
        /// Its length.
        len: u32,
    },
    /// Two threads touch one byte of shared memory, one of them writes, and nothing orders them.
    #[error("race on shared memory at {address:#x} with thread {other} of the block")]
    SharedRace {
        /// The byte.
        address: u64,
        /// The other thread, counted through the block.
        other: u32,
    },
    /// Threads wait at a barrier that others can no longer reach.
    #[error("barrier that cannot complete: {reason}")]
    DivergentBarrier {
        /// Who waits, and for whom.
        reason: String,
    },
    /// Shared memory was touched while a `cp.async` that nobody waited for writes it.
    #[error("shared memory at {address:#x} is the target of a cp.async that was not waited for")]
    PendingAsyncCopy {
        /// The byte.
        address: u64,
    },
    /// `trap`, a failed assertion, or a call that only a device can serve.
    #[error("trap: {reason}")]
    Trap {
        /// What was called.
        reason: String,
    },
    /// The launch itself is wrong: no such kernel, too many threads, too few parameter bytes.
    #[error("bad launch: {reason}")]
    BadLaunch {
        /// What is wrong.
        reason: String,
    },
    /// The kernel ran longer than the options allow.
    #[error("no end after {instructions} warp instructions of one block")]
    TooLong {
        /// How many were run.
        instructions: u64,
    },
    /// The instruction was executed with operands that PTX leaves undefined.
    #[error("undefined behaviour: {reason}")]
    Undefined {
        /// Which rule was broken.
        reason: String,
    },
}

/// A PTX text that cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("PTX line {line}: {message}: {text}")]
pub struct PtxError {
    /// Line, from 1.
    pub line: u32,
    /// What is wrong.
    pub message: String,
    /// The instruction or directive.
    pub text: String,
}
