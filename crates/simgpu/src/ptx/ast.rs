//! The syntax tree: what the text says, with names not yet resolved.

use std::ops::Range;

/// A fundamental type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scalar {
    Pred,
    /// Bytes of a `.b` type.
    Bits(u8),
    Unsigned(u8),
    Signed(u8),
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    Tf32,
    F32,
    F64,
}

impl Scalar {
    /// The type of that name, without its dot.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "pred" => Self::Pred,
            "f16" => Self::F16,
            "f16x2" => Self::F16x2,
            "bf16" => Self::Bf16,
            "bf16x2" => Self::Bf16x2,
            "tf32" => Self::Tf32,
            "f32" => Self::F32,
            "f64" => Self::F64,
            _ => {
                let bits = name.get(1..)?;
                let bytes = match bits {
                    "8" => 1,
                    "16" => 2,
                    "32" => 4,
                    "64" => 8,
                    "128" => 16,
                    _ => return None,
                };
                match name.as_bytes()[0] {
                    b'b' => Self::Bits(bytes),
                    b'u' => Self::Unsigned(bytes),
                    b's' => Self::Signed(bytes),
                    _ => return None,
                }
            }
        })
    }

    /// Bytes of a value.
    pub(crate) fn bytes(self) -> u32 {
        match self {
            Self::Pred => 0,
            Self::Bits(bytes) | Self::Unsigned(bytes) | Self::Signed(bytes) => u32::from(bytes),
            Self::F16 | Self::Bf16 => 2,
            Self::F16x2 | Self::Bf16x2 | Self::Tf32 | Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

/// Which memory a variable lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VariableSpace {
    Global,
    Const,
    Shared,
    Local,
    Param,
}

/// One element of an initializer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Initial {
    Value(u64),
    /// The address of a variable, plus an offset.
    Symbol(String, i64),
}

/// A variable or parameter.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) space: VariableSpace,
    pub(crate) scalar: Scalar,
    pub(crate) align: u32,
    /// All bytes; 0 for an `extern` array whose size the launch gives.
    pub(crate) bytes: u32,
    pub(crate) initial: Vec<Initial>,
    pub(crate) line: u32,
}

/// An operand as written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand {
    /// A register, special register, variable, label or function, plus an offset.
    Name(String, i64),
    Int(u64),
    Float32(u32),
    Float64(u64),
    /// `!p`
    Not(String),
    /// `d|p`
    Pair(Box<Operand>, Box<Operand>),
    Vector(Vec<Operand>),
    /// `[name+offset]`; a number alone has no name.
    Address(Option<String>, i64),
    /// `(a, b)` of a call.
    List(Vec<Operand>),
    /// `_`
    Sink,
}

/// An instruction.
#[derive(Debug, Clone)]
pub(crate) struct Instruction {
    /// The guard's predicate, and whether it is negated.
    pub(crate) guard: Option<(String, bool)>,
    /// With its dots: `ld.global.u32`.
    pub(crate) name: String,
    pub(crate) operands: Vec<Operand>,
    pub(crate) line: u32,
    /// Where its text is.
    pub(crate) span: Range<usize>,
}

/// A part of a body.
#[derive(Debug, Clone)]
pub(crate) enum Statement {
    Instruction(Instruction),
    Label(String),
    Scope(Vec<Statement>),
    /// Names of one type.
    Registers(Scalar, Vec<String>),
    Variable(Variable),
    /// `.branchtargets`: the table's name and its labels.
    Targets(String, Vec<String>),
}

/// An entry or a device function.
#[derive(Debug, Clone)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) is_entry: bool,
    pub(crate) results: Vec<Variable>,
    pub(crate) params: Vec<Variable>,
    pub(crate) max_threads: Option<[u32; 3]>,
    /// None for a declaration.
    pub(crate) body: Option<Vec<Statement>>,
    pub(crate) line: u32,
}

/// A whole text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tree {
    pub(crate) functions: Vec<Function>,
    pub(crate) variables: Vec<Variable>,
}
