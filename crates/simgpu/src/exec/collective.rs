//! Shuffles, votes and other instructions in which the lanes of a member mask take part.

use super::access::lanes;
use super::program::{Collective, Element, NONE, Shuffle, ShuffleMode, WarpCollective};
use super::registers::LANES;
use super::warp::Warp;

/// What a lane reads from one that does not take part: unspecified, so something useless.
const UNSPECIFIED: u32 = 0x7fed_cba9;

/// Which lane each lane reads, and which of them are in range (others read themselves). `find` gets the
/// lane, its offset, the last lane (for `up` the first one) of its segment, and the segment's mask.
#[inline(always)]
fn sources(
    b: &[u32; LANES],
    c: &[u32; LANES],
    find: impl Fn(u32, u32, u32, u32) -> (u32, bool),
) -> ([u32; LANES], u32) {
    let mut sources = [0; LANES];
    let mut in_range = 0;
    for lane in 0..LANES {
        let segment = c[lane] >> 8 & 31;
        let last = (lane as u32 & segment) | (c[lane] & 31 & !segment);
        let (source, is_in_range) = find(lane as u32, b[lane] & 31, last, segment);
        sources[lane] = if is_in_range { source } else { lane as u32 };
        in_range |= u32::from(is_in_range) << lane;
    }
    (sources, in_range)
}

impl Warp {
    pub(crate) fn shuffle(&mut self, shuffle: &Shuffle, active: u32) {
        let a = *self.registers.get::<u32>(shuffle.a);
        let b = *self.registers.get::<u32>(shuffle.b);
        let c = *self.registers.get::<u32>(shuffle.c);
        let (sources, in_range) = match shuffle.mode {
            ShuffleMode::Up => sources(&b, &c, |lane, b, last, _| {
                (lane.wrapping_sub(b), lane as i32 - b as i32 >= last as i32)
            }),
            ShuffleMode::Down => sources(&b, &c, |lane, b, last, _| (lane + b, lane + b <= last)),
            ShuffleMode::Butterfly => {
                sources(&b, &c, |lane, b, last, _| (lane ^ b, lane ^ b <= last))
            }
            ShuffleMode::Index => sources(&b, &c, |lane, b, last, segment| {
                let source = (lane & segment) | (b & !segment);
                (source, source <= last)
            }),
        };
        let mut out = [0; LANES];
        for (value, source) in out.iter_mut().zip(sources) {
            let is_active = active >> (source & 31) & 1 == 1;
            *value = if is_active { a[(source & 31) as usize] } else { UNSPECIFIED };
        }
        self.registers.put(shuffle.d, &out, active);
        if shuffle.pred != NONE {
            self.registers.put_pred(shuffle.pred, in_range, active);
        }
    }

    /// Runs a collective for the active lanes, by groups of the same member mask.
    pub(crate) fn collective(&mut self, op: &WarpCollective, active: u32) {
        if op.what == Collective::Sync {
            return;
        }
        let members = *self.registers.get::<u32>(op.members);
        let mut left = active;
        while left != 0 {
            let mask = members[left.trailing_zeros() as usize];
            let group = lanes(left)
                .filter(|&lane| members[lane] == mask)
                .fold(0, |group, lane| group | 1 << lane);
            left &= !group;
            self.group(op, group);
        }
    }

    fn group(&mut self, op: &WarpCollective, group: u32) {
        match op.what {
            Collective::All | Collective::Any | Collective::Uniform | Collective::Ballot => {
                self.vote(op, group);
            }
            Collective::MatchAny | Collective::MatchAll => self.match_values(op, group),
            Collective::Elect => {
                let leader = group.trailing_zeros();
                self.give(op, [leader; LANES], 1 << leader, group);
            }
            _ => self.reduce(op, group),
        }
    }

    fn give(&mut self, op: &WarpCollective, values: [u32; LANES], preds: u32, group: u32) {
        if op.d != NONE {
            self.registers.put(op.d, &values, group);
        }
        if op.pred != NONE {
            self.registers.put_pred(op.pred, preds, group);
        }
    }

    fn vote(&mut self, op: &WarpCollective, group: u32) {
        let flip = if op.is_negated { u32::MAX } else { 0 };
        let ballot = (self.registers.preds[op.a as usize] ^ flip) & group;
        let result = match op.what {
            Collective::All => ballot == group,
            Collective::Any => ballot != 0,
            _ => ballot == group || ballot == 0,
        };
        self.give(op, [ballot; LANES], if result { u32::MAX } else { 0 }, group);
    }

    fn match_values(&mut self, op: &WarpCollective, group: u32) {
        let element = Element { row: op.a, is_wide: op.is_wide };
        let values: [u64; LANES] = std::array::from_fn(|lane| element.lane(&self.registers, lane));
        let same = |value: u64| {
            lanes(group)
                .filter(|&lane| values[lane] == value)
                .fold(0, |mask, lane| mask | 1 << lane)
        };
        let mut masks = [0; LANES];
        lanes(group).for_each(|lane| masks[lane] = same(values[lane]));
        let mut preds = 0;
        if op.what == Collective::MatchAll {
            let is_all = lanes(group).all(|lane| masks[lane] == group);
            preds = if is_all { u32::MAX } else { 0 };
            masks = [if is_all { group } else { 0 }; LANES];
        }
        self.give(op, masks, preds, group);
    }

    fn reduce(&mut self, op: &WarpCollective, group: u32) {
        let a = self.registers.get::<u32>(op.a);
        let join = |x: u32, y: u32| match op.what {
            Collective::Add => x.wrapping_add(y),
            Collective::MinUnsigned => x.min(y),
            Collective::MaxUnsigned => x.max(y),
            Collective::MinSigned => (x as i32).min(y as i32) as u32,
            Collective::MaxSigned => (x as i32).max(y as i32) as u32,
            Collective::And => x & y,
            Collective::Or => x | y,
            _ => x ^ y,
        };
        let result = lanes(group).map(|lane| a[lane]).reduce(join).unwrap_or(0);
        self.give(op, [result; LANES], 0, group);
    }
}
