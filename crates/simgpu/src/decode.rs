//! A function of the syntax tree to a program: names resolved, calls inlined, registers placed in rows,
//! and one function pointer or compact operation per instruction.

mod args;
mod flatten;
mod rows;
mod select;

pub(crate) use args::Special;
pub(crate) use flatten::flatten;
pub(crate) use select::{decode, has_features};
