//! Row-wise operations: embedding, norms, activation, soft cap.

use oarlock_types::SamplingParams;

use crate::quant::random_row;
use crate::{
    Activation, AttentionParams, Backend, History, InnerSplit, LogitKind, LogitRow, RowSet,
    WeightKind, WeightView,
};

use super::{
    Make, TestStep, Tolerances, assert_near, assert_same, limits, oracle, random_values, rounded,
};

/// Rows of tables of several kinds, scaled.
pub(super) fn embedding<B: Backend>(make: Make<'_, B>, tolerances: &Tolerances) {
    fn run<B: Backend>(backend: &mut B, table: &WeightView<'_>, tokens: &[u32]) -> Vec<f32> {
        let table_on_device = backend.pack_table(table, 0).expect("a good table");
        let mut out = backend.float_tensor(RowSet::Tokens, table.columns).expect("a tensor");
        TestStep::rows(tokens.len()).with_tokens(tokens).begin(backend, &[]);
        backend.embed(&mut out, &table_on_device, 1.5);
        backend.read(&out)
    }
    for kind in
        [WeightKind::F32, WeightKind::Bf16, WeightKind::Q5_0, WeightKind::Q8_0, WeightKind::Q6K]
    {
        let data: Vec<u8> = (0..50).flat_map(|row| random_row(kind, 512, 0.1, row)).collect();
        let table = WeightView::whole("table", kind, 50, 512, &data);
        let tokens: Vec<u32> = (0..37).map(|i| i * 31 % 50).collect();
        let got = run(&mut make(limits()), &table, &tokens);
        let want = run(&mut oracle(), &table, &tokens);
        assert_near(&got, &want, tolerances.rounded, &format!("embedding {kind:?}"));
    }
}

/// A rank's part of a table gives the bits of the whole for its tokens, and elsewhere a value that
/// changes no bit of another rank's in a sum.
pub(super) fn embedding_parts<B: Backend>(make: Make<'_, B>) {
    for kind in [WeightKind::Bf16, WeightKind::Q6K] {
        let data: Vec<u8> = (0..50).flat_map(|row| random_row(kind, 512, 0.1, row)).collect();
        let whole = WeightView::whole("table", kind, 50, 512, &data);
        let tokens: Vec<u32> = (0..37).map(|i| i * 31 % 50).collect();
        let mut backend = make(limits());
        let mut run = |view: &WeightView<'_>, first_token| {
            let table = backend.pack_table(view, first_token).expect("a good table");
            let mut out = backend.float_tensor(RowSet::Tokens, 512).expect("a tensor");
            TestStep::rows(tokens.len()).with_tokens(&tokens).begin(&mut backend, &[]);
            backend.embed(&mut out, &table, -0.5);
            backend.read(&out)
        };
        let want = run(&whole, 0);
        let parts = [0..16, 16..48, 48..50].map(|rows| {
            let first_token = rows.start as u32;
            run(&whole.with_rows(rows), first_token)
        });
        let [a, b, c] = &parts;
        let sums: Vec<f32> = a.iter().zip(b).zip(c).map(|((a, b), c)| a + b + c).collect();
        let is_same = sums.iter().zip(&want).all(|(sum, want)| sum.to_bits() == want.to_bits());
        assert!(is_same, "{kind:?}: zeros keep their signs, too");
    }
}

/// A step without a row, and one with as many as there may be.
pub(super) fn empty_and_full<B: Backend>(make: Make<'_, B>, tolerances: &Tolerances) {
    fn run<B: Backend>(backend: &mut B, rows: usize) -> [Vec<f32>; 2] {
        const WIDTH: usize = 64;
        let data: Vec<u8> = (0..WIDTH as u64)
            .flat_map(|row| random_row(WeightKind::Bf16, WIDTH, 0.1, row))
            .collect();
        let view = WeightView::whole("weight", WeightKind::Bf16, WIDTH, WIDTH, &data);
        let table = backend.pack_table(&view, 0).expect("a good table");
        let weight = backend.pack_linear(&[view], InnerSplit::WHOLE).expect("a good weight");
        let norm = backend.vector(&random_values(WIDTH, 1)).expect("a vector");
        let mut residual = backend.float_tensor(RowSet::Tokens, WIDTH).expect("a tensor");
        let mut logits = backend.float_tensor(RowSet::Gathered, WIDTH).expect("a tensor");
        let mut normed = backend.tensor(RowSet::Tokens, WIDTH).expect("a tensor");
        let mut gathered = backend.tensor(RowSet::Gathered, WIDTH).expect("a tensor");
        let tokens: Vec<u32> = (0..rows as u32).map(|row| row * 7 % WIDTH as u32).collect();
        let params = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
        let history = History::default();
        let kind = |position| LogitKind::Sample { params: &params, position, history };
        let wanted: Vec<_> =
            (0..rows as u32).step_by(20).map(|row| LogitRow { row, kind: kind(row + 1) }).collect();
        TestStep::rows(rows).with_tokens(&tokens).begin(backend, &wanted);
        backend.embed(&mut residual, &table, 1.0);
        backend.add_rms_norm(&mut normed, &mut residual, None, &norm, 1e-6);
        let mut logits_read = Vec::new();
        if rows > 0 {
            backend.gather(&mut gathered, &normed, 0..wanted.len());
            backend.linear(&mut logits, &gathered, &weight, None);
            backend.sample(&logits);
            logits_read = backend.read(&logits);
        }
        let normed = backend.read(&normed);
        let mut results = Vec::new();
        backend.finish_step(&mut results).expect("a working device");
        assert_eq!(results.len(), wanted.len(), "a result for each wanted row");
        [normed, logits_read]
    }
    let mut backend = make(limits());
    // Full, empty, and full again: nothing of a step is left for the next.
    let full = run(&mut backend, limits().max_tokens);
    assert!(run(&mut backend, 0).iter().all(Vec::is_empty), "a step without rows");
    let again = run(&mut backend, limits().max_tokens);
    let want = run(&mut oracle(), limits().max_tokens);
    for (index, what) in ["norm of a full step", "logits of a full step"].into_iter().enumerate() {
        assert_near(&full[index], &want[index], tolerances.float.max(tolerances.rounded), what);
        assert_same(&again[index], &full[index], what);
    }
}

