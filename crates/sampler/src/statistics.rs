//! Draws against probabilities that are computed here by definition, in float64, one step after the
//! other. Seeds are fixed, so that the outcome is.

use oarlock_types::{LogitRules, SamplingParams, TokenId};

use crate::{History, RulesScratch, Scratch, sample};

const DRAWS: u32 = 40_000;
const ROW: [f32; 12] = [2.0, 1.0, 0.0, -1.0, 1.5, -3.0, 0.5, 2.0, 1.9, -0.2, 0.7, 1.1];

/// Probabilities after temperature, then `min_p`, `top_k` and `top_p`.
fn probabilities(row: &[f32], params: &SamplingParams) -> Vec<f64> {
    let scaled = row.iter().map(|logit| f64::from(*logit) / f64::from(params.temperature));
    let weights: Vec<f64> = scaled.map(f64::exp).collect();
    let greatest = weights.iter().copied().fold(0.0, f64::max);
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]).then(a.cmp(b)));
    order.retain(|id| weights[*id] >= f64::from(params.min_p) * greatest && weights[*id] > 0.0);
    if params.top_k > 0 {
        order.truncate(params.top_k as usize);
    }
    let mass: f64 = order.iter().map(|id| weights[*id]).sum();
    let mut so_far = 0.0;
    let mut kept = vec![0.0; weights.len()];
    for id in order {
        if so_far >= f64::from(params.top_p) * mass {
            break;
        }
        so_far += weights[id];
        kept[id] = weights[id];
    }
    let total: f64 = kept.iter().sum();
    kept.iter().map(|weight| weight / total).collect()
}

/// Pearson's statistic of the draws, and its degrees of freedom. A token that cannot be drawn must not
/// have been.
fn chi_square(row: &[f32], params: &SamplingParams) -> (f64, usize) {
    let expected = probabilities(row, params);
    let mut counts = vec![0_u32; row.len()];
    let mut scratch = Scratch::default();
    for position in 0..DRAWS {
        let token = sample(row, params, position, &mut scratch).expect("a valid row");
        counts[token.index()] += 1;
    }
    let mut statistic = 0.0;
    for (count, probability) in counts.iter().zip(&expected) {
        if *probability == 0.0 {
            assert_eq!(*count, 0, "{counts:?} {expected:?}");
        } else {
            let expected = f64::from(DRAWS) * probability;
            statistic += (f64::from(*count) - expected).powi(2) / expected;
        }
    }
    (statistic, expected.iter().filter(|p| **p > 0.0).count() - 1)
}

/// What is exceeded about once in a thousand (Wilson and Hilferty's approximation).
fn critical(degrees: usize) -> f64 {
    let k = degrees.max(1) as f64;
    k * (1.0 - 2.0 / (9.0 * k) + 3.09 * (2.0 / (9.0 * k)).sqrt()).powi(3)
}

fn check(row: &[f32], params: &SamplingParams) {
    let (statistic, degrees) = chi_square(row, params);
    assert!(statistic < critical(degrees), "{statistic} at {degrees} degrees: {params:?}");
}

fn params(seed: u64) -> SamplingParams {
    SamplingParams { seed, ..SamplingParams::default() }
}

#[test]
fn filters_give_their_distributions() {
    for seed in 1..4 {
        for temperature in [0.6, 1.0, 1.7] {
            let base = SamplingParams { temperature, ..params(seed) };
            check(&ROW, &base);
            check(&ROW, &SamplingParams { top_k: 5, ..base.clone() });
            check(&ROW, &SamplingParams { top_p: 0.8, ..base.clone() });
            check(&ROW, &SamplingParams { min_p: 0.2, ..base.clone() });
            check(&ROW, &SamplingParams { top_k: 8, top_p: 0.9, min_p: 0.05, ..base });
        }
    }
}

#[test]
fn rules_give_their_distributions() {
    let tokens: Vec<TokenId> = [7, 1, 1, 4, 7, 7].map(TokenId).into();
    let history = History { tokens: &tokens, num_prompt: 2 };
    let rules = LogitRules {
        allowed: [0, 1, 2, 4, 6, 7, 8, 10].map(TokenId).into(),
        bad_words: vec![vec![TokenId(7), TokenId(8)]],
        bias: vec![(TokenId(2), 1.25)],
        repetition_penalty: 1.3,
        frequency_penalty: 0.3,
        presence_penalty: 0.4,
        ..LogitRules::default()
    };
    // By hand: 0, 2, 6 and 10 are allowed and untouched but for a bias; 7 and 1 stand in the prompt and,
    // like 4, in the answer (7 twice, 1 and 4 once); 8 would end a bad word; all others are not allowed.
    let none = f32::NEG_INFINITY;
    let penalized = |logit: f32, count: f32| logit / 1.3 - 0.3 * count - 0.4;
    let mut expected = [none; 12];
    expected[0] = ROW[0];
    expected[1] = penalized(ROW[1], 1.0);
    expected[2] = (ROW[2] + 1.25) / 1.0;
    expected[4] = penalized(ROW[4], 1.0);
    expected[6] = ROW[6];
    expected[7] = penalized(ROW[7], 2.0);
    expected[10] = ROW[10];
    let mut scratch = RulesScratch::default();
    let row = scratch.apply(&ROW, &rules, history).to_vec();
    for (got, want) in row.iter().zip(expected) {
        assert!(*got == want || (got - want).abs() < 1e-6, "{row:?} {expected:?}");
    }
    let row = expected;
    for seed in 5..9 {
        check(&row, &params(seed));
        check(&row, &SamplingParams { top_p: 0.9, temperature: 1.4, ..params(seed) });
    }
    let drawn = (0..2000).map(|position| {
        sample(&row, &params(5), position, &mut Scratch::default()).expect("a valid row").0
    });
    assert!(drawn.into_iter().all(|id| [0, 1, 2, 4, 6, 7, 10].contains(&id)), "8 ends a bad word");
}

#[test]
fn choices_and_positions_are_independent() {
    // Pairs of draws at the same position of two choices: all 16 cells of a uniform table.
    let row = [0.0_f32; 4];
    let mut cells = [0_u32; 16];
    let mut scratch = Scratch::default();
    for position in 0..DRAWS {
        let mut draw = |choice| {
            let params = SamplingParams { choice, ..params(11) };
            sample(&row, &params, position, &mut scratch).expect("a valid row").index()
        };
        cells[draw(0) * 4 + draw(1)] += 1;
    }
    let expected = f64::from(DRAWS) / 16.0;
    let statistic: f64 =
        cells.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum();
    assert!(statistic < critical(15), "{statistic}: {cells:?}");
}
