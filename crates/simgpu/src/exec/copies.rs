//! `cp.async`: copies that are under way until their thread waits for them.

use super::access::lanes;
use super::global;
use super::kernel::Stop;
use super::program::{CopyAsync, NONE};
use super::registers::LANES;
use super::warp::{Env, Warp};
use crate::fault::{FaultKind, Space};

/// A copy under way.
#[derive(Debug)]
struct Copy {
    lane: usize,
    /// Number of the group that the copy belongs to, counted per thread.
    group: u32,
    to: u64,
    len: u32,
    /// Source and how many bytes come from it; none when the data have arrived.
    from: Option<(u64, u32)>,
}

/// The copies of a warp's threads.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    under_way: Vec<Copy>,
    /// Groups that each thread has closed.
    num_committed: [u32; LANES],
}

impl Copies {
    pub(crate) fn reset(&mut self) {
        self.under_way.clear();
        self.num_committed = [0; LANES];
    }

    pub(crate) fn commit(&mut self, active: u32) {
        lanes(active).for_each(|lane| self.num_committed[lane] += 1);
    }
}

impl Warp {
    pub(crate) fn copy_async(
        &mut self,
        env: &mut Env<'_>,
        copy: &CopyAsync,
        active: u32,
        pc: u32,
    ) -> Result<(), Stop> {
        let to = copy.to.all(&self.registers);
        let from = copy.from.all(&self.registers);
        let mut sizes = [copy.bytes; LANES];
        if copy.size != NONE {
            sizes = self.registers.get::<u32>(copy.size).map(|size| size.min(copy.bytes));
        }
        if copy.ignore.0 != NONE {
            let flip = if copy.ignore.1 { u32::MAX } else { 0 };
            lanes(self.registers.preds[copy.ignore.0 as usize] ^ flip)
                .for_each(|lane| sizes[lane] = 0);
        }
        if env.tally.counts_memory() {
            let read: Vec<(u64, u32)> = lanes(active)
                .filter(|&lane| sizes[lane] > 0)
                .map(|lane| (from[lane], sizes[lane]))
                .collect();
            if !read.is_empty() {
                env.count_global(pc, &read, false);
            }
            let written: Vec<(u64, u32)> =
                lanes(active).map(|lane| (to[lane], copy.bytes)).collect();
            env.tally.shared(pc, &written);
        }
        let arrives_now = env.random.one_in(2);
        for lane in lanes(active) {
            let under_way = Copy {
                lane,
                group: self.copies.num_committed[lane],
                to: to[lane],
                len: copy.bytes,
                from: Some((from[lane], sizes[lane])),
            };
            self.begin(env, under_way, arrives_now)
                .map_err(|what| Stop { lane: lane as u32, what })?;
        }
        Ok(())
    }

    fn begin(
        &mut self,
        env: &mut Env<'_>,
        mut copy: Copy,
        arrives_now: bool,
    ) -> Result<(), FaultKind> {
        if let Some((from, size)) = copy.from {
            if from % u64::from(copy.len) != 0 {
                return Err(FaultKind::Misaligned {
                    space: Space::Global,
                    address: from,
                    len: copy.len,
                });
            }
            // Faults are found here, even where the data are read later.
            let mut bytes = [0; 16];
            read_source(env, from, &mut bytes[..size as usize])?;
            let touch = self.touch(copy.lane, true, false);
            env.shared.begin_copy(copy.to, copy.len, touch)?;
            if arrives_now {
                env.shared.land_copy(copy.to, &bytes[..copy.len as usize]);
                copy.from = None;
            }
        }
        self.copies.under_way.push(copy);
        Ok(())
    }

    /// Waits until at most `pending` groups of each active thread are under way; `NONE` waits for all.
    pub(crate) fn wait_copies(
        &mut self,
        env: &mut Env<'_>,
        pending: u32,
        active: u32,
    ) -> Result<(), Stop> {
        let mut under_way = std::mem::take(&mut self.copies.under_way);
        let mut result = Ok(());
        under_way.retain(|copy| {
            let committed = self.copies.num_committed[copy.lane];
            let is_done = pending == NONE || copy.group + pending < committed;
            if active >> copy.lane & 1 == 0 || !is_done || result.is_err() {
                return true;
            }
            result = self.end(env, copy).map_err(|what| Stop { lane: copy.lane as u32, what });
            false
        });
        self.copies.under_way = under_way;
        result
    }

    fn end(&self, env: &mut Env<'_>, copy: &Copy) -> Result<(), FaultKind> {
        if let Some((from, size)) = copy.from {
            let mut bytes = [0; 16];
            read_source(env, from, &mut bytes[..size as usize])?;
            env.shared.land_copy(copy.to, &bytes[..copy.len as usize]);
        }
        env.shared.end_copy(copy.to, copy.len, self.touch(copy.lane, true, false))
    }
}

/// Reads a source of any length up to 16 bytes, in aligned pieces.
fn read_source(env: &Env<'_>, from: u64, out: &mut [u8]) -> Result<(), FaultKind> {
    let checks = env.kernel.options.check_uninitialized;
    let mut at = 0;
    while at < out.len() {
        let len = [16, 8, 4, 2, 1].into_iter().find(|&len| at % len == 0 && at + len <= out.len());
        let len = len.unwrap_or(1);
        let piece = &mut out[at..at + len];
        global::read(env.kernel.memory, &env.stores, from.wrapping_add(at as u64), piece, checks)?;
        at += len;
    }
    Ok(())
}
