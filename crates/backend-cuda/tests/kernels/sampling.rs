//! Sampling and scores: exactly what the sampler gives for the same logits.

use oarlock_backend::quant::SplitMix;
use oarlock_backend_cuda::kernels::{
    LogitStatsParams, SAMPLE_DRAW, SAMPLE_GREEDY, SAMPLE_INVALID_LOGITS, SAMPLE_OK, SAMPLE_SCORE,
    SampleParams, SampleRequest, SampleResult, SegmentStats, launch, share,
};
use oarlock_sampler::{
    SEGMENT, SampleError, Scratch, log_sum_exp_of_row, random_bits, sample, score, segment_stats,
};
use oarlock_types::{SamplingParams, TokenId};

use crate::device::{Device, has_kernels};

const MAX_TOP: usize = 300;

/// What a row gave, with its top tokens.
struct Row {
    result: SampleResult,
    top: Vec<(u32, f32)>,
}

fn run(
    device: &mut Device,
    logits: &[f32],
    vocabulary: usize,
    requests: &[SampleRequest],
) -> Vec<Row> {
    let rows = requests.len();
    assert_eq!(logits.len(), rows * vocabulary, "a row for each request");
    let segments = vocabulary.div_ceil(SEGMENT);
    let on_device = device.upload(logits);
    let num_rows = device.upload(&[rows as u32]);
    let stats = device.allocate(rows * segments * size_of::<SegmentStats>());
    let stats_params = LogitStatsParams {
        stats,
        logits: on_device,
        num_rows,
        vocabulary: vocabulary as u32,
        padding: 0,
    };
    // One row of blocks more than there are rows.
    device.run(&launch::logit_stats(rows as u32 + 1, vocabulary as u32), &stats_params);
    let got: Vec<SegmentStats> = device.read(stats, rows * segments);
    let want = logits.chunks(vocabulary).flat_map(|row| row.chunks(SEGMENT)).map(segment_stats);
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let is_same =
            got.sum.to_bits() == want.sum.to_bits() || got.sum.is_nan() && want.sum.is_nan();
        assert!(got.max == want.max && is_same, "segment {i}: {got:?}, {want:?}");
    }
    let params = SampleParams {
        results: device.allocate(rows * size_of::<SampleResult>()),
        top_ids: device.allocate(rows * MAX_TOP * 4),
        top_logits: device.allocate(rows * MAX_TOP * 4),
        logits: on_device,
        stats,
        requests: device.upload(requests),
        num_rows,
        vocabulary: vocabulary as u32,
        max_top: MAX_TOP as u32,
    };
    device.run(&launch::sample(rows as u32 + 1), &params);
    let results: Vec<SampleResult> = device.read(params.results, rows);
    let ids: Vec<u32> = device.read(params.top_ids, rows * MAX_TOP);
    let values: Vec<f32> = device.read(params.top_logits, rows * MAX_TOP);
    results
        .into_iter()
        .enumerate()
        .map(|(row, result)| {
            let range = row * MAX_TOP..row * MAX_TOP + result.num_top as usize;
            let top = ids[range.clone()].iter().copied().zip(values[range].iter().copied());
            Row { result, top: top.collect() }
        })
        .collect()
}

fn request(params: &SamplingParams, position: u32, num_top: Option<u32>) -> SampleRequest {
    SampleRequest {
        random: random_bits(params, position),
        top_p: share(params.top_p),
        min_p: share(params.min_p),
        temperature: params.temperature,
        top_k: params.top_k,
        kind: if params.temperature > 0.0 { SAMPLE_DRAW } else { SAMPLE_GREEDY },
        token: 0,
        with_score: u32::from(num_top.is_some()),
        num_top: num_top.unwrap_or(0),
    }
}

