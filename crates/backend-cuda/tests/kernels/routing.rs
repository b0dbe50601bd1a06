//! Which experts rows take, the list of their rows, and what experts add up to: against plain code.

use oarlock_backend::quant::SplitMix;
use oarlock_backend_cuda::kernels::launch::{self, ExpertTiling};
use oarlock_backend_cuda::kernels::{
    ExpertCombineParams, ExpertPlanParams, ExpertTile, RouteParams,
};

use crate::device::{Device, assert_near, assert_same, has_kernels};
use crate::linear::random_values;

/// Experts and weights of rows, as `route_f32` gives them.
pub(crate) fn route(
    device: &mut Device,
    logits: &[f32],
    (rows, parts, num_experts): (usize, usize, usize),
    (top_k, normalize): (usize, bool),
) -> (Vec<u32>, Vec<f32>) {
    let params = RouteParams {
        experts: device.allocate(rows * top_k * 4),
        weights: device.allocate(rows * top_k * 4),
        logits: device.upload(logits),
        num_rows: device.upload(&[rows as u32]),
        parts: parts as u32,
        num_experts: num_experts as u32,
        top_k: top_k as u32,
        normalize: normalize.into(),
    };
    // More rows than there are: those blocks have nothing to do.
    device.run(&launch::route(rows as u32 + 5), &params);
    (device.read(params.experts, rows * top_k), device.read(params.weights, rows * top_k))
}

/// The same of one row, in float64; ties go to the least index.
fn chosen(logits: &[f32], top_k: usize, normalize: bool) -> Vec<(u32, f32)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].partial_cmp(&logits[*a]).expect("numbers"));
    let greatest = f64::from(logits[order[0]]);
    let exp = |expert: usize| (f64::from(logits[expert]) - greatest).exp();
    let mut taken = order[..top_k].to_vec();
    taken.sort_unstable();
    let all = if normalize { taken.clone() } else { order };
    let sum: f64 = all.into_iter().map(exp).sum();
    taken.into_iter().map(|expert| (expert as u32, (exp(expert) / sum) as f32)).collect()
}

#[test]
fn the_greatest_logits_are_chosen() {
    if !has_kernels() {
        return;
    }
    for (seed, (num_experts, top_k, parts)) in
        (0..).zip([(1, 1, 1), (8, 2, 3), (60, 4, 2), (128, 8, 1), (100, 32, 1), (1024, 32, 3)])
    {
        for normalize in [true, false] {
            let rows = 7;
            let mut logits = random_values(rows * parts * num_experts, seed);
            for row in logits.chunks_mut(parts * num_experts) {
                // Later parts are less, but for whole numbers, whose sums are exact: ties.
                row[..num_experts].iter_mut().for_each(|value| *value = (*value * 8.0).round());
                row[num_experts..].iter_mut().for_each(|value| *value = (*value * 3.0).round());
            }
            logits[0] = f32::NEG_INFINITY;
            let bad = 5 * parts * num_experts;
            logits[bad + num_experts - 1] = f32::NAN;
            let mut device = Device::new(seed);
            let shape = (rows, parts, num_experts);
            let (experts, weights) = route(&mut device, &logits, shape, (top_k, normalize));
            for (row, logits) in logits.chunks(parts * num_experts).enumerate() {
                let what = format!("{top_k} of {num_experts}, row {row}");
                let (experts, weights) =
                    (&experts[row * top_k..][..top_k], &weights[row * top_k..][..top_k]);
                if row == 5 {
                    assert!(experts.iter().copied().eq(0..top_k as u32), "{what}: {experts:?}");
                    assert!(weights.iter().all(|weight| weight.is_nan()), "{what}: no weights");
                    continue;
                }
                if row == 0 && num_experts == 1 {
                    assert!(weights[0].is_nan(), "a row without a finite logit");
                    continue;
                }
                let sums: Vec<f32> = (0..num_experts)
                    .map(|expert| logits.iter().skip(expert).step_by(num_experts).sum())
                    .collect();
                let (ids, near): (Vec<_>, Vec<_>) =
                    chosen(&sums, top_k, normalize).into_iter().unzip();
                assert_eq!(experts, ids, "{what}");
                assert_near(weights, &near, 1e-6, &what);
            }
        }
    }
}

