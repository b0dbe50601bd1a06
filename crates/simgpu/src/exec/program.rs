//! A decoded kernel.

use super::registers::{Alu, Registers, Slots};
use crate::decode::Special;
use crate::numbers::{Format, Rounding};

/// No guard, no second predicate, no register.
pub(crate) const NONE: u32 = u32::MAX;

/// What a constant row is filled with when a block starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Constant {
    Word(u32),
    Double(u64),
    Special(Special),
    /// Address of a module variable plus an offset, 64 bits wide.
    Variable(u32, i64),
    /// First byte of dynamic shared memory plus an offset, as an offset into shared memory.
    Dynamic(i64),
    DynamicDouble(i64),
}

/// Kinds of instructions that counters tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Integer,
    Float,
    /// A float multiply-add.
    FloatMac,
    Tensor,
    Control,
    Global,
    Shared,
    Local,
    Param,
}

/// Which memory an instruction names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Window {
    Generic,
    Global,
    Shared,
    Local,
    Param,
}

/// Where an address comes from: a row of 32-bit or 64-bit lanes, plus an offset.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address {
    pub(crate) window: Window,
    pub(crate) row: u32,
    pub(crate) is_wide: bool,
    pub(crate) offset: i64,
}

/// One register of a load or store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Element {
    pub(crate) row: u32,
    pub(crate) is_wide: bool,
}

/// How memory operations of different threads are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Plain: no other block may rely on it.
    Weak,
    /// Volatile and relaxed.
    Relaxed,
    Acquire,
    Release,
    AcquireRelease,
}

/// A load or store.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub(crate) address: Address,
    /// Bytes of an element.
    pub(crate) bytes: u32,
    pub(crate) is_signed: bool,
    pub(crate) order: Order,
    pub(crate) elements: Vec<Element>,
}

/// Atomic operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtomicOp {
    Add,
    And,
    Or,
    Xor,
    Min,
    Max,
    Inc,
    Dec,
    Exchange,
    CompareExchange,
}

/// Types of atomic operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtomicType {
    U16,
    U32,
    S32,
    U64,
    S64,
    F32,
    F64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
}

/// `atom` and `red`.
#[derive(Debug, Clone)]
pub(crate) struct Atomic {
    pub(crate) op: AtomicOp,
    pub(crate) kind: AtomicType,
    pub(crate) address: Address,
    pub(crate) order: Order,
    /// Rows of each element: destination (or `NONE`), operand, second operand.
    pub(crate) elements: Vec<[u32; 3]>,
}

/// `cp.async`
#[derive(Debug, Clone)]
pub(crate) struct CopyAsync {
    pub(crate) to: Address,
    pub(crate) from: Address,
    pub(crate) bytes: u32,
    /// Row of the source's size, or `NONE`.
    pub(crate) size: u32,
    /// Predicate that makes the source ignored (and whether it is negated), or `NONE`.
    pub(crate) ignore: (u32, bool),
}

/// `ldmatrix` and `stmatrix`
#[derive(Debug, Clone)]
pub(crate) struct Matrix {
    pub(crate) address: Address,
    pub(crate) rows: Vec<u32>,
    pub(crate) is_transposed: bool,
}

/// Types of a matrix multiplication's factors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Factor {
    F16,
    Bf16,
    Tf32,
    S8,
    U8,
}

/// `mma`
#[derive(Debug, Clone)]
pub(crate) struct Mma {
    pub(crate) k: u32,
    pub(crate) a_type: Factor,
    pub(crate) b_type: Factor,
    /// f16 accumulators, two to a register.
    pub(crate) is_half: bool,
    pub(crate) saturates: bool,
    pub(crate) d: Vec<u32>,
    pub(crate) a: Vec<u32>,
    pub(crate) b: Vec<u32>,
    pub(crate) c: Vec<u32>,
}

/// How lanes find the lane they read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShuffleMode {
    Up,
    Down,
    Butterfly,
    Index,
}

/// `shfl.sync`
#[derive(Debug, Clone)]
pub(crate) struct Shuffle {
    pub(crate) mode: ShuffleMode,
    pub(crate) d: u32,
    pub(crate) pred: u32,
    pub(crate) a: u32,
    pub(crate) b: u32,
    pub(crate) c: u32,
    pub(crate) members: u32,
}

/// What `vote`, `match`, `redux` and `elect` compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Collective {
    All,
    Any,
    Uniform,
    Ballot,
    MatchAny,
    MatchAll,
    Add,
    MinUnsigned,
    MaxUnsigned,
    MinSigned,
    MaxSigned,
    And,
    Or,
    Xor,
    Elect,
    Sync,
}

