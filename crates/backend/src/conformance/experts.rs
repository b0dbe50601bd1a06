//! Layers of experts: which are chosen, what they add up to, and bits that depend on the row alone.

use crate::quant::random_row;
use crate::{Activation, Backend, ExpertsShape, InnerSplit, RowSet, WeightKind, WeightView};

use super::{
    Make, TestStep, Tolerances, assert_near, assert_same, limits, oracle, random_values, rounded,
};

/// A layer with random weights.
struct Layer {
    shape: ExpertsShape,
    kinds: [WeightKind; 2],
    router: Vec<u8>,
    /// Gate, up, down of each expert.
    experts: Vec<[Vec<u8>; 3]>,
}

impl Layer {
    fn random(shape: ExpertsShape, kinds: [WeightKind; 2], seed: u64) -> Self {
        let matrix = |kind, rows: usize, columns, seed: u64| -> Vec<u8> {
            (0..rows as u64)
                .flat_map(|row| random_row(kind, columns, 0.1, seed * 100_000 + row))
                .collect()
        };
        let ExpertsShape { num_experts, hidden, feed_forward, .. } = shape;
        let expert = |expert: usize| {
            let seed = seed + 3 * expert as u64;
            [
                matrix(kinds[0], feed_forward, hidden, seed + 1),
                matrix(kinds[0], feed_forward, hidden, seed + 2),
                matrix(kinds[1], hidden, feed_forward, seed + 3),
            ]
        };
        Self {
            shape,
            kinds,
            router: matrix(WeightKind::F32, num_experts, hidden, seed),
            experts: (0..num_experts).map(expert).collect(),
        }
    }

    fn router(&self) -> WeightView<'_> {
        let ExpertsShape { num_experts, hidden, .. } = self.shape;
        WeightView::whole("router", WeightKind::F32, num_experts, hidden, &self.router)
    }

    /// The range of the inner width that one of some ranks has.
    fn pack<B: Backend>(&self, backend: &mut B, rank: usize, ranks: usize) -> B::Experts {
        let ExpertsShape { hidden, feed_forward, split, .. } = self.shape;
        let own = rank * feed_forward / ranks..(rank + 1) * feed_forward / ranks;
        let split = InnerSplit { segments: split.segments / ranks };
        let shape = ExpertsShape { feed_forward: own.len(), split, ..self.shape };
        let mut experts = backend.experts(&shape, &self.router()).expect("a good router");
        for [gate, up, down] in &self.experts {
            let view = |data| {
                let whole = WeightView::whole("gate", self.kinds[0], feed_forward, hidden, data);
                whole.with_rows(own.clone())
            };
            let down = WeightView::whole("down", self.kinds[1], hidden, feed_forward, down);
            let down = down.with_columns(own.clone());
            backend.pack_expert(&mut experts, &[view(gate), view(up)], &down).expect("an expert");
        }
        experts
    }
}

/// What a layer gives, and whom it chose.
fn run<B: Backend>(
    backend: &mut B,
    layer: &Layer,
    (rank, ranks): (usize, usize),
    input: &[f32],
) -> (Vec<f32>, Vec<(u32, f32)>) {
    let experts = layer.pack(backend, rank, ranks);
    run_packed(backend, layer, &experts, input)
}

fn run_packed<B: Backend>(
    backend: &mut B,
    layer: &Layer,
    experts: &B::Experts,
    input: &[f32],
) -> (Vec<f32>, Vec<(u32, f32)>) {
    let hidden = layer.shape.hidden;
    let mut routing = backend.routing(&layer.shape).expect("room for choices");
    let mut from = backend.tensor(RowSet::Tokens, hidden).expect("a tensor");
    let mut to = backend.float_tensor(RowSet::Tokens, hidden).expect("a tensor");
    TestStep::rows(input.len() / hidden).begin(backend, &[]);
    backend.write(&mut from, input);
    backend.route(&mut routing, &from, experts);
    backend.expert_feed_forward(&mut to, &from, &routing, experts, Activation::Silu);
    let got = (backend.read(&to), backend.read_routing(&routing));
    backend.finish_step(&mut Vec::new()).expect("a working device");
    got
}

