//! `min_p`, `top_k` and `top_p` as one cut through the order (weight descending, id ascending).
//!
//! Each filter keeps a prefix of that order, and so do all of them together: what is kept is decided
//! by the last kept token alone. It is found by a histogram over the leading bits of the weights
//! and a selection inside one bucket, never by sorting the vocabulary.

use std::cmp::Reverse;

use oarlock_types::SamplingParams;

/// The last kept token: kept are those of greater weight, and of equal weight up to its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cut {
    pub(crate) weight: u64,
    pub(crate) id: u32,
}

/// Memory that filters reuse.
#[derive(Debug, Default)]
pub(crate) struct FilterScratch {
    counts: Vec<u32>,
    masses: Vec<u64>,
    candidates: Vec<Cut>,
}

impl FilterScratch {
    /// Makes room for rows of up to `vocabulary` weights.
    pub(crate) fn reserve(&mut self, vocabulary: usize) {
        self.counts.reserve(NUM_BUCKETS);
        self.masses.reserve(NUM_BUCKETS.max(vocabulary.div_ceil(BLOCK)));
        // All of them can share a bucket.
        self.candidates.reserve(vocabulary);
    }
}

/// Bits below the leading one that choose a bucket.
const SUB_BITS: u32 = 4;
/// Weights have at most 46 bits, whatever makes them.
const NUM_BUCKETS: usize = 48 << SUB_BITS;
/// Tokens of which only the greatest weight is looked at first.
const BLOCK: usize = 128;
/// Fractional bits of `min_p` and `top_p`.
const SHARE_BITS: u32 = 32;

/// Where the filters cut; `None` if they keep every token.
#[inline]
pub(crate) fn find_cut(
    weights: &[u64],
    params: &SamplingParams,
    scratch: &mut FilterScratch,
) -> Option<Cut> {
    let top_k = if params.top_k as usize >= weights.len() { 0 } else { params.top_k };
    let top_p = share(params.top_p);
    let min_p = share(params.min_p);
    let all = 1 << SHARE_BITS;
    if top_k == 0 && top_p >= all && min_p == 0 {
        return None;
    }
    let max = weights.iter().copied().max().unwrap_or(0);
    let floor = (((u128::from(max) * u128::from(min_p)) >> SHARE_BITS) as u64).max(1);
    let mut cut = Cut { weight: floor, id: u32::MAX };
    if top_k == 0 && top_p >= all {
        return Some(cut);
    }
    let mass;
    if top_k > 0 {
        let bound = count_bound(weights, top_k, scratch);
        fill_histogram(weights, floor.max(bound), scratch);
        (cut, mass) = cut_by_count(weights, cut, top_k, scratch);
    } else {
        mass = weights.iter().map(|&weight| if weight >= floor { weight } else { 0 }).sum::<u64>();
        let bound = mass_bound(mass, all - top_p, weights.len());
        fill_histogram(weights, floor.max(bound), scratch);
    }
    if top_p < all {
        // Rounded up: the kept share is at least `top_p`.
        let wanted = (u128::from(mass) * u128::from(top_p)).div_ceil(1 << SHARE_BITS) as u64;
        cut = cut_by_mass(weights, cut, wanted.max(1), scratch);
    }
    Some(cut)
}

/// A share as a fixed-point number, truncated. NaN and negative numbers count as 0.
fn share(value: f32) -> u64 {
    (f64::from(value) * (1_u64 << SHARE_BITS) as f64) as u64
}

/// A weight that at least `top_k` tokens reach: the `top_k`-th greatest among the maxima of disjoint
/// blocks; 1 where there are fewer blocks. It spares the histogram most of the vocabulary.
#[inline]
fn count_bound(weights: &[u64], top_k: u32, scratch: &mut FilterScratch) -> u64 {
    let maxima = &mut scratch.masses;
    maxima.clear();
    maxima.extend(weights.chunks(BLOCK).map(|block| block.iter().copied().max().unwrap_or(0)));
    if maxima.len() < top_k as usize {
        return 1;
    }
    let (_, bound, _) = maxima.select_nth_unstable_by_key(top_k as usize - 1, |&max| Reverse(max));
    *bound
}