/// A collective of the lanes of a member mask.
#[derive(Debug, Clone)]
pub(crate) struct WarpCollective {
    pub(crate) what: Collective,
    /// Row of the result, or `NONE`.
    pub(crate) d: u32,
    /// Predicate of the result, or `NONE`.
    pub(crate) pred: u32,
    /// Source: a row, or a predicate and whether it is negated.
    pub(crate) a: u32,
    pub(crate) is_negated: bool,
    pub(crate) is_wide: bool,
    /// Row of the member mask.
    pub(crate) members: u32,
}

/// `bar` and `barrier`
#[derive(Debug, Clone)]
pub(crate) struct Barrier {
    /// Row of the barrier's number.
    pub(crate) id: u32,
    /// Row of the number of threads, or `NONE` for all of the block.
    pub(crate) count: u32,
    pub(crate) is_arrive: bool,
    /// All threads of a warp must be at the same instruction.
    pub(crate) is_aligned: bool,
    pub(crate) reduce: Option<Reduce>,
}

/// `bar.red`
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reduce {
    pub(crate) what: ReduceOp,
    pub(crate) d: u32,
    pub(crate) pred: u32,
    pub(crate) is_negated: bool,
}

/// Reductions of a barrier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReduceOp {
    And,
    Or,
    Popc,
}

/// How a comparison's result is joined with a predicate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Join {
    None,
    And,
    Or,
    Xor,
}

/// Lanes for which a comparison of two rows holds.
pub(crate) type Test = fn(&Registers, u32, u32) -> u32;

/// `setp`
#[derive(Debug, Clone)]
pub(crate) struct Compare {
    pub(crate) test: Test,
    pub(crate) a: u32,
    pub(crate) b: u32,
    pub(crate) p: u32,
    /// Gets the negated comparison, or `NONE`.
    pub(crate) q: u32,
    pub(crate) join: Join,
    pub(crate) c: u32,
    pub(crate) is_negated: bool,
}

/// A number type of `cvt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Number {
    Unsigned(u32),
    Signed(u32),
    Float(Format),
}

/// The general form of `cvt`.
#[derive(Debug, Clone)]
pub(crate) struct Convert {
    pub(crate) to: Number,
    pub(crate) from: Number,
    pub(crate) rounding: Rounding,
    /// A float stays a float, rounded to a whole number.
    pub(crate) to_whole: bool,
    /// `.satfinite`, and `.sat` of integers: the nearest number that the type has.
    pub(crate) saturates: bool,
    /// `.sat` of floats: to [0, 1].
    pub(crate) clamps: bool,
    /// One register holds two numbers.
    pub(crate) is_pair: bool,
    pub(crate) flushes: bool,
    pub(crate) relu: bool,
    pub(crate) d: Element,
    /// One source, or two that are packed (the first into the upper half).
    pub(crate) a: Vec<Element>,
    /// Bits of each packed result.
    pub(crate) part_bits: u32,
}

/// An operation.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Alu(Alu, Slots),
    Compare(Box<Compare>),
    Convert(Box<Convert>),
    Branch(u32),
    BranchTable(u32, Box<[u32]>),
    Exit,
    Trap(Box<str>),
    Load(Box<Access>),
    Store(Box<Access>),
    Atomic(Box<Atomic>),
    CopyAsync(Box<CopyAsync>),
    CommitCopies,
    /// Waits until at most so many groups are under way; `NONE` waits for all copies.
    WaitCopies(u32),
    LoadMatrix(Box<Matrix>),
    StoreMatrix(Box<Matrix>),
    /// `movmatrix`: destination, source.
    TransposeMatrix(u32, u32),
    Mma(Box<Mma>),
    Barrier(Box<Barrier>),
    Shuffle(Box<Shuffle>),
    Collective(Box<WarpCollective>),
    ActiveMask(u32),
    Fence,
    Yield,
    Clock(Element),
    Nop,
}

/// An instruction.
#[derive(Debug, Clone)]
pub(crate) struct Inst {
    pub(crate) op: Op,
    /// Predicate of the guard, or `NONE`.
    pub(crate) guard: u32,
    /// All ones for `@!p`.
    pub(crate) flip: u32,
    pub(crate) class: Class,
    pub(crate) line: u32,
    pub(crate) start: u32,
    pub(crate) end: u32,
}

/// A decoded kernel.
#[derive(Debug, Clone, Default)]
pub(crate) struct Program {
    pub(crate) code: Vec<Inst>,
    pub(crate) num_rows: u32,
    pub(crate) num_preds: u32,
    /// Rows that are filled when a block starts.
    pub(crate) constants: Vec<(u32, Constant)>,
    pub(crate) shared_bytes: u32,
    pub(crate) dynamic_offset: u32,
    pub(crate) local_bytes: u32,
}
