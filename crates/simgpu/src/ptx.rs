//! PTX text to a syntax tree.

mod ast;
mod body;
mod parser;
mod token;

pub(crate) use ast::{
    Function, Initial, Instruction, Operand, Scalar, Statement, Tree, Variable, VariableSpace,
};
pub(crate) use parser::parse;
