//! Attention: near float64, and the same bits however the work is cut.

use oarlock_backend::quant::SplitMix;
use oarlock_backend_cuda::kernels::launch::{self, WorkType};
use oarlock_backend_cuda::kernels::{
    AttentionJoinParams, AttentionParams, AttentionPlan, PlanBudget, PlanChunk, PlanShape,
};

use crate::device::{Device, assert_near, assert_same, has_kernels, rounded};

const BLOCK: usize = 16;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) group: usize,
    pub(crate) kv_heads: usize,
    pub(crate) width: usize,
    /// Tokens in all.
    pub(crate) len: usize,
    pub(crate) window: Option<u32>,
    pub(crate) soft_cap: Option<f32>,
}

pub(crate) const BASE: Case =
    Case { group: 2, kv_heads: 2, width: 64, len: 40, window: None, soft_cap: None };

/// Queries, keys and values `[len][heads][width]` of one sequence.
#[derive(Clone)]
pub(crate) struct Input {
    pub(crate) queries: Vec<f32>,
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
}

impl Case {
    fn heads(&self) -> usize {
        self.group * self.kv_heads
    }

    fn scale(&self) -> f32 {
        (self.width as f32).powf(-0.5)
    }

    pub(crate) fn input(&self, work: WorkType, seed: u64) -> Input {
        let mut random = SplitMix(seed);
        let mut draw = |heads: usize| {
            let count = self.len * heads * self.width;
            let values: Vec<f32> =
                (0..count).map(|_| 1.5 * (random.uniform() + random.uniform())).collect();
            rounded(work, &values)
        };
        Input {
            queries: draw(self.heads()),
            keys: draw(self.kv_heads),
            values: draw(self.kv_heads),
        }
    }

    /// Attention of all tokens, in float64.
    fn want(&self, input: &Input) -> Vec<f32> {
        let mut out = Vec::new();
        for token in 0..self.len {
            let first = self.window.map_or(0, |window| (token + 1).saturating_sub(window as usize));
            for head in 0..self.heads() {
                let query =
                    &input.queries[(token * self.heads() + head) * self.width..][..self.width];
                let at = |seen: usize| (seen * self.kv_heads + head / self.group) * self.width;
                let scores: Vec<f64> = (first..=token)
                    .map(|seen| {
                        let key = &input.keys[at(seen)..][..self.width];
                        let dot: f64 = query.iter().zip(key).map(|(a, b)| f64::from(a * b)).sum();
                        let score = dot * f64::from(self.scale());
                        self.soft_cap
                            .map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                    })
                    .collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for i in 0..self.width {
                    let value: f64 = (first..)
                        .zip(&weights)
                        .map(|(seen, weight)| weight * f64::from(input.values[at(seen) + i]))
                        .sum();
                    out.push((value / sum) as f32);
                }
            }
        }
        out
    }
}

/// A range of tokens of a sequence that a step computes.
#[derive(Clone, Copy)]
pub(crate) struct Chunk<'a> {
    pub(crate) input: &'a Input,
    pub(crate) start: usize,
    pub(crate) rows: usize,
    /// First of the blocks that the sequence's are scattered over.
    pub(crate) first_block: usize,
}

/// How a sequence's blocks lie: a permutation of its own range.
fn block_of(first: usize, count: usize, index: usize) -> usize {
    first + (index * 7 + 3) % count
}

/// What one step has in memory: rows, pages and tables.
#[derive(Default)]
struct StepInput {
    qkv: Vec<f32>,
    cache: Vec<f32>,
    tables: Vec<u32>,
    chunks: Vec<PlanChunk>,
}

