//! Pure operations as function pointers, with how their operands are stored.

use crate::exec::registers::{Alu, Code};

/// A pure operation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pick {
    pub(super) function: Alu,
    /// The destination first.
    pub(super) codes: &'static [Code],
}

impl Pick {
    pub(super) fn new(function: Alu, codes: &'static [Code]) -> Self {
        Self { function, codes }
    }
}

/// An operation on each lane, as a [`Pick`]: `pick!(|a: u32, b: u32| -> u32 { a & b })`.
macro_rules! pick {
    (|$a:ident: $A:ty| -> $D:ty { $body:expr }) => {
        Pick::new(
            |r, o, m| r.map1(o, m, |$a: $A| -> $D { $body }),
            &[<$D as Lane>::CODE, <$A as Lane>::CODE],
        )
    };
    (|$a:ident: $A:ty, $b:ident: $B:ty| -> $D:ty { $body:expr }) => {
        Pick::new(
            |r, o, m| r.map2(o, m, |$a: $A, $b: $B| -> $D { $body }),
            &[<$D as Lane>::CODE, <$A as Lane>::CODE, <$B as Lane>::CODE],
        )
    };
    (|$a:ident: $A:ty, $b:ident: $B:ty, $c:ident: $C:ty| -> $D:ty { $body:expr }) => {
        Pick::new(
            |r, o, m| r.map3(o, m, |$a: $A, $b: $B, $c: $C| -> $D { $body }),
            &[<$D as Lane>::CODE, <$A as Lane>::CODE, <$B as Lane>::CODE, <$C as Lane>::CODE],
        )
    };
    (|$a:ident: $A:ty, $b:ident: $B:ty, $c:ident: $C:ty, $e:ident: $E:ty| -> $D:ty { $body:expr }) => {
        Pick::new(
            |r, o, m| r.map4(o, m, |$a: $A, $b: $B, $c: $C, $e: $E| -> $D { $body }),
            &[
                <$D as Lane>::CODE,
                <$A as Lane>::CODE,
                <$B as Lane>::CODE,
                <$C as Lane>::CODE,
                <$E as Lane>::CODE,
            ],
        )
    };
}

pub(super) use pick;
