//! The tables of pure operations, behind a check that the processor can run them.
//!
//! Their closures are compiled for AVX2 and FMA on x86-64, whatever the rest of the crate is compiled
//! for: 32 lanes in four registers, and a fused multiply-add that is one instruction.
#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(unused_unsafe, reason = "features matter on x86-64 only")
)]

use super::pick::Pick;
use crate::exec::program::Test;
use crate::numbers::Rounding;

/// Whether the processor has the instructions that the tables are compiled for.
pub(crate) fn has_features() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    true
}

macro_rules! checked {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $T:ty),*) -> $R:ty = $table:path;)*) => {
        $($(#[$doc])*
        pub(super) fn $name($($arg: $T),*) -> $R {
            assert!(has_features(), "the simulator needs AVX2 and FMA");
            // SAFETY: the features that the function is compiled with were just found.
            unsafe { $table($($arg),*) }
        })*
    };
}

checked! {
    /// Integer arithmetic.
    fn integer(op: &str, kind: &str) -> Option<Pick> = super::integer::arithmetic;
    /// Logic, shifts, bit fields, moves.
    fn logic(op: &str, kind: &str) -> Option<Pick> = super::logic::logic;
    /// Arithmetic in f32.
    fn single(op: &str, rounding: Rounding, ftz: bool, sat: bool) -> Option<Pick> = super::float::single;
    /// Arithmetic in f64.
    fn double(op: &str, rounding: Rounding) -> Option<Pick> = super::float::double;
    /// Arithmetic in f16 and bf16.
    fn half(op: &str, kind: &str) -> Option<Pick> = super::half::half;
    /// Conversions with a quick form.
    fn quick_convert(name: &str) -> Option<Pick> = super::half::quick_convert;
    /// Comparisons.
    fn test(name: &str, kind: &str, flushes: bool) -> Option<Test> = super::compare::test;
    /// `testp`.
    fn property(name: &str, kind: &str) -> Option<Test> = super::compare::property;
}
