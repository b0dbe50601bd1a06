//! Which rows of the register file hold which registers: those that are never alive together share.

use super::args::{Arg, Base, Flat};

/// Row of each register, and how many rows there are.
pub(crate) struct Rows {
    pub(crate) rows: Vec<u32>,
    pub(crate) num_rows: u32,
}

/// First and last instruction at which a register matters.
#[derive(Debug, Clone, Copy)]
struct Interval {
    first: u32,
    last: u32,
    /// Its value may come from a loop's round before: the first mention does not write all of it, or
    /// mentions lie in several basic blocks, of which the first may be passed by.
    is_carried: bool,
    /// Basic block of the first mention.
    block: u32,
}

/// Places registers by their intervals. `first_row` is the first row that may be used.
pub(crate) fn place(flat: &Flat, first_row: u32) -> Rows {
    let mut intervals = intervals(flat);
    extend_over_loops(flat, &mut intervals);
    let mut order: Vec<usize> = (0..intervals.len()).collect();
    order.sort_by_key(|&register| intervals[register].map_or(u32::MAX, |interval| interval.first));
    let mut pool = Pool { next: first_row, singles: vec![], doubles: vec![] };
    let mut rows = vec![0; intervals.len()];
    // Registers in use, by where they end.
    let mut active: std::collections::BTreeSet<(u32, usize)> = std::collections::BTreeSet::new();
    for register in order {
        let Some(interval) = intervals[register] else { continue };
        while let Some(&(last, ended)) = active.first()
            && last < interval.first
        {
            active.remove(&(last, ended));
            pool.give(rows[ended], flat.registers[ended].bytes() == 8);
        }
        rows[register] = pool.take(flat.registers[register].bytes() == 8);
        active.insert((interval.last, register));
    }
    Rows { rows, num_rows: pool.next }
}

struct Pool {
    next: u32,
    singles: Vec<u32>,
    doubles: Vec<u32>,
}

impl Pool {
    fn take(&mut self, is_double: bool) -> u32 {
        let free = if is_double { &mut self.doubles } else { &mut self.singles };
        if let Some(row) = free.pop() {
            return row;
        }
        let row = self.next;
        self.next += 1 + u32::from(is_double);
        row
    }

    fn give(&mut self, row: u32, is_double: bool) {
        if is_double { self.doubles.push(row) } else { self.singles.push(row) }
    }
}

fn intervals(flat: &Flat) -> Vec<Option<Interval>> {
    let mut intervals: Vec<Option<Interval>> = vec![None; flat.registers.len()];
    let mut is_target = vec![false; flat.code.len() + 1];
    flat.labels.iter().filter(|&&at| at != u32::MAX).for_each(|&at| is_target[at as usize] = true);
    let mut block = 0;
    for (at, instruction) in flat.code.iter().enumerate() {
        block += u32::from(is_target[at]);
        let at = at as u32;
        let writes = instruction.guard.is_none() && writes_first(&instruction.name);
        // Uses come before definitions: `add a, a, 1` reads what was there.
        for (position, arg) in instruction.args.iter().enumerate().rev() {
            registers(arg, &mut |register| {
                let interval = &mut intervals[register as usize];
                if let Some(interval) = interval {
                    interval.last = at;
                    interval.is_carried |= interval.block != block;
                } else {
                    let is_carried = !(position == 0 && writes);
                    *interval = Some(Interval { first: at, last: at, is_carried, block });
                }
            });
        }
        block += u32::from(instruction.name.starts_with("br"));
    }
    intervals
}

/// Whether the first operand is written (and not only read, as by stores).
fn writes_first(name: &str) -> bool {
    !matches!(
        name.split('.').next(),
        Some("st" | "red" | "cp" | "stmatrix" | "bar" | "barrier" | "prefetch")
    )
}

fn registers(arg: &Arg, visit: &mut dyn FnMut(u32)) {
    match arg {
        Arg::Register(register) | Arg::Address(Base::Register(register), _) => visit(*register),
        Arg::Vector(items) => items.iter().for_each(|item| registers(item, visit)),
        Arg::Pair(first, second) => {
            registers(first, visit);
            registers(second, visit);
        }
        _ => {}
    }
}

/// A register that is alive in a loop it did not begin in stays so to the loop's end; one that is
/// carried over lives through the whole loop.
fn extend_over_loops(flat: &Flat, intervals: &mut [Option<Interval>]) {
    let mut loops: Vec<(u32, u32)> = vec![];
    for (at, instruction) in flat.code.iter().enumerate() {
        let mut add = |label: u32| {
            let start = flat.labels[label as usize];
            if start <= at as u32 {
                loops.push((start, at as u32));
            }
        };
        for arg in &instruction.args {
            match arg {
                Arg::Label(label) => add(*label),
                Arg::Table(table) => {
                    flat.tables[*table as usize].iter().for_each(|label| add(*label));
                }
                _ => {}
            }
        }
    }
    for interval in intervals.iter_mut().flatten() {
        loop {
            let before = *interval;
            for &(start, end) in &loops {
                let overlaps = interval.first <= end && interval.last >= start;
                if overlaps && interval.first < start {
                    interval.last = interval.last.max(end);
                }
                if overlaps
                    && (interval.is_carried || interval.last > end)
                    && interval.first >= start
                {
                    interval.first = start;
                    interval.last = interval.last.max(end);
                }
            }
            if (before.first, before.last) == (interval.first, interval.last) {
                break;
            }
        }
    }
}