fn shape(num_experts: usize, top_k: usize, hidden: usize, feed_forward: usize) -> ExpertsShape {
    let split = InnerSplit::of_units(feed_forward / 32);
    ExpertsShape { num_experts, top_k, normalize: true, hidden, feed_forward, split }
}

/// Kinds, widths, numbers of experts and of rows.
pub(super) fn shapes<B: Backend>(make: Make<'_, B>, tolerances: &Tolerances) {
    use WeightKind::{Bf16, F32, Q4_0, Q4K, Q6K, Q8_0};
    let softmax = ExpertsShape { normalize: false, ..shape(128, 8, 64, 96) };
    let odd = ExpertsShape { split: InnerSplit { segments: 8 }, ..shape(5, 3, 72, 40) };
    let one = ExpertsShape { split: InnerSplit::WHOLE, ..shape(1, 1, 64, 64) };
    for (shape, kinds) in [
        (shape(4, 2, 64, 160), [Bf16, Bf16]),
        (shape(8, 2, 256, 256), [Q4K, Q6K]),
        (shape(8, 8, 64, 128), [Q8_0, Q4_0]),
        (shape(3, 1, 128, 64), [Q8_0, F32]),
        (softmax, [F32, F32]),
        (odd, [Bf16, Bf16]),
        (one, [Bf16, Q8_0]),
    ] {
        let layer = Layer::random(shape, kinds, 3);
        // A simulated device takes its time for many rows.
        let rows = if kinds == [Bf16, Bf16] { &[1, 2, 9, 600][..] } else { &[1, 9, 70] };
        for &rows in rows {
            let mut backend = make(limits());
            let input = random_values(rows * shape.hidden, rows as u64 + 5);
            let input = rounded(&mut backend, shape.hidden, &input);
            let what = format!("{shape:?} of {kinds:?}, {rows} rows");
            let (got, choices) = run(&mut backend, &layer, (0, 1), &input);
            let (want, wanted) = run(&mut oracle(), &layer, (0, 1), &input);
            let ids = |choices: &[(u32, f32)]| -> Vec<u32> {
                choices.iter().map(|choice| choice.0).collect()
            };
            assert_eq!(ids(&choices), ids(&wanted), "{what}: chosen experts");
            let weights = |choices: &[(u32, f32)]| -> Vec<f32> {
                choices.iter().map(|choice| choice.1).collect()
            };
            assert_near(&weights(&choices), &weights(&wanted), 1e-5, &what);
            let is_quantized = kinds.iter().any(|kind| kind.is_quantized());
            let one_layer = if is_quantized { tolerances.quantized } else { tolerances.float };
            // Two layers, and an activation between them.
            assert_near(&got, &want, 2.0 * one_layer, &what);
        }
    }
}

/// A row's bits are the same alone and in company, and a bad row harms itself only.
pub(super) fn rows_are_independent<B: Backend>(make: Make<'_, B>) {
    const ROWS: usize = 77;
    use WeightKind::{Bf16, F32, Q4K, Q6K, Q8_0};
    for kinds in [[Bf16, Bf16], [Q4K, Q6K], [Q8_0, Q8_0], [F32, F32]] {
        let shape = shape(6, 2, 256, 256);
        let layer = Layer::random(shape, kinds, 7);
        let mut input = random_values(ROWS * 256, 8);
        input[30 * 256 + 9] = f32::NAN;
        input[31 * 256 + 5] = f32::INFINITY;
        let mut backend = make(limits());
        let (together, _) = run(&mut backend, &layer, (0, 1), &input);
        for row in 0..ROWS {
            let outputs = &together[row * 256..][..256];
            if row == 30 || row == 31 {
                assert!(outputs.iter().all(|v| !v.is_finite()), "{kinds:?}: row {row} is bad");
                continue;
            }
            // Every third is enough, with its neighbours of the bad ones.
            if row % 3 == 0 || row == 29 || row == 32 {
                let (alone, _) = run(&mut backend, &layer, (0, 1), &input[row * 256..][..256]);
                assert_same(&alone, outputs, &format!("{kinds:?}: row {row} alone"));
            }
        }
    }
}