impl StepInput {
    /// Chunks of several sequences, whose keys and values are in the cache already; what later tokens
    /// will write is not there yet.
    fn new(case: &Case, chunks: &[Chunk<'_>]) -> Self {
        // A number of blocks that the permutation's step does not divide.
        let blocks = case.len.div_ceil(BLOCK);
        let count = if blocks.is_multiple_of(7) { blocks + 1 } else { blocks };
        let last = chunks.iter().map(|chunk| chunk.first_block).max();
        let pages = (last.expect("a chunk") + count) * case.kv_heads;
        let mut input = Self::default();
        input.cache.resize(pages * 2 * BLOCK * case.width, f32::NAN);
        for chunk in chunks {
            input.add(case, chunk, count);
        }
        input
    }

    fn add(&mut self, case: &Case, chunk: &Chunk<'_>, count: usize) {
        let (q, kv) = (case.heads() * case.width, case.kv_heads * case.width);
        let end = chunk.start + chunk.rows;
        self.chunks.push(PlanChunk {
            first_row: (self.qkv.len() / (q + 2 * kv)) as u32,
            rows: chunk.rows as u32,
            start: chunk.start as u32,
            first_table_entry: self.tables.len() as u32,
        });
        let Input { queries, keys, values } = chunk.input;
        for token in chunk.start..end {
            self.qkv.extend_from_slice(&queries[token * q..][..q]);
            self.qkv.extend_from_slice(&keys[token * kv..][..kv]);
            self.qkv.extend_from_slice(&values[token * kv..][..kv]);
        }
        for token in 0..end {
            let block = block_of(chunk.first_block, count, token / BLOCK);
            for head in 0..case.kv_heads {
                let from = (token * case.kv_heads + head) * case.width;
                let page = (block * case.kv_heads + head) * 2 * BLOCK * case.width;
                for (i, source) in [keys, values].into_iter().enumerate() {
                    let to = page + (i * BLOCK + token % BLOCK) * case.width;
                    self.cache[to..to + case.width]
                        .copy_from_slice(&source[from..from + case.width]);
                }
            }
        }
        let blocks = 0..end.div_ceil(BLOCK);
        self.tables.extend(blocks.map(|i| block_of(chunk.first_block, count, i) as u32));
    }
}

/// One step; what each chunk's rows give.
pub(crate) fn step(
    device: &mut Device,
    case: &Case,
    work: WorkType,
    chunks: &[Chunk<'_>],
    budget: PlanBudget,
) -> Vec<Vec<f32>> {
    let input = StepInput::new(case, chunks);
    let shape = PlanShape {
        group: case.group as u32,
        num_kv_heads: case.kv_heads as u32,
        window: case.window,
        has_wide: work == WorkType::Bf16,
    };
    let mut plan = AttentionPlan::default();
    plan.plan(&input.chunks, &shape, budget);
    let out_width = case.heads() * case.width;
    let rows: usize = chunks.iter().map(|chunk| chunk.rows).sum();
    let slot_bytes = case.kv_heads * 16 * (case.width + 2) * 4;
    let params = AttentionParams {
        out: device.allocate(rows * out_width * work.bytes()),
        qkv: device.upload_work(work, &input.qkv),
        cache: device.upload_work(work, &input.cache),
        workspace: device.allocate(plan.num_slots as usize * slot_bytes),
        tables: device.upload(&input.tables),
        num_heads: case.heads() as u32,
        num_kv_heads: case.kv_heads as u32,
        head_dim: case.width as u32,
        window: case.window.unwrap_or(0),
        scale: case.scale(),
        soft_cap: case.soft_cap.unwrap_or(0.0),
        inverse_soft_cap: case.soft_cap.map_or(0.0, |cap| 1.0 / cap),
        ..AttentionParams::default()
    };
    run_plan(device, work, &plan, params);
    let all = device.read_work(work, params.out, rows * out_width);
    let mut rest = all.as_slice();
    let split = |chunk: &Chunk<'_>| {
        let (mine, others) = rest.split_at(chunk.rows * out_width);
        rest = others;
        mine.to_vec()
    };
    chunks.iter().map(split).collect()
}

/// The launches of a plan.
fn run_plan(
    device: &mut Device,
    work: WorkType,
    plan: &AttentionPlan,
    mut params: AttentionParams,
) {
    let (kv_heads, width) = (params.num_kv_heads, params.head_dim);
    for (items, is_wide) in [(&plan.narrow, false), (&plan.wide, true)] {
        if items.is_empty() {
            continue;
        }
        params.items = device.upload(items);
        params.num_items = device.upload(&[items.len() as u32]);
        // One block more than there are items.
        let blocks = items.len() as u32 + 1;
        let launch = if is_wide {
            launch::attention_wide(blocks, kv_heads, width)
        } else {
            launch::attention_narrow(work, blocks, kv_heads, width)
        };
        device.run(&launch, &params);
    }
    if plan.joins.is_empty() {
        return;
    }
    let joins = plan.joins.len() as u32;
    let params = AttentionJoinParams {
        out: params.out,
        workspace: params.workspace,
        joins: device.upload(&plan.joins),
        num_joins: device.upload(&[joins]),
        num_heads: params.num_heads,
        num_kv_heads: kv_heads,
        head_dim: width,
        window: params.window,
    };
    device.run(&launch::attention_join(work, joins + 1, kv_heads), &params);
}

pub(crate) const WHOLE: PlanBudget = PlanBudget { wanted_blocks: 1, max_slots: 0 };
pub(crate) const SPLIT: PlanBudget = PlanBudget { wanted_blocks: 100_000, max_slots: 10_000 };

/// All tokens in one step.
fn whole(
    device: &mut Device,
    case: &Case,
    work: WorkType,
    input: &Input,
    budget: PlanBudget,
) -> Vec<f32> {
    let chunk = Chunk { input, start: 0, rows: case.len, first_block: 1 };
    step(device, case, work, &[chunk], budget).remove(0)
}

fn tolerance(work: WorkType) -> f64 {
    match work {
        WorkType::F32 => 1e-6,
        // Weights and outputs are rounded to 8 bits.
        WorkType::Bf16 => 4e-3,
    }
}

fn check_near(case: Case, seed: u64) {
    for work in [WorkType::F32, WorkType::Bf16] {
        let mut device = Device::new(seed);
        let input = case.input(work, seed);
        let got = whole(&mut device, &case, work, &input, WHOLE);
        let what = format!("{work:?} {case:?}");
        assert_near(&got, &case.want(&input), tolerance(work), &what);
        let split = whole(&mut device, &case, work, &input, SPLIT);
        assert_same(&split, &got, &format!("{what}, split"));
    }
}

#[test]
fn groups_and_widths_are_near() {
    if !has_kernels() {
        return;
    }
    for (seed, group) in (1..).zip([1, 3, 7, 8, 12, 17]) {
        check_near(Case { group, ..BASE }, seed);
    }
    for (seed, width) in (11..).zip([16, 48, 80, 128, 256]) {
        check_near(Case { width, len: 33, ..BASE }, seed);
    }
}

#[test]
fn lengths_windows_and_caps_are_near() {
    if !has_kernels() {
        return;
    }
    let small = Case { width: 16, kv_heads: 1, ..BASE };
    for (seed, len) in (21..).zip([1, 15, 16, 17, 255, 256, 257, 513]) {
        check_near(Case { len, ..small }, seed);
    }
    for (seed, window) in (31..).zip([1, 17, 100, 300, 512]) {
        check_near(Case { window: Some(window), len: 530, ..small }, seed);
    }
    check_near(Case { soft_cap: Some(3.0), len: 70, ..BASE }, 41);
    let wide =
        Case { width: 256, group: 4, kv_heads: 1, len: 270, window: Some(200), soft_cap: None };
    check_near(wide, 42);
}

#[test]
fn chunks_and_neighbors_do_not_matter() {
    if !has_kernels() {
        return;
    }
    let cases = [
        Case { group: 7, kv_heads: 1, len: 290, window: Some(37), ..BASE },
        Case { group: 3, kv_heads: 2, width: 128, len: 270, ..BASE },
        Case { group: 4, kv_heads: 1, width: 256, len: 262, ..BASE },
    ];
    for (seed, case) in (51..).zip(cases) {
        let work = WorkType::Bf16;
        let mut device = Device::new(seed);
        let (input, other) = (case.input(work, seed), case.input(work, seed + 100));
        let want = whole(&mut device, &case, work, &input, WHOLE);
        let row = case.heads() * case.width;
        for (start, rows) in [(0, 100), (100, case.len - 101), (case.len - 1, 1), (250, 9)] {
            let mine = Chunk { input: &input, start, rows, first_block: 30 };
            let before = Chunk { input: &other, start: 3, rows: 20, first_block: 0 };
            let after = Chunk { input: &other, start: 255, rows: 1, first_block: 60 };
            for budget in [WHOLE, SPLIT, PlanBudget { wanted_blocks: 8, max_slots: 6 }] {
                let got = step(&mut device, &case, work, &[before, mine, after], budget).remove(1);
                let what = format!("{case:?} from {start}, {rows} rows, {budget:?}");
                assert_same(&got, &want[start * row..][..rows * row], &what);
            }
        }
    }
}

#[test]
fn what_a_row_does_not_see_cannot_hurt_it() {
    if !has_kernels() {
        return;
    }
    let case =
        Case { group: 2, kv_heads: 1, width: 32, len: 330, window: Some(70), soft_cap: None };
    // A finite number near the greatest must not reach them either, whatever the tensor cores add it to.
    let huge = 3e38;
    for (work, bad) in [
        (WorkType::Bf16, f32::NAN),
        (WorkType::Bf16, f32::INFINITY),
        (WorkType::Bf16, huge),
        (WorkType::F32, f32::NAN),
    ] {
        let mut device = Device::new(61);
        let input = case.input(work, 61);
        let want = whole(&mut device, &case, work, &input, WHOLE);
        let row = case.heads() * case.width;
        // One key or one value of position 200: rows 200 to 269 see it.
        for is_value in [true, false] {
            let mut spoiled = input.clone();
            let values = if is_value { &mut spoiled.values } else { &mut spoiled.keys };
            values[200 * case.width + 5] = bad;
            for budget in [WHOLE, SPLIT] {
                let got = whole(&mut device, &case, work, &spoiled, budget);
                assert_same(&got[..200 * row], &want[..200 * row], "rows before");
                assert_same(&got[270 * row..], &want[270 * row..], "rows after");
                for token in 200..270 {
                    let seen = &got[token * row..][..row];
                    let is_hurt = seen.iter().any(|value| !value.is_finite());
                    let is_key_of_infinity = !is_value && bad.is_infinite();
                    assert!(is_hurt || is_key_of_infinity || bad == huge, "row {token} sees it");
                }
            }
        }
    }
}