/// The norm with and without a residual to add.
pub(super) fn norm<B: Backend>(make: Make<'_, B>, tolerances: &Tolerances) {
    fn run<B: Backend>(
        backend: &mut B,
        rows: usize,
        width: usize,
        with_delta: bool,
    ) -> (Vec<f32>, Vec<f32>) {
        let weight = backend.vector(&random_values(width, 1)).expect("a vector");
        let mut floats =
            [0, 1].map(|_| backend.float_tensor(RowSet::Tokens, width).expect("a tensor"));
        let mut normed = backend.tensor(RowSet::Tokens, width).expect("a tensor");
        TestStep::rows(rows).begin(backend, &[]);
        let ([residual, delta], out) = (&mut floats, &mut normed);
        backend.write(residual, &random_values(rows * width, 2));
        backend.write(delta, &random_values(rows * width, 3));
        backend.add_rms_norm(out, residual, with_delta.then_some(&*delta), &weight, 1e-6);
        (backend.read(out), backend.read(residual))
    }
    for width in [16, 40, 896, 1001] {
        for (rows, with_delta) in [(1, true), (3, false), (33, true)] {
            let mut backend = make(limits());
            let got = run(&mut backend, rows, width, with_delta);
            let want = run(&mut oracle(), rows, width, with_delta);
            assert_near(&got.0, &want.0, tolerances.rounded, &format!("norm of {width}"));
            assert_same(&got.1, &want.1, "residual");
            let alone = run(&mut backend, 1, width, with_delta);
            assert_same(&alone.0, &got.0[..width], "norm of the first row alone");
        }
    }
}

/// The norm alone.
pub(super) fn norm_in_place<B: Backend>(make: Make<'_, B>, tolerances: &Tolerances) {
    fn run<B: Backend>(backend: &mut B, width: usize, input: &[f32]) -> Vec<f32> {
        let weight = backend.vector(&random_values(width, 1)).expect("a vector");
        let mut values = backend.float_tensor(RowSet::Tokens, width).expect("a tensor");
        TestStep::rows(input.len() / width).begin(backend, &[]);
        backend.write(&mut values, input);
        backend.rms_norm(&mut values, &weight, 1e-6);
        backend.read(&values)
    }
    for width in [16, 40, 640, 1001] {
        let mut input = random_values(33 * width, 2);
        input[width..2 * width].fill(0.0);
        let mut backend = make(limits());
        let got = run(&mut backend, width, &input);
        let want = run(&mut oracle(), width, &input);
        assert_near(&got, &want, tolerances.exact, &format!("norm of {width} in place"));
        let alone = run(&mut backend, width, &input[..width]);
        assert_same(&alone, &got[..width], "norm of the first row alone");
    }
}