/// What `expert_plan` lists.
pub(crate) struct Plan {
    pub(crate) params: ExpertPlanParams,
    pub(crate) assignments: usize,
    pub(crate) num_tiles: usize,
}

/// Lists the rows of experts on a device, which launches more blocks than there are tiles.
pub(crate) fn plan(
    device: &mut Device,
    experts: &[u32],
    (num_experts, top_k): (usize, usize),
    tile_rows: u32,
) -> Plan {
    let rows = (experts.len() / top_k) as u32;
    let tiling = ExpertTiling::with_rows(experts.len() as u32, num_experts as u32, tile_rows);
    let params = ExpertPlanParams {
        rows: device.allocate(experts.len() * 4),
        places: device.allocate(experts.len() * 4),
        tiles: device.allocate(tiling.tiles as usize * size_of::<ExpertTile>()),
        counts: device.allocate(8),
        experts: device.upload(experts),
        num_rows: device.upload(&[rows]),
        num_experts: num_experts as u32,
        top_k: top_k as u32,
        tile_rows,
        padding: 0,
    };
    device.run(&launch::expert_plan(rows, num_experts as u32), &params);
    Plan { params, assignments: experts.len(), num_tiles: tiling.tiles as usize }
}

/// Experts of rows: `spread` of them in turns, ascending in each row.
pub(crate) fn random_choices(
    rows: usize,
    (num_experts, top_k): (usize, usize),
    seed: u64,
) -> Vec<u32> {
    let mut random = SplitMix(seed);
    let mut all: Vec<u32> = (0..num_experts as u32).collect();
    let mut choices = Vec::new();
    for _ in 0..rows {
        for i in 0..top_k {
            all.swap(i, i + random.next() as usize % (num_experts - i));
        }
        let mut row = all[..top_k].to_vec();
        row.sort_unstable();
        choices.extend(row);
    }
    choices
}

/// Checks a plan against a sorted list.
fn check_plan(device: &Device, plan: &Plan, experts: &[u32], top_k: usize, what: &str) {
    let mut order: Vec<usize> = (0..experts.len()).collect();
    order.sort_by_key(|choice| experts[*choice]);
    let rows: Vec<u32> = device.read(plan.params.rows, experts.len());
    let places: Vec<u32> = device.read(plan.params.places, experts.len());
    for (place, choice) in order.iter().enumerate() {
        assert_eq!(rows[place] as usize, choice / top_k, "{what}: row of assignment {place}");
        assert_eq!(places[*choice] as usize, place, "{what}: place of choice {choice}");
    }
    let counts: Vec<u32> = device.read(plan.params.counts, 2);
    assert_eq!(counts, [experts.len() as u32, plan.num_tiles as u32], "{what}: counts");
    let tiles: Vec<ExpertTile> = device.read(plan.params.tiles, plan.num_tiles);
    let mut next = 0;
    for tile in tiles {
        assert!(tile.count <= plan.params.tile_rows, "{what}: {tile:?}");
        if tile.count > 0 {
            assert_eq!(tile.first, next, "{what}: tiles in order");
            next += tile.count;
        }
        for place in tile.first..tile.first + tile.count {
            assert_eq!(experts[order[place as usize]], tile.expert, "{what}: {tile:?}");
        }
    }
    assert_eq!(next as usize, experts.len(), "{what}: every assignment is in a tile");
}

#[test]
fn rows_are_listed_by_experts() {
    if !has_kernels() {
        return;
    }
    let mut seed = 0;
    for (num_experts, top_k) in [(1, 1), (5, 3), (128, 8), (1024, 2)] {
        for rows in [1, 3, 70, 600] {
            let random = random_choices(rows, (num_experts, top_k), seed);
            // Of all experts the last ones, the others without a row.
            let last: Vec<u32> =
                (0..rows).flat_map(|_| (num_experts - top_k) as u32..num_experts as u32).collect();
            for experts in [random, last] {
                for tile_rows in [8, 32, 64] {
                    let what = format!("{top_k} of {num_experts}, {rows} rows, by {tile_rows}");
                    let mut device = Device::new(seed);
                    seed += 1;
                    let plan = plan(&mut device, &experts, (num_experts, top_k), tile_rows);
                    check_plan(&device, &plan, &experts, top_k, &what);
                }
            }
        }
    }
}

