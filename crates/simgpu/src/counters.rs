//! What a launch did, for tests of speed on a machine without a GPU.

use std::collections::BTreeMap;

/// Bytes that warps asked a memory for, and the 32-byte sectors that this took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Warp-level instructions.
    pub requests: u64,
    /// Bytes that threads read or wrote, each byte counted once per instruction.
    pub bytes: u64,
    /// Sectors of 32 bytes that hold them, each counted once per instruction.
    pub sectors: u64,
}

impl Traffic {
    /// Which part of the sectors' bytes was asked for, from 0 to 1.
    pub fn efficiency(&self) -> f64 {
        if self.sectors == 0 { 1.0 } else { self.bytes as f64 / (self.sectors * 32) as f64 }
    }

    pub(crate) fn add(&mut self, other: &Traffic) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.sectors += other.sectors;
    }
}

/// How the banks of shared memory were used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Banks {
    /// Passes that accesses needed at least: one for each 128 bytes of a warp's request.
    pub ideal: u64,
    /// Passes that they took.
    pub passes: u64,
    /// Most passes of one ideal pass: 1 is free of conflicts.
    pub max_degree: u32,
}

impl Banks {
    pub(crate) fn add(&mut self, other: &Banks) {
        self.ideal += other.ideal;
        self.passes += other.passes;
        self.max_degree = self.max_degree.max(other.max_degree);
    }
}

/// What the instructions of one PTX line did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LineCounters {
    /// Text of the instruction.
    pub instruction: String,
    /// Warp instructions.
    pub warps: u64,
    /// Thread instructions.
    pub threads: u64,
    /// Global memory.
    pub global: Traffic,
    /// Shared memory.
    pub banks: Banks,
}

/// What a launch did. Instructions are counted per warp.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// All instructions, per warp.
    pub warp_instructions: u64,
    /// All instructions, per thread.
    pub thread_instructions: u64,
    /// Integer, logic, conversion and move instructions.
    pub integer: u64,
    /// Floating-point instructions of any width, tensor cores aside.
    pub float: u64,
    /// `mma`.
    pub tensor: u64,
    /// Branches, barriers, votes, shuffles and fences.
    pub control: u64,
    /// Loads, stores and atomics of global memory (also generic ones and `cp.async`).
    pub global: u64,
    /// Loads, stores and atomics of shared memory, `ldmatrix` and `stmatrix`.
    pub shared: u64,
    /// Loads and stores of local memory.
    pub local: u64,
    /// Loads of parameters.
    pub param: u64,
    /// Multiply-adds that tensor cores did.
    pub tensor_macs: u64,
    /// Multiply-adds that threads did (fused or not).
    pub thread_macs: u64,
    /// Reads of global memory (only if `count_memory`).
    pub global_reads: Traffic,
    /// Writes of global memory (only if `count_memory`).
    pub global_writes: Traffic,
    /// Bytes that the L2 model read from DRAM (only if `count_memory`).
    pub dram_read_bytes: u64,
    /// Bytes that it wrote back, what is dirty at the end included (only if `count_memory`).
    pub dram_write_bytes: u64,
    /// Shared memory (only if `count_memory`).
    pub banks: Banks,
    /// The same per PTX line, for lines that were executed (only if `count_memory`).
    pub lines: BTreeMap<u32, LineCounters>,
}

impl Counters {
    /// Which part of all multiply-adds tensor cores did, from 0 to 1; 0 where there were none.
    pub fn tensor_share(&self) -> f64 {
        let all = self.tensor_macs + self.thread_macs;
        if all == 0 { 0.0 } else { self.tensor_macs as f64 / all as f64 }
    }

    /// Adds another launch's counters; lines are kept apart only within one module.
    pub fn add(&mut self, other: &Counters) {
        self.warp_instructions += other.warp_instructions;
        self.thread_instructions += other.thread_instructions;
        self.integer += other.integer;
        self.float += other.float;
        self.tensor += other.tensor;
        self.control += other.control;
        self.global += other.global;
        self.shared += other.shared;
        self.local += other.local;
        self.param += other.param;
        self.tensor_macs += other.tensor_macs;
        self.thread_macs += other.thread_macs;
        self.global_reads.add(&other.global_reads);
        self.global_writes.add(&other.global_writes);
        self.dram_read_bytes += other.dram_read_bytes;
        self.dram_write_bytes += other.dram_write_bytes;
        self.banks.add(&other.banks);
        for (line, counters) in &other.lines {
            let sum = self.lines.entry(*line).or_default();
            sum.instruction.clone_from(&counters.instruction);
            sum.warps += counters.warps;
            sum.threads += counters.threads;
            sum.global.add(&counters.global);
            sum.banks.add(&counters.banks);
        }
    }
}
