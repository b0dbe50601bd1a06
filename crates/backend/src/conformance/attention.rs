//! Rotary embedding, cache and attention: near the oracle, and the same bits however a prompt is cut,
//! wherever its blocks lie, and whatever else is in the step.

use oarlock_types::BLOCK_TOKENS;

use crate::{AttentionParams, Backend, KvCacheShape, RotaryStyle, RowSet};

use super::{
    Make, Sequence, TestStep, Tolerances, assert_near, assert_same, limits, oracle, random_values,
};

/// One attention layer to test.
#[derive(Clone, Copy, Debug)]
struct Case {
    params: AttentionParams,
    style: RotaryStyle,
    /// Elements of a head that are rotated, the first ones.
    rotated: usize,
    /// Positions in all.
    len: usize,
}

impl Case {
    fn new(num_kv_heads: usize, group: usize, head_dim: usize, len: usize) -> Self {
        let params = AttentionParams {
            num_heads: num_kv_heads * group,
            num_kv_heads,
            head_dim,
            scale: (head_dim as f32).powf(-0.5),
            sliding_window: None,
            soft_cap: None,
        };
        Self { params, style: RotaryStyle::Half, rotated: head_dim, len }
    }

    fn width(&self) -> usize {
        (self.params.num_heads + 2 * self.params.num_kv_heads) * self.params.head_dim
    }

    fn out_width(&self) -> usize {
        self.params.num_heads * self.params.head_dim
    }

    fn blocks(&self) -> usize {
        self.len.div_ceil(BLOCK_TOKENS)
    }

    /// Queries, keys and values of every position.
    fn input(&self, seed: u64) -> Vec<f32> {
        random_values(self.len * self.width(), seed)
    }
}

/// A backend with a cache of two layers and tensors for one case.
struct Layer<B: Backend> {
    backend: B,
    case: Case,
    /// Which of the two.
    index: usize,
    cache: B::KvCache,
    rotary: B::Rotary,
    qkv: B::Tensor,
    out: B::Tensor,
}

impl<B: Backend> Layer<B> {
    fn new(mut backend: B, case: Case, num_blocks: usize) -> Self {
        let AttentionParams { num_kv_heads, head_dim, .. } = case.params;
        let shape = KvCacheShape { num_layers: 2, num_blocks, num_kv_heads, head_dim };
        let frequencies: Vec<f32> = (0..case.rotated / 2)
            .map(|i| 10_000.0_f32.powf(-2.0 * i as f32 / case.rotated as f32))
            .collect();
        let cache = backend.kv_cache(shape).expect("a cache");
        let rotary = backend.rotary(&frequencies, 1.0, case.style).expect("angles");
        let qkv = backend.tensor(RowSet::Tokens, case.width()).expect("a tensor");
        let out = backend.tensor(RowSet::Tokens, case.out_width()).expect("a tensor");
        Self { backend, case, index: 1, cache, rotary, qkv, out }
    }

    /// One step over the rows that `input` holds.
    fn step(&mut self, sequences: &[Sequence], input: &[f32]) -> Vec<f32> {
        let Self { backend, case, index, cache, rotary, qkv, out } = self;
        TestStep::new(sequences).begin(backend, &[]);
        backend.write(qkv, input);
        backend.rotary_kv_write(qkv, cache, *index, rotary, &case.params);
        backend.paged_attention(out, qkv, cache, *index, &case.params);
        let got = backend.read(out);
        backend.finish_step(&mut Vec::new()).expect("a working device");
        got
    }

    /// A whole sequence in chunks of at most `chunk` rows.
    fn chunked(&mut self, input: &[f32], chunk: usize, blocks: &[u32]) -> Vec<f32> {
        let mut out = Vec::new();
        let mut start = 0;
        for rows in input.chunks(chunk * self.case.width()) {
            let count = rows.len() / self.case.width();
            let sequence = Sequence { start, rows: count, blocks: blocks.to_vec() };
            out.extend(self.step(&[sequence], rows));
            start += count;
        }
        out
    }

    fn whole(&mut self, input: &[f32]) -> Vec<f32> {
        let blocks: Vec<u32> = (0..self.case.blocks() as u32).collect();
        self.chunked(input, self.case.len, &blocks)
    }
}