/// The norm of each query and key head; values stay.
pub(super) fn head_norm<B: Backend>(make: Make<'_, B>, tolerances: &Tolerances) {
    fn run<B: Backend>(backend: &mut B, params: &AttentionParams, input: &[f32]) -> Vec<f32> {
        let width = (params.num_heads + 2 * params.num_kv_heads) * params.head_dim;
        let [query_weight, key_weight] =
            [1, 2].map(|seed| backend.vector(&random_values(params.head_dim, seed)));
        let mut qkv = backend.tensor(RowSet::Tokens, width).expect("a tensor");
        TestStep::rows(input.len() / width).begin(backend, &[]);
        backend.write(&mut qkv, input);
        let (query_weight, key_weight) =
            (query_weight.expect("a vector"), key_weight.expect("a vector"));
        backend.head_rms_norm(&mut qkv, &query_weight, &key_weight, 1e-6, params);
        backend.read(&qkv)
    }
    for (num_heads, num_kv_heads, head_dim) in [(4, 1, 256), (6, 3, 48), (2, 2, 16)] {
        let (scale, sliding_window, soft_cap) = (1.0, None, None);
        let params =
            AttentionParams { num_heads, num_kv_heads, head_dim, scale, sliding_window, soft_cap };
        let width = (num_heads + 2 * num_kv_heads) * head_dim;
        let mut backend = make(limits());
        let input = rounded(&mut backend, width, &random_values(34 * width, 3));
        let got = run(&mut backend, &params, &input);
        let want = run(&mut oracle(), &params, &input);
        assert_near(&got, &want, tolerances.rounded, &format!("head norm {params:?}"));
        let values = (num_heads + num_kv_heads) * head_dim;
        for (got, input) in got.chunks(width).zip(input.chunks(width)) {
            assert_same(&got[values..], &input[values..], "values beside the normed heads");
        }
        let alone = run(&mut backend, &params, &input[..width]);
        assert_same(&alone, &got[..width], "head norm of the first row alone");
    }
}

/// The soft cap, of tokens and of gathered rows.
pub(super) fn soft_cap<B: Backend>(make: Make<'_, B>, tolerances: &Tolerances) {
    fn run<B: Backend>(backend: &mut B, width: usize, input: &[f32]) -> Vec<f32> {
        let mut values = backend.float_tensor(RowSet::Tokens, width).expect("a tensor");
        TestStep::rows(input.len() / width).begin(backend, &[]);
        backend.write(&mut values, input);
        backend.soft_cap(&mut values, 30.0);
        backend.read(&values)
    }
    for width in [1, 100, 4096] {
        let mut input = random_values(5 * width, 6);
        input.iter_mut().step_by(3).for_each(|value| *value *= 40.0);
        input[0] = f32::NAN;
        let mut backend = make(limits());
        let got = run(&mut backend, width, &input);
        let want = run(&mut oracle(), width, &input);
        assert!(got[0].is_nan(), "a NaN stays one");
        assert_near(&got[1..], &want[1..], tolerances.exact, &format!("soft cap of {width}"));
        assert!(got[1..].iter().all(|value| value.abs() <= 30.0), "values within the cap");
        let last = run(&mut backend, width, &input[4 * width..]);
        assert_same(&last, &got[4 * width..], "soft cap of the last row alone");
    }
}

/// A bias, added once.
pub(super) fn bias<B: Backend>(make: Make<'_, B>) {
    for width in [1, 100, 4096] {
        let mut backend = make(limits());
        let (input, bias) = (random_values(5 * width, 7), random_values(width, 8));
        let on_device = backend.vector(&bias).expect("a vector");
        let mut values = backend.float_tensor(RowSet::Tokens, width).expect("a tensor");
        TestStep::rows(5).begin(&mut backend, &[]);
        backend.write(&mut values, &input);
        backend.add_bias(&mut values, &on_device);
        let want: Vec<f32> =
            input.chunks(width).flat_map(|row| row.iter().zip(&bias).map(|(a, b)| a + b)).collect();
        assert_same(&backend.read(&values), &want, &format!("a bias of {width}"));
    }
}

/// Gated activations.
pub(super) fn activations<B: Backend>(make: Make<'_, B>, tolerances: &Tolerances) {
    fn run<B: Backend>(
        backend: &mut B,
        width: usize,
        input: &[f32],
        activation: Activation,
    ) -> Vec<f32> {
        let mut gate_up = backend.tensor(RowSet::Tokens, 2 * width).expect("a tensor");
        let mut out = backend.tensor(RowSet::Tokens, width).expect("a tensor");
        TestStep::rows(input.len() / (2 * width)).begin(backend, &[]);
        backend.write(&mut gate_up, input);
        backend.gated_activation(&mut out, &gate_up, activation);
        backend.read(&out)
    }
    for activation in [Activation::Silu, Activation::GeluTanh] {
        for width in [1, 16, 100, 512] {
            let mut input = random_values(34 * width, 5);
            input.iter_mut().step_by(7).for_each(|value| *value *= 30.0);
            let mut backend = make(limits());
            let got = run(&mut backend, width, &input, activation);
            let want = run(&mut oracle(), width, &input, activation);
            assert_near(&got, &want, tolerances.rounded, &format!("{activation:?} of {width}"));
            let alone = run(&mut backend, width, &input[..2 * width], activation);
            assert_same(&alone, &got[..width], "activation of the first row alone");
        }
    }
}