/// A weight below which `top_p` cuts everything: all lighter tokens together have less than the
/// `dropped` share of the mass.
fn mass_bound(mass: u64, dropped: u64, num_tokens: usize) -> u64 {
    ((u128::from(mass) * u128::from(dropped)) >> SHARE_BITS) as u64 / num_tokens as u64
}

/// The bucket of a weight of at least 1: its leading bits, so that greater buckets hold greater
/// weights.
#[inline]
fn bucket(weight: u64) -> usize {
    let exponent = weight.ilog2();
    let sub = (weight << SUB_BITS) >> exponent & ((1 << SUB_BITS) - 1);
    (exponent << SUB_BITS) as usize + sub as usize
}

/// The least weight that belongs to a bucket or to one above it.
fn bucket_start(at: usize) -> u64 {
    let sub = at as u64 & ((1 << SUB_BITS) - 1);
    (((1 << SUB_BITS) | sub) << (at >> SUB_BITS)).div_ceil(1 << SUB_BITS)
}

/// Counts and sums the weights from `floor` up, by bucket.
#[inline]
fn fill_histogram(weights: &[u64], floor: u64, scratch: &mut FilterScratch) {
    scratch.counts.clear();
    scratch.counts.resize(NUM_BUCKETS, 0);
    scratch.masses.clear();
    scratch.masses.resize(NUM_BUCKETS, 0);
    for &weight in weights {
        if weight >= floor {
            let at = bucket(weight);
            scratch.counts[at] += 1;
            scratch.masses[at] += weight;
        }
    }
}

/// The tokens of one bucket that `cut` keeps, into `candidates`.
#[inline]
fn collect_bucket(weights: &[u64], at: usize, cut: Cut, candidates: &mut Vec<Cut>) {
    candidates.clear();
    let least = bucket_start(at);
    let span = bucket_start(at + 1) - least;
    for (&weight, id) in weights.iter().zip(0..) {
        let kept = weight > cut.weight || weight == cut.weight && id <= cut.id;
        if weight.wrapping_sub(least) < span && kept {
            candidates.push(Cut { weight, id });
        }
    }
}

/// Position in the order: heavier first, then lower ids.
fn order(token: &Cut) -> (Reverse<u64>, u32) {
    (Reverse(token.weight), token.id)
}

/// Where `top_k` cuts and the mass that it keeps. The histogram has the tokens that `cut` keeps, the
/// lightest perhaps missing.
fn cut_by_count(weights: &[u64], cut: Cut, top_k: u32, scratch: &mut FilterScratch) -> (Cut, u64) {
    let mut left = top_k;
    let mut mass = 0;
    for at in (0..NUM_BUCKETS).rev() {
        if scratch.counts[at] < left {
            left -= scratch.counts[at];
            mass += scratch.masses[at];
            continue;
        }
        let candidates = &mut scratch.candidates;
        collect_bucket(weights, at, cut, candidates);
        let (_, last, _) = candidates.select_nth_unstable_by_key(left as usize - 1, order);
        let last = *last;
        mass += candidates[..left as usize].iter().map(|token| token.weight).sum::<u64>();
        return (last, mass);
    }
    (cut, mass)
}

/// Where `top_p` cuts: at the first token at which the mass, in order, reaches `wanted`.
fn cut_by_mass(weights: &[u64], cut: Cut, wanted: u64, scratch: &mut FilterScratch) -> Cut {
    let mut left = wanted;
    for at in (0..NUM_BUCKETS).rev() {
        if scratch.masses[at] < left {
            left -= scratch.masses[at];
            continue;
        }
        collect_bucket(weights, at, cut, &mut scratch.candidates);
        return select_by_mass(&mut scratch.candidates, left).unwrap_or(cut);
    }
    cut
}