/// Heads, groups, widths, lengths, windows and caps.
pub(super) fn shapes<B: Backend>(make: Make<'_, B>, tolerances: &Tolerances) {
    let mut cases: Vec<Case> =
        [1, 2, 3, 5, 7, 8, 12].map(|group| Case::new(2, group, 64, 40)).to_vec();
    cases.extend([16, 32, 48, 128, 256].map(|head_dim| Case::new(3, 2, head_dim, 33)));
    cases.extend([1, 15, 16, 17, 255, 256, 257, 511, 512, 513].map(|len| Case::new(1, 2, 32, len)));
    let mut window = Case::new(2, 3, 32, 530);
    window.params.sliding_window = Some(100);
    cases.push(window);
    window.params.sliding_window = Some(1);
    cases.push(window);
    // Gemma 3 270M's heads, and a window of two whole parts of 256.
    let mut gemma = Case::new(1, 4, 256, 270);
    gemma.params.sliding_window = Some(200);
    cases.push(gemma);
    let mut two_parts = Case::new(1, 2, 16, 600);
    two_parts.params.sliding_window = Some(512);
    cases.push(two_parts);
    let mut cap = Case::new(1, 4, 64, 300);
    cap.params.soft_cap = Some(5.0);
    cases.push(cap);
    cases.push(Case { style: RotaryStyle::Interleaved, ..Case::new(2, 2, 64, 50) });
    // Phi-4-mini's heads, of which three quarters are rotated, and odder ones.
    cases.extend(
        [(128, 96), (16, 8), (48, 24)]
            .map(|(head_dim, rotated)| Case { rotated, ..Case::new(2, 2, head_dim, 20) }),
    );
    for case in cases {
        let input = case.input(11);
        let got = Layer::new(make(limits()), case, case.blocks()).whole(&input);
        let want = Layer::new(oracle(), case, case.blocks()).whole(&input);
        assert_near(&got, &want, tolerances.attention, &format!("attention {case:?}"));
    }
}

/// A prompt whole, in chunks, and token by token.
pub(super) fn chunks_do_not_matter<B: Backend>(make: Make<'_, B>) {
    let mut window = Case::new(2, 7, 64, 290);
    window.params.sliding_window = Some(37);
    for case in [Case::new(2, 7, 64, 290), window, Case::new(1, 1, 16, 521)] {
        let input = case.input(12);
        let mut layer = Layer::new(make(limits()), case, case.blocks());
        let blocks: Vec<u32> = (0..case.blocks() as u32).collect();
        let whole = layer.whole(&input);
        for chunk in [1, 7, 100] {
            let chunked = layer.chunked(&input, chunk, &blocks);
            assert_same(&chunked, &whole, &format!("{case:?} in chunks of {chunk}"));
        }
    }
}

/// Scattered blocks and other sequences in the step.
pub(super) fn blocks_do_not_matter<B: Backend>(make: Make<'_, B>, tolerances: &Tolerances) {
    let case = Case::new(2, 3, 32, 300);
    let (mine, other) = (case.input(13), case.input(14));
    let mut layer = Layer::new(make(limits()), case, 64);
    let whole = layer.whole(&mine);
    let table = |offset: u32| -> Vec<u32> {
        (0..case.blocks() as u32).map(|i| (i * 2) % 38 + offset).collect()
    };
    let sequence = |start, rows, offset| Sequence { start, rows, blocks: table(offset) };
    let row = case.width();
    let mut got = Vec::new();
    for (start, rows) in [(0, 200), (200, 99), (299, 1)] {
        let range = start * row..(start + rows) * row;
        let input = [&other[range.clone()], &mine[range]].concat();
        let both = layer.step(&[sequence(start, rows, 1), sequence(start, rows, 0)], &input);
        got.extend_from_slice(&both[rows * case.out_width()..]);
    }
    assert_same(&got, &whole, "scattered blocks beside another sequence");
    let want = Layer::new(oracle(), case, 64).whole(&mine);
    assert_near(&got, &want, tolerances.attention, "scattered blocks");
}

/// Positions outside of a window do not count, whatever is there: whole parts and blocks of them, and
/// neighbors inside the window's first block.
pub(super) fn what_no_window_shows_is_not_looked_at<B: Backend>(make: Make<'_, B>) {
    let mut case = Case::new(2, 2, 32, 590);
    case.params.sliding_window = Some(70);
    let input = case.input(16);
    let mut layer = Layer::new(make(limits()), case, case.blocks());
    let whole = layer.whole(&input);
    // The last 60 rows see positions from 530 - 69 on.
    let first_seen = 530 + 1 - 70;
    let mut spoiled = input.clone();
    spoiled[..first_seen * case.width()].fill(f32::NAN);
    let got = layer.whole(&spoiled);
    let tail = 530 * case.out_width();
    assert_same(&got[tail..], &whole[tail..], "rows that see nothing of the spoiled positions");
    let row_before = &got[tail - case.out_width()..tail];
    assert!(row_before.iter().all(|value| value.is_nan()), "the row before sees one of them");
}

/// A copied block serves as its original did.
pub(super) fn blocks_are_copied<B: Backend>(make: Make<'_, B>) {
    let case = Case::new(2, 2, 32, 48);
    let input = case.input(15);
    let mut layer = Layer::new(make(limits()), case, 8);
    // A block spans all layers, and what was never written is not copied.
    layer.index = 0;
    layer.whole(&case.input(17));
    layer.index = 1;
    let whole = layer.whole(&input);
    layer.backend.copy_blocks(&mut layer.cache, &[(0, 5), (1, 4)]);
    let sequence = Sequence { start: 32, rows: 16, blocks: vec![5, 4, 7] };
    let tail = layer.step(&[sequence], &input[32 * case.width()..]);
    assert_same(&tail, &whole[32 * case.out_width()..], "tail after copied blocks");
}
