//! The suite that any backend runs, on every instruction set of this machine.
#![expect(clippy::unwrap_used, reason = "a helper of tests may fail the test")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

use oarlock_backend::conformance::{Tolerances, run_all};
use oarlock_backend_cpu::{CpuBackend, CpuConfig, InstructionSet};

fn conforms(set: InstructionSet, threads: usize) {
    if !set.is_available() {
        println!("skipped: this machine has no {set}");
        return;
    }
    let config = CpuConfig { threads, instruction_set: Some(set) };
    run_all(&|limits| CpuBackend::new(config, limits).unwrap(), &Tolerances::REDUCED);
}

#[test]
fn portable() {
    conforms(InstructionSet::Portable, 1);
}

#[test]
fn avx2() {
    conforms(InstructionSet::Avx2, 2);
}

#[test]
fn avx512() {
    conforms(InstructionSet::Avx512, 3);
}

#[test]
fn amx() {
    conforms(InstructionSet::Amx, 2);
}