/// The token at which the mass of `tokens`, in order, reaches `wanted`, by quickselect; `None` if it
/// never does.
fn select_by_mass(mut tokens: &mut [Cut], mut wanted: u64) -> Option<Cut> {
    while tokens.len() > 1 {
        let half = tokens.len() / 2;
        let (front, _, _) = tokens.select_nth_unstable_by_key(half, order);
        let mass: u64 = front.iter().map(|token| token.weight).sum();
        if mass >= wanted {
            tokens = &mut tokens[..half];
        } else {
            wanted -= mass;
            tokens = &mut tokens[half..];
        }
    }
    tokens.first().copied().filter(|token| token.weight >= wanted)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition, by a full sort: the ids kept.
    fn kept_by_sort(weights: &[u64], params: &SamplingParams) -> Vec<u32> {
        let mut tokens: Vec<(u64, u32)> = weights.iter().copied().zip(0..).collect();
        tokens.sort_by_key(|&(weight, id)| (Reverse(weight), id));
        let max = tokens.first().map_or(0, |token| token.0);
        let unfiltered = params.top_k == 0 && params.top_p >= 1.0 && params.min_p == 0.0;
        let floor = ((u128::from(max) * u128::from(share(params.min_p))) >> 32) as u64;
        tokens.retain(|token| token.0 >= floor.max(u64::from(!unfiltered)));
        if params.top_k > 0 {
            tokens.truncate(params.top_k as usize);
        }
        if params.top_p < 1.0 {
            let mass: u128 = tokens.iter().map(|token| u128::from(token.0)).sum();
            let wanted = (mass * u128::from(share(params.top_p))).div_ceil(1 << 32).max(1);
            let mut sum = 0;
            let reached = tokens.iter().position(|token| {
                sum += u128::from(token.0);
                sum >= wanted
            });
            tokens.truncate(reached.map_or(tokens.len(), |last| last + 1));
        }
        let mut ids: Vec<u32> = tokens.into_iter().filter(|t| t.0 > 0).map(|t| t.1).collect();
        ids.sort_unstable();
        ids
    }

    fn kept_by_cut(
        weights: &[u64],
        params: &SamplingParams,
        scratch: &mut FilterScratch,
    ) -> Vec<u32> {
        let cut = find_cut(weights, params, scratch).unwrap_or(Cut { weight: 1, id: u32::MAX });
        (0..)
            .zip(weights)
            .filter(|&(id, &weight)| weight > cut.weight || weight == cut.weight && id <= cut.id)
            .map(|(id, _)| id)
            .collect()
    }

    fn weight() -> impl Strategy<Value = u64> {
        // Few values, so that ties are common; magnitudes from 0 to 2⁴⁵.
        prop_oneof![
            (0_u32..46).prop_map(|bits| (1_u64 << bits) >> 1),
            0_u64..20,
            (1_u64 << 44)..=(1 << 45),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn keeps_what_a_full_sort_keeps(
            weights in prop_oneof![
                prop::collection::vec(weight(), 1..200),
                prop::collection::vec(weight(), 1..3_000),
            ],
            top_k in prop_oneof![Just(0_u32), 1_u32..10, 1_u32..220],
            top_p in prop_oneof![Just(1.0_f32), Just(0.0), 0.0_f32..1.0],
            min_p in prop_oneof![Just(0.0_f32), Just(1.0), 0.0_f32..1.0, 0.0_f32..1e-6],
        ) {
            let params = SamplingParams { top_k, top_p, min_p, ..SamplingParams::default() };
            let mut scratch = FilterScratch::default();
            let want = kept_by_sort(&weights, &params);
            prop_assert_eq!(&kept_by_cut(&weights, &params, &mut scratch), &want);
            // Memory of another row changes nothing.
            prop_assert_eq!(&kept_by_cut(&weights, &params, &mut scratch), &want);
        }
    }

    #[test]
    fn buckets_follow_the_weights() {
        let mut last = 0;
        for weight in (1..5000).chain((13..45).flat_map(|bits| {
            let power = 1_u64 << bits;
            [power - 1, power, power + power / 3]
        })) {
            let at = bucket(weight);
            assert!(at >= last && at < NUM_BUCKETS, "{weight}");
            assert!(bucket_start(at) <= weight && weight < bucket_start(at + 1), "{weight}");
            last = if weight < 5000 { at } else { last };
        }
    }
}
