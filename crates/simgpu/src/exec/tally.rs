//! Counting while a kernel runs.

use super::cache::Cache;
use super::kernel::Kernel;
use super::program::{Class, Op};
use crate::counters::{Banks, Counters, LineCounters, Traffic};

/// Counts of one instruction.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    warps: u64,
    threads: u64,
}

/// Memory counts of one instruction.
#[derive(Debug, Clone, Copy, Default)]
struct MemoryCount {
    traffic: Traffic,
    banks: Banks,
}

/// Counts of one thread of the host.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    counts: Vec<Count>,
    memory: Vec<MemoryCount>,
    reads: Traffic,
    writes: Traffic,
}

impl Tally {
    pub(crate) fn new(num_instructions: usize, counts_memory: bool) -> Self {
        let num_memory = if counts_memory { num_instructions } else { 0 };
        Self {
            counts: vec![Count::default(); num_instructions],
            memory: vec![MemoryCount::default(); num_memory],
            ..Self::default()
        }
    }

    #[inline(always)]
    pub(crate) fn instruction(&mut self, pc: u32, active: u32) {
        if let Some(count) = self.counts.get_mut(pc as usize) {
            count.warps += 1;
            count.threads += u64::from(active.count_ones());
        }
    }

    pub(crate) fn counts_memory(&self) -> bool {
        !self.memory.is_empty()
    }

    /// A warp's access to global memory: `(address, length)` of each active lane.
    pub(crate) fn global(
        &mut self,
        pc: u32,
        accesses: &[(u64, u32)],
        is_write: bool,
        cache: &mut Cache,
    ) {
        let mut sectors: Vec<u64> = vec![];
        let mut bytes: Vec<(u64, u64)> = vec![];
        for &(address, len) in accesses {
            let end = address.saturating_add(u64::from(len));
            sectors.extend(address / 32..end.div_ceil(32));
            bytes.push((address, end));
        }
        sectors.sort_unstable();
        sectors.dedup();
        let traffic =
            Traffic { requests: 1, bytes: covered(&mut bytes), sectors: sectors.len() as u64 };
        self.memory[pc as usize].traffic.add(&traffic);
        if is_write {
            self.writes.add(&traffic);
        } else {
            self.reads.add(&traffic);
        }
        cache.touch(&sectors, is_write);
    }

    /// A warp's access to shared memory. Lanes are served in groups that move 128 bytes, as hardware
    /// does for wide accesses; words that several lanes want are read once.
    pub(crate) fn shared(&mut self, pc: u32, accesses: &[(u64, u32)]) {
        let Some(&(_, len)) = accesses.first() else { return };
        let group = (128 / len.max(4)) as usize;
        let mut banks = Banks::default();
        for lanes in accesses.chunks(group.max(1)) {
            let mut words: Vec<u64> = lanes
                .iter()
                .flat_map(|&(address, len)| {
                    address / 4..address.saturating_add(u64::from(len)).div_ceil(4)
                })
                .collect();
            words.sort_unstable();
            words.dedup();
            let mut load = [0_u32; 32];
            for word in words {
                load[(word % 32) as usize] += 1;
            }
            let passes = load.into_iter().max().unwrap_or(1);
            banks.add(&Banks { ideal: 1, passes: u64::from(passes), max_degree: passes });
        }
        self.memory[pc as usize].banks.add(&banks);
    }

    pub(crate) fn add(&mut self, other: &Tally) {
        for (sum, count) in self.counts.iter_mut().zip(&other.counts) {
            sum.warps += count.warps;
            sum.threads += count.threads;
        }
        for (sum, count) in self.memory.iter_mut().zip(&other.memory) {
            sum.traffic.add(&count.traffic);
            sum.banks.add(&count.banks);
        }
        self.reads.add(&other.reads);
        self.writes.add(&other.writes);
    }

    /// What was counted, by class and by line.
    pub(crate) fn counters(&self, kernel: &Kernel<'_>, source: &str) -> Counters {
        let mut counters = Counters {
            global_reads: self.reads,
            global_writes: self.writes,
            ..Counters::default()
        };
        for (pc, (inst, count)) in kernel.program.code.iter().zip(&self.counts).enumerate() {
            if count.warps == 0 {
                continue;
            }
            counters.warp_instructions += count.warps;
            counters.thread_instructions += count.threads;
            let class = match inst.class {
                Class::Integer => &mut counters.integer,
                Class::Float | Class::FloatMac => &mut counters.float,
                Class::Tensor => &mut counters.tensor,
                Class::Control => &mut counters.control,
                Class::Global => &mut counters.global,
                Class::Shared => &mut counters.shared,
                Class::Local => &mut counters.local,
                Class::Param => &mut counters.param,
            };
            *class += count.warps;
            match &inst.op {
                Op::Mma(mma) => counters.tensor_macs += count.warps * u64::from(16 * 8 * mma.k),
                _ if inst.class == Class::FloatMac => counters.thread_macs += count.threads,
                _ => {}
            }
            if let Some(memory) = self.memory.get(pc) {
                let line = counters.lines.entry(inst.line).or_default();
                add_line(line, count, &source[inst.start as usize..inst.end as usize]);
                line.global.add(&memory.traffic);
                line.banks.add(&memory.banks);
                counters.banks.add(&memory.banks);
            }
        }
        counters
    }
}

fn add_line(line: &mut LineCounters, count: &Count, instruction: &str) {
    if line.instruction.is_empty() {
        instruction.clone_into(&mut line.instruction);
    }
    line.warps += count.warps;
    line.threads += count.threads;
}

/// Bytes of the union of ranges.
fn covered(ranges: &mut [(u64, u64)]) -> u64 {
    ranges.sort_unstable();
    let mut sum = 0;
    let mut reached = 0;
    for &mut (start, end) in ranges {
        sum += end.max(reached) - start.max(reached).min(end.max(reached));
        reached = reached.max(end);
    }
    sum
}
