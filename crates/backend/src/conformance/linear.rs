//! Linear layers: every kind, every number of rows, every split.

use crate::quant::random_row;
use crate::{Backend, InnerSplit, RowSet, WeightKind, WeightView};

use super::{Make, TestStep, Tolerances, assert_near, assert_same, limits, oracle, random_values};

const KINDS: [WeightKind; 9] = [
    WeightKind::F32,
    WeightKind::F16,
    WeightKind::Bf16,
    WeightKind::Q4_0,
    WeightKind::Q5_0,
    WeightKind::Q8_0,
    WeightKind::Q4K,
    WeightKind::Q5K,
    WeightKind::Q6K,
];

/// Of those that backends decode or round while they pack.
const RARE: [WeightKind; 3] = [WeightKind::Q5_1, WeightKind::Q2K, WeightKind::Q3K];

/// A stored matrix with random contents.
struct Matrix {
    kind: WeightKind,
    rows: usize,
    columns: usize,
    data: Vec<u8>,
}

impl Matrix {
    fn random(kind: WeightKind, rows: usize, columns: usize, seed: u64) -> Self {
        let row = |row| random_row(kind, columns, 0.05, seed * 10_000 + row as u64);
        Self { kind, rows, columns, data: (0..rows).flat_map(row).collect() }
    }

    fn view(&self) -> WeightView<'_> {
        WeightView::whole("test", self.kind, self.rows, self.columns, &self.data)
    }
}

/// Runs one layer on `rows` rows of input.
fn run<B: Backend>(
    backend: &mut B,
    parts: &[Matrix],
    split: InnerSplit,
    bias: Option<&[f32]>,
    input: &[f32],
) -> Vec<f32> {
    let views: Vec<_> = parts.iter().map(Matrix::view).collect();
    run_views(backend, &views, split, bias, input)
}

