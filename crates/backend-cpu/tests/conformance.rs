//! The suite that any backend runs, on every instruction set of this machine.
#![expect(clippy::unwrap_used, reason = "a helper of tests may fail the test")]
#![expect(clippy::print_stdout, reason = "a skipped test says so")]

use oarlock_backend::conformance::{Tolerances, run_all};
use oarlock_backend_cpu::{CpuBackend, CpuConfig, Dtype, InstructionSet};

fn conforms(set: InstructionSet, threads: usize, dtype: Dtype, tolerances: &Tolerances) {
    if !set.is_available() {
        println!("skipped: this machine has no {set}");
        return;
    }
    let config = CpuConfig { threads, instruction_set: Some(set), dtype };
    run_all(&|limits| CpuBackend::new(config, limits).unwrap(), tolerances);
}

#[test]
fn portable() {
    conforms(InstructionSet::Portable, 1, Dtype::Auto, &Tolerances::REDUCED);
}

#[test]
fn avx2() {
    conforms(InstructionSet::Avx2, 2, Dtype::Auto, &Tolerances::REDUCED);
}

#[test]
fn avx512() {
    conforms(InstructionSet::Avx512, 3, Dtype::Auto, &Tolerances::REDUCED);
}

#[test]
fn amx() {
    conforms(InstructionSet::Amx, 2, Dtype::Auto, &Tolerances::REDUCED);
}

#[test]
fn bfloat16() {
    conforms(InstructionSet::detect(), 2, Dtype::Bfloat16, &Tolerances::REDUCED);
}

#[test]
fn float32() {
    conforms(InstructionSet::detect(), 2, Dtype::Float32, &Tolerances::FLOAT32);
}
