//! Instructions with resolved names.

use std::ops::Range;

use crate::ptx::Scalar;

/// A special register with one value per thread that does not change while a block runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Special {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    Lane,
    Warp,
    NumWarps,
    /// Mask of lanes: equal, less, less or equal, greater, greater or equal.
    LaneMask(u8),
    DynamicSharedBytes,
    TotalSharedBytes,
    /// A value that is the same everywhere (`%smid` and the like).
    Fixed(u32),
}

impl Special {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (base, axis) = match name.rsplit_once('.') {
            Some((base, "x")) => (base, 0),
            Some((base, "y")) => (base, 1),
            Some((base, "z")) => (base, 2),
            _ => (name, 0),
        };
        Some(match base {
            "%tid" => Self::Tid(axis),
            "%ntid" => Self::Ntid(axis),
            "%ctaid" | "%clusterid" => Self::Ctaid(axis),
            "%nctaid" | "%nclusterid" => Self::Nctaid(axis),
            "%laneid" => Self::Lane,
            "%warpid" => Self::Warp,
            "%nwarpid" => Self::NumWarps,
            "%lanemask_eq" => Self::LaneMask(0),
            "%lanemask_lt" => Self::LaneMask(1),
            "%lanemask_le" => Self::LaneMask(2),
            "%lanemask_gt" => Self::LaneMask(3),
            "%lanemask_ge" => Self::LaneMask(4),
            "%dynamic_smem_size" => Self::DynamicSharedBytes,
            "%total_smem_size" => Self::TotalSharedBytes,
            "%smid"
            | "%gridid"
            | "%cluster_ctaid"
            | "%cluster_ctarank"
            | "%is_explicit_cluster" => Self::Fixed(0),
            "%nsmid" | "%cluster_nctaid" | "%cluster_nctarank" => Self::Fixed(1),
            _ => return None,
        })
    }
}

/// What a variable's name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Symbol {
    /// Index into the module's variables.
    Variable(u32),
    /// Offset in the block's shared memory.
    Shared(u32),
    /// The first byte of dynamic shared memory.
    DynamicShared,
    /// Offset in the thread's local memory.
    Local(u32),
    /// Offset in the kernel's parameters.
    Param(u32),
}

/// What an address is relative to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    Register(u32),
    Symbol(Symbol),
    Absolute,
}

/// A resolved operand.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Arg {
    /// Index into the function's registers.
    Register(u32),
    /// Index of a predicate, and whether it is negated.
    Pred(u32, bool),
    Int(u64),
    Float32(u32),
    Float64(u64),
    Special(Special),
    /// `%clock` and the like: changes while the program runs.
    Clock,
    Symbol(Symbol, i64),
    Address(Base, i64),
    Vector(Vec<Arg>),
    Pair(Box<Arg>, Box<Arg>),
    Sink,
    Label(u32),
    /// Index of a table of labels.
    Table(u32),
    /// A function that only a device could serve.
    Extern(String),
}

/// An instruction with resolved operands.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    pub(crate) guard: Option<(u32, bool)>,
    pub(crate) name: String,
    pub(crate) args: Vec<Arg>,
    pub(crate) line: u32,
    pub(crate) span: Range<usize>,
}

/// A function with its calls inlined.
#[derive(Debug, Default)]
pub(crate) struct Flat {
    pub(crate) code: Vec<Resolved>,
    /// Types of the registers that are no predicates.
    pub(crate) registers: Vec<Scalar>,
    pub(crate) num_preds: u32,
    /// Instruction that each label stands before.
    pub(crate) labels: Vec<u32>,
    pub(crate) tables: Vec<Vec<u32>>,
    pub(crate) shared_bytes: u32,
    /// Largest alignment that dynamic shared memory was declared with.
    pub(crate) dynamic_align: u32,
    pub(crate) local_bytes: u32,
}