/// Checks a row's score against the sampler's.
fn check_score(logits: &[f32], row: &Row, num_top: u32, what: &str) {
    let token = TokenId(row.result.token);
    let log_sum_exp = log_sum_exp_of_row(logits, &mut Vec::new());
    let want = score(logits, token, num_top.min(255) as u8, log_sum_exp);
    assert_eq!(row.result.log_sum_exp.to_bits(), log_sum_exp.to_bits(), "{what}: log-sum-exp");
    assert_eq!(row.result.rank, want.rank, "{what}: rank");
    assert_eq!((row.result.logit - log_sum_exp).to_bits(), want.logprob.to_bits(), "{what}");
    let got: Vec<(u32, u32)> =
        row.top.iter().map(|(id, logit)| (*id, (logit - log_sum_exp).to_bits())).collect();
    let want: Vec<(u32, u32)> =
        want.top.iter().map(|top| (top.token.0, top.logprob.to_bits())).collect();
    assert_eq!(got, want, "{what}: top tokens");
}

/// A row of logits of one of several characters.
fn logits(vocabulary: usize, character: u64, random: &mut SplitMix) -> Vec<f32> {
    let bell = |random: &mut SplitMix| random.uniform() + random.uniform() + random.uniform();
    let mut row: Vec<f32> = (0..vocabulary)
        .map(|_| match character % 5 {
            0 => 3.0 * bell(random),
            // Ties.
            1 => (2.0 * bell(random)).round(),
            // All equal: more candidates than are compared at once.
            2 => 1.25,
            // A narrow band: one bucket has nearly all.
            3 => 1e-3 * random.uniform(),
            _ => 20.0 * bell(random),
        })
        .collect();
    let masked = (random.next() % 3) as usize * vocabulary / 4;
    for _ in 0..masked {
        let at = random.next() as usize % vocabulary;
        if at != 3 {
            row[at] = f32::NEG_INFINITY;
        }
    }
    row
}

#[test]
fn draws_and_scores_are_the_samplers() {
    if !has_kernels() {
        return;
    }
    for (seed, vocabulary) in (1..).zip([1, 40, 1000, 3000, 9001]) {
        let mut random = SplitMix(seed);
        let mut device = Device::new(seed);
        let (mut rows, mut requests, mut params) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..20_u64 {
            rows.push(logits(vocabulary, i, &mut random));
            let draw = SamplingParams {
                temperature: [0.0, 0.7, 1.0, 3.0][i as usize % 4],
                top_k: [0, 1, 50, 2000][(random.next() % 4) as usize],
                top_p: [1.0, 0.9, 0.3, 0.0][(random.next() % 4) as usize],
                min_p: [0.0, 0.01, 0.5][(random.next() % 3) as usize],
                seed: random.next(),
                ..SamplingParams::default()
            };
            let num_top = [None, Some(0), Some(20), Some(255)][(random.next() % 4) as usize];
            requests.push(request(&draw, 7 + i as u32, num_top));
            params.push((draw, num_top));
        }
        let got = run(&mut device, &rows.concat(), vocabulary, &requests);
        let mut scratch = Scratch::default();
        for (i, (row, (draw, num_top))) in got.iter().zip(&params).enumerate() {
            let want = sample(&rows[i], draw, 7 + i as u32, &mut scratch).unwrap();
            let what = format!("row {i} of {vocabulary}: {draw:?}");
            assert_eq!((row.result.status, row.result.token), (SAMPLE_OK, want.0), "{what}");
            if let Some(num_top) = num_top {
                check_score(&rows[i], row, *num_top, &what);
            }
        }
    }
}