/// Ranks that hold ranges of the inner width, joined by the tree, have the bits of the whole layer.
pub(super) fn shards_join_to_the_whole<B: Backend>(make: Make<'_, B>) {
    use WeightKind::{Bf16, Q4K, Q6K, Q8_0};
    for (kinds, feed_forward, ranks) in
        [([Bf16, Bf16], 48, 2), ([Bf16, Bf16], 48, 8), ([Q4K, Q6K], 768, 4), ([Q8_0, Q8_0], 128, 2)]
    {
        let units = if kinds[1].is_quantized() { feed_forward / 32 } else { feed_forward };
        let split = InnerSplit::of_units(units);
        let shape = ExpertsShape { split, ..shape(6, 3, 256, feed_forward) };
        let layer = Layer::random(shape, kinds, 11);
        let input = random_values(13 * 256, 12);
        let (want, _) = run(&mut make(limits()), &layer, (0, 1), &input);
        let mut partials: Vec<Vec<f32>> = (0..ranks)
            .map(|rank| run(&mut make(limits()), &layer, (rank, ranks), &input).0)
            .collect();
        while partials.len() > 1 {
            let pairs = partials.chunks(2);
            partials = pairs
                .map(|pair| pair[0].iter().zip(&pair[1]).map(|(a, b)| a + b).collect())
                .collect();
        }
        assert_same(&partials[0], &want, &format!("{kinds:?}: {feed_forward} by {ranks}"));
    }
}

/// Layers of unlike shapes on one backend do not take each other's room.
pub(super) fn unlike_layers_share_a_backend<B: Backend>(make: Make<'_, B>) {
    use WeightKind::{Bf16, F32, Q8_0};
    let layers = [
        (shape(8, 2, 512, 64), [Q8_0, Q8_0]),
        (shape(4, 4, 64, 256), [Bf16, Bf16]),
        (shape(16, 6, 32, 32), [F32, Q8_0]),
    ];
    let layers = layers.map(|(shape, kinds)| Layer::random(shape, kinds, 17));
    let mut together = make(limits());
    let packed: Vec<_> = layers.iter().map(|layer| layer.pack(&mut together, 0, 1)).collect();
    for (layer, experts) in layers.iter().zip(&packed) {
        let hidden = layer.shape.hidden;
        let input = random_values(70 * hidden, 18);
        let (want, _) = run(&mut make(limits()), layer, (0, 1), &input);
        let (got, _) = run_packed(&mut together, layer, experts, &input);
        assert_same(&got, &want, &format!("{:?} beside others", layer.shape));
    }
}

/// Shapes that cannot be.
pub(super) fn bad_layers_are_refused<B: Backend>(make: Make<'_, B>) {
    let mut backend = make(limits());
    let layer = Layer::random(shape(4, 2, 64, 64), [WeightKind::Bf16; 2], 1);
    let router = layer.router();
    for bad in [
        ExpertsShape { num_experts: 5, ..layer.shape },
        ExpertsShape { top_k: 5, ..layer.shape },
        ExpertsShape { top_k: 0, ..layer.shape },
        ExpertsShape { hidden: 65, ..layer.shape },
        ExpertsShape { split: InnerSplit { segments: 0 }, ..layer.shape },
        ExpertsShape { split: InnerSplit { segments: 16 }, ..layer.shape },
    ] {
        assert!(backend.experts(&bad, &router).is_err(), "{bad:?}");
    }
    let mut experts = backend.experts(&layer.shape, &router).expect("a good router");
    let [gate, up, down] = &layer.experts[0];
    let view = |kind, rows, columns, data| WeightView::whole("expert", kind, rows, columns, data);
    let gate = view(WeightKind::Bf16, 64, 64, gate);
    let (up, down) = (WeightView { data: up, ..gate }, WeightView { data: down, ..gate });
    let narrow = WeightView { columns: 63, ..gate };
    assert!(backend.pack_expert(&mut experts, &[narrow, up], &down).is_err(), "narrow");
    let few = down.with_rows(0..63);
    assert!(backend.pack_expert(&mut experts, &[gate, up], &few).is_err(), "few outputs");
    backend.pack_expert(&mut experts, &[gate, up], &down).expect("a good expert");
    let halves = vec![0; 64 * 64 * 2];
    let other = view(WeightKind::F16, 64, 64, &halves);
    assert!(backend.pack_expert(&mut experts, &[other, up], &down).is_err(), "another kind");
}