/// As [`run`].
fn run_views<B: Backend>(
    backend: &mut B,
    views: &[WeightView<'_>],
    split: InnerSplit,
    bias: Option<&[f32]>,
    input: &[f32],
) -> Vec<f32> {
    let columns = views[0].columns;
    let outputs = views.iter().map(|view| view.rows).sum();
    let weight = backend.pack_linear(views, split).expect("a good weight");
    let bias = bias.map(|bias| backend.vector(bias).expect("a vector"));
    let mut from = backend.tensor(RowSet::Tokens, columns).expect("a tensor");
    let mut to = backend.float_tensor(RowSet::Tokens, outputs).expect("a tensor");
    let mut narrow = backend.tensor(RowSet::Tokens, outputs).expect("a tensor");
    TestStep::rows(input.len() / columns).begin(backend, &[]);
    backend.write(&mut from, input);
    backend.linear(&mut to, &from, &weight, bias.as_ref());
    let got = backend.read(&to);
    // The other type of outputs holds the same numbers, rounded.
    backend.linear(&mut narrow, &from, &weight, bias.as_ref());
    let narrow_got = backend.read(&narrow);
    backend.write(&mut narrow, &got);
    for (narrow, want) in narrow_got.iter().zip(backend.read(&narrow)) {
        let is_same = narrow.to_bits() == want.to_bits() || narrow.is_nan() && want.is_nan();
        assert!(is_same, "an output of the other type is {narrow}, rounded it is {want}");
    }
    backend.finish_step(&mut Vec::new()).expect("a working device");
    got
}

fn tolerance(kind: WeightKind, tolerances: &Tolerances) -> f32 {
    if kind.is_quantized() { tolerances.quantized } else { tolerances.float }
}

/// Each kind alone.
pub(super) fn shapes<B: Backend>(make: Make<'_, B>, tolerances: &Tolerances) {
    for kind in KINDS {
        for (outputs, columns, segments) in [(16, 256, 1), (33, 512, 2), (48, 768, 8), (7, 1280, 4)]
        {
            for rows in [1, 2, 3, 5, 16, 17, 33, 70] {
                let split = InnerSplit { segments };
                let parts = [Matrix::random(kind, outputs, columns, rows as u64)];
                let input = random_values(rows * columns, rows as u64 + 1);
                let got = run(&mut make(limits()), &parts, split, None, &input);
                let want = run(&mut oracle(), &parts, split, None, &input);
                let what = format!("{kind:?} {outputs} x {columns} in {segments}, {rows} rows");
                assert_near(&got, &want, tolerance(kind, tolerances), &what);
            }
        }
    }
    for kind in RARE {
        let (outputs, columns, rows) = (33, 512, 17);
        let split = InnerSplit { segments: 2 };
        let parts = [Matrix::random(kind, outputs, columns, 1)];
        let input = random_values(rows * columns, 2);
        let got = run(&mut make(limits()), &parts, split, None, &input);
        let want = run(&mut oracle(), &parts, split, None, &input);
        assert_near(&got, &want, tolerance(kind, tolerances), &format!("{kind:?}"));
    }
    // Widths that are no multiple of any tile.
    for (columns, segments) in [(1, 1), (31, 1), (72, 8), (100, 4)] {
        let split = InnerSplit { segments };
        let parts = [Matrix::random(WeightKind::F32, 19, columns, 3)];
        let input = random_values(5 * columns, 4);
        let got = run(&mut make(limits()), &parts, split, None, &input);
        let want = run(&mut oracle(), &parts, split, None, &input);
        assert_near(&got, &want, tolerances.float * 2.0, &format!("{columns} columns"));
    }
}

/// Parts of several kinds with a bias, as a fused projection has them.
pub(super) fn fused_parts<B: Backend>(make: Make<'_, B>, tolerances: &Tolerances) {
    let part = |kind, rows, seed| Matrix::random(kind, rows, 512, seed);
    let parts = [
        part(WeightKind::Q5_0, 40, 1),
        part(WeightKind::Q8_0, 8, 2),
        part(WeightKind::F16, 24, 3),
        part(WeightKind::Q6K, 17, 4),
    ];
    let bias = random_values(89, 9);
    for rows in [1, 9, 130] {
        let input = random_values(rows * 512, 7);
        let got = run(&mut make(limits()), &parts, InnerSplit { segments: 4 }, Some(&bias), &input);
        let want = run(&mut oracle(), &parts, InnerSplit { segments: 4 }, Some(&bias), &input);
        assert_near(&got, &want, tolerances.quantized, "fused parts");
    }
}

/// Ranks that hold ranges of the columns, joined by the tree, have the bits of the whole layer; a
/// range may begin inside a super-block of 256.
pub(super) fn shards_join_to_the_whole<B: Backend>(make: Make<'_, B>) {
    const ROWS: usize = 11;
    for kind in KINDS.into_iter().chain(RARE) {
        // 1,280 columns are five super-blocks: every shard but the first begins inside of one.
        for (columns, segments, ranks) in [(1280, 8, 8), (1280, 4, 2), (768, 2, 2), (1280, 8, 4)] {
            let matrix = Matrix::random(kind, 35, columns, 8);
            let input = random_values(ROWS * columns, 9);
            let split = InnerSplit { segments };
            let parts = std::slice::from_ref(&matrix);
            let want = run(&mut make(limits()), parts, split, None, &input);
            let width = columns / ranks;
            let mut partials: Vec<Vec<f32>> = (0..ranks)
                .map(|rank| {
                    let range = rank * width..(rank + 1) * width;
                    let view = matrix.view().with_columns(range.clone());
                    let rows = input.chunks(columns).flat_map(|row| &row[range.clone()]);
                    let input: Vec<f32> = rows.copied().collect();
                    let split = InnerSplit { segments: segments / ranks };
                    run_views(&mut make(limits()), &[view], split, None, &input)
                })
                .collect();
            while partials.len() > 1 {
                let pairs = partials.chunks(2);
                partials = pairs
                    .map(|pair| pair[0].iter().zip(&pair[1]).map(|(a, b)| a + b).collect())
                    .collect();
            }
            assert_same(
                &partials[0],
                &want,
                &format!("{kind:?}: {columns} columns, {ranks} ranks"),
            );
        }
    }
}

/// A row's bits are the same alone and in company, and a bad row harms itself only.
pub(super) fn rows_are_independent<B: Backend>(make: Make<'_, B>) {
    const ROWS: usize = 77;
    for kind in KINDS {
        let parts = [Matrix::random(kind, 35, 512, 5)];
        let split = InnerSplit { segments: 2 };
        let mut input = random_values(ROWS * 512, 6);
        input[30 * 512 + 100] = f32::NAN;
        input[31 * 512 + 5] = f32::INFINITY;
        let mut backend = make(limits());
        let together = run(&mut backend, &parts, split, None, &input);
        for row in 0..ROWS {
            let outputs = &together[row * 35..][..35];
            if row == 30 || row == 31 {
                assert!(
                    outputs.iter().all(|v| !v.is_finite()),
                    "{kind:?}: a row with a NaN or infinity"
                );
                continue;
            }
            let alone = run(&mut backend, &parts, split, None, &input[row * 512..][..512]);
            assert_same(&alone, outputs, &format!("{kind:?}: row {row} alone"));
        }
    }
}

/// Shapes that cannot be.
pub(super) fn bad_weights_are_refused<B: Backend>(make: Make<'_, B>) {
    let mut backend = make(limits());
    let good = Matrix::random(WeightKind::Q8_0, 4, 96, 1);
    let short = WeightView { data: &good.data[1..], ..good.view() };
    assert!(backend.pack_linear(&[short], InnerSplit::WHOLE).is_err(), "too few bytes");
    let ragged = WeightView { columns: 95, stored_columns: 95, ..good.view() };
    assert!(backend.pack_linear(&[ragged], InnerSplit::WHOLE).is_err(), "partial blocks");
    let other = Matrix::random(WeightKind::Q8_0, 4, 64, 1);
    assert!(
        backend.pack_linear(&[good.view(), other.view()], InnerSplit::WHOLE).is_err(),
        "two widths"
    );
    assert!(
        backend.pack_linear(&[good.view()], InnerSplit { segments: 2 }).is_err(),
        "cut sub-blocks"
    );
    assert!(backend.pack_table(&short, 0).is_err(), "too few bytes of a table");
}