/// Sums of experts to be added up.
pub(crate) struct Sums {
    pub(crate) hidden: usize,
    pub(crate) top_k: usize,
    pub(crate) segments: usize,
    /// `[segments, assignments, hidden]`.
    pub(crate) values: Vec<f32>,
    /// `[rows, top_k]`.
    pub(crate) places: Vec<u32>,
    pub(crate) weights: Vec<f32>,
}

impl Sums {
    pub(crate) fn random(rows: usize, hidden: usize, top_k: usize, segments: usize) -> Self {
        let assignments = rows * top_k;
        // Each place once, in some order.
        let places = (0..assignments).map(|i| (i * 7 % assignments) as u32).collect();
        Self {
            hidden,
            top_k,
            segments,
            values: random_values(segments * assignments * hidden, 3),
            places,
            weights: random_values(assignments, 4),
        }
    }

    /// By `expert_combine_f32`, in ranges.
    pub(crate) fn combine(&self, device: &mut Device, ranges: usize) -> Vec<f32> {
        let rows = self.places.len() / self.top_k;
        let at_once = self.segments / ranges;
        let segment_values = self.places.len() * self.hidden;
        let out = device.allocate(rows * self.hidden * 4);
        let pending = device.allocate(ranges.ilog2() as usize * rows * self.hidden * 4 + 1);
        let places = device.upload(&self.places);
        let weights = device.upload(&self.weights);
        let num_rows = device.upload(&[rows as u32]);
        for range in 0..ranges {
            let values =
                &self.values[range * at_once * segment_values..][..at_once * segment_values];
            let params = ExpertCombineParams {
                out,
                pending,
                sums: device.upload(values),
                places,
                weights,
                num_rows,
                segment_values: segment_values as u64,
                level_values: (rows * self.hidden) as u64,
                hidden: self.hidden as u32,
                top_k: self.top_k as u32,
                range: range as u32,
                ranges: ranges as u32,
            };
            let launch =
                launch::expert_combine(rows as u32 + 2, self.hidden as u32, at_once as u32);
            device.run(&launch, &params);
        }
        device.read(out, rows * self.hidden)
    }

    /// The same in plain code.
    fn want(&self) -> Vec<f32> {
        let assignments = self.places.len();
        let one = |row: usize, output: usize| {
            let mut joined: Vec<f32> = (0..self.segments)
                .map(|segment| {
                    let choices = row * self.top_k..(row + 1) * self.top_k;
                    choices.fold(0.0, |sum, choice| {
                        let place = segment * assignments + self.places[choice] as usize;
                        let value = self.values[place * self.hidden + output];
                        self.weights[choice].mul_add(value, sum)
                    })
                })
                .collect();
            while joined.len() > 1 {
                joined = joined.chunks(2).map(|pair| pair[0] + pair[1]).collect();
            }
            joined[0]
        };
        let rows = assignments / self.top_k;
        (0..rows).flat_map(|row| (0..self.hidden).map(move |output| one(row, output))).collect()
    }
}

#[test]
fn experts_are_added_up_in_one_order() {
    if !has_kernels() {
        return;
    }
    for (seed, (hidden, top_k, segments)) in
        (0..).zip([(72, 3, 8), (33, 1, 2), (130, 8, 1), (260, 32, 4), (6, 2, 8)])
    {
        let sums = Sums::random(5, hidden, top_k, segments);
        let want = sums.want();
        for ranges in [1, 2, 4, 8].into_iter().filter(|ranges| *ranges <= segments) {
            let got = sums.combine(&mut Device::new(seed), ranges);
            let what = format!("{top_k} experts of {hidden}, {segments} segments in {ranges}");
            assert_same(&got, &want, &what);
        }
    }
}
