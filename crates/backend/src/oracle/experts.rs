//! Routing and experts of the oracle.

use crate::experts::ExpertChecks;
use crate::{Activation, ExpertsShape};

use super::ops::{dot, gated_activation, join_segments};
use super::{OracleWeight, StoredMatrix};

/// A layer of experts.
#[derive(Debug)]
pub struct OracleExperts {
    pub(super) checks: ExpertChecks,
    router: StoredMatrix,
    /// Gate and up, and down, of each.
    experts: Vec<(OracleWeight, OracleWeight)>,
}

/// Chosen experts of each row, and their weights.
#[derive(Debug, Default)]
pub struct OracleRouting {
    top_k: usize,
    choices: Vec<(u32, f32)>,
}

impl OracleExperts {
    pub(super) fn new(checks: ExpertChecks, router: StoredMatrix) -> Self {
        Self { checks, router, experts: Vec::new() }
    }

    pub(super) fn push(&mut self, gate_up: OracleWeight, down: OracleWeight) {
        self.experts.push((gate_up, down));
    }

    /// One row through its experts.
    pub(super) fn feed_forward(
        &self,
        out: &mut [f32],
        input: &[f32],
        choices: &[(u32, f32)],
        activation: Activation,
    ) {
        let ExpertsShape { feed_forward, split, .. } = *self.checks.shape();
        let segment = feed_forward / split.segments;
        let mut sums = vec![[0.0_f32; 8]; out.len()];
        for &(expert, weight) in choices {
            let (gate_up, down) = &self.experts[expert as usize];
            let mut both = vec![0.0; 2 * feed_forward];
            gate_up.for_each_row(|output, row| both[output] = dot(input, row));
            let mut gated = vec![0.0; feed_forward];
            gated_activation(&mut gated, &both, activation);
            down.for_each_row(|output, row| {
                let parts = gated.chunks(segment).zip(row.chunks(segment));
                for (sum, (gated, row)) in sums[output].iter_mut().zip(parts) {
                    *sum = weight.mul_add(dot(gated, row), *sum);
                }
            });
        }
        for (out, sums) in out.iter_mut().zip(&mut sums) {
            *out = join_segments(sums, split.segments);
        }
    }
}

impl OracleRouting {
    /// The choices of rows of activations.
    pub(super) fn choose<'a>(
        &mut self,
        rows: impl Iterator<Item = &'a [f32]>,
        experts: &OracleExperts,
    ) {
        let ExpertsShape { num_experts, top_k, normalize, hidden, .. } = *experts.checks.shape();
        self.top_k = top_k;
        self.choices.clear();
        let mut weights = vec![0.0; hidden];
        let mut logits = vec![0.0; num_experts];
        for row in rows {
            for (expert, logit) in logits.iter_mut().enumerate() {
                experts.router.row(expert, &mut weights);
                *logit = dot(row, &weights);
            }
            self.choices.extend(choose(&logits, top_k, normalize));
        }
    }

    /// The choices of one row, in order of experts.
    pub(super) fn row(&self, row: usize) -> &[(u32, f32)] {
        &self.choices[row * self.top_k..][..self.top_k]
    }
}

/// The experts of the greatest logits, in order of their index, with their weights.
fn choose(logits: &[f32], top_k: usize, normalize: bool) -> Vec<(u32, f32)> {
    if logits.iter().any(|logit| logit.is_nan()) {
        return (0..top_k as u32).map(|expert| (expert, f32::NAN)).collect();
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // Stable: of equal ones the first stays first.
    order.sort_by(|a, b| logits[*b].partial_cmp(&logits[*a]).expect("numbers"));
    let greatest = logits[order[0]];
    let mut chosen = order[..top_k].to_vec();
    chosen.sort_unstable();
    let exp = |expert: usize| (logits[expert] - greatest).exp();
    let sum: f32 = if normalize {
        chosen.iter().map(|expert| exp(*expert)).sum()
    } else {
        (0..logits.len()).map(exp).sum()
    };
    chosen.into_iter().map(|expert| (expert as u32, exp(expert) / sum)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_are_chosen_and_weighted() {
        let logits = [1.0, 3.0, 3.0, -2.0, 2.0];
        let chosen = choose(&logits, 2, true);
        assert_eq!(chosen, [(1, 0.5), (2, 0.5)]);
        let all: f32 = logits.iter().map(|logit| (logit - 3.0).exp()).sum();
        assert_eq!(choose(&logits, 3, false)[2], (4, (-1.0_f32).exp() / all));
        // Of equal ones the first.
        assert_eq!(choose(&[0.0; 4], 1, true), [(0, 1.0)]);
        assert!(choose(&[0.0, f32::NAN, 1.0], 2, true).iter().all(|(_, weight)| weight.is_nan()));
        assert!(choose(&[0.0, f32::INFINITY], 1, true)[0].1.is_nan(), "no number");
    }
}