/// The bucket in which `top_p` cuts holds thousands of lighter tokens than those that are looked at: none of
/// them is a candidate.
#[test]
fn a_crowd_below_the_bound_is_left_alone() {
    if !has_kernels() {
        return;
    }
    let vocabulary = 4096;
    for (crowd, step) in [(-0.673, 1), (-0.640, 1), (-0.673, 2)] {
        let mut row = vec![crowd; vocabulary];
        row.iter_mut().step_by(step).take(1000).for_each(|logit| *logit = -0.635);
        row[2000] = 0.0;
        let draws: Vec<_> = (0..8)
            .map(|seed| SamplingParams {
                temperature: 1.0,
                top_p: 0.005,
                seed,
                ..SamplingParams::default()
            })
            .collect();
        let requests: Vec<_> = draws.iter().map(|draw| request(draw, 3, Some(5))).collect();
        let got = run(&mut Device::new(5), &row.repeat(8), vocabulary, &requests);
        for (one, draw) in got.iter().zip(&draws) {
            let want = sample(&row, draw, 3, &mut Scratch::default()).unwrap();
            assert_eq!(
                (one.result.status, one.result.token),
                (SAMPLE_OK, want.0),
                "{crowd} {step}"
            );
            check_score(&row, one, 5, "a crowd");
        }
    }
}

#[test]
fn known_tokens_are_scored_and_bad_rows_fail_alone() {
    if !has_kernels() {
        return;
    }
    let vocabulary = 2500;
    let mut random = SplitMix(9);
    let mut rows: Vec<_> = (0..8).map(|i| logits(vocabulary, i, &mut random)).collect();
    rows[2][2400] = f32::NAN;
    rows[3][7] = f32::INFINITY;
    rows[4].fill(f32::NEG_INFINITY);
    let requests: Vec<_> = (0..8)
        .map(|i| SampleRequest {
            kind: SAMPLE_SCORE,
            token: i * 300,
            with_score: 1,
            num_top: 5,
            ..SampleRequest::default()
        })
        .collect();
    let got = run(&mut Device::new(9), &rows.concat(), vocabulary, &requests);
    for (i, row) in got.iter().enumerate() {
        if (2..5).contains(&i) {
            assert_eq!(row.result.status, SAMPLE_INVALID_LOGITS, "row {i}");
        } else {
            assert_eq!((row.result.status, row.result.token), (SAMPLE_OK, i as u32 * 300));
            check_score(&rows[i], row, 5, &format!("row {i}"));
        }
    }
    let draw = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
    let requests = vec![request(&draw, 1, None); 8];
    let got = run(&mut Device::new(10), &rows.concat(), vocabulary, &requests);
    for (row, logits) in got.iter().zip(&rows) {
        let want = sample(logits, &draw, 1, &mut Scratch::default());
        let is_invalid = want == Err(SampleError::InvalidLogits);
        assert_eq!(row.result.status == SAMPLE_INVALID_LOGITS, is_invalid);
        assert!(is_invalid || want == Ok(TokenId(row.result.token)));
    }
}

#[test]
fn the_largest_vocabulary() {
    if !has_kernels() {
        return;
    }
    let vocabulary = 1 << 18;
    let mut random = SplitMix(11);
    let base = SamplingParams { temperature: 0.8, ..SamplingParams::default() };
    let params = [
        SamplingParams { temperature: 0.0, ..base.clone() },
        SamplingParams { seed: 4, ..base.clone() },
        SamplingParams { seed: 5, top_k: 40, top_p: 0.95, ..base.clone() },
        SamplingParams { seed: 6, top_p: 0.9, min_p: 0.001, ..base },
    ];
    let rows: Vec<_> = [0, 0, 4, 1].map(|i| logits(vocabulary, i, &mut random)).to_vec();
    let requests: Vec<_> = params.iter().map(|draw| request(draw, 100, Some(5))).collect();
    let got = run(&mut Device::new(11), &rows.concat(), vocabulary, &requests);
    for ((row, draw), logits) in got.iter().zip(&params).zip(&rows) {
        let want = sample(logits, draw, 100, &mut Scratch::default()).unwrap();
        assert_eq!((row.result.status, row.result.token), (SAMPLE_OK, want.0), "{draw:?}");
        check_score(logits, row, 5, "a large vocabulary");
    }
}
