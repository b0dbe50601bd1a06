//! Which experts each row takes.

use oarlock_backend::ExpertsShape;

use crate::buffer::SharedSlice;
use crate::isa::Isa;
use crate::linear::{MAX_GROUP, f32_tile};
use crate::pack::TILE;
use crate::tensor::CpuTensor;
use crate::threads::{ThreadPool, quarter_share};

use super::{CpuExperts, CpuRouting, ExpertWorkspace};

impl ExpertWorkspace {
    /// Chooses the experts of the first `rows` rows of `input`.
    pub(crate) fn route(
        &mut self,
        isa: Isa,
        pool: &mut ThreadPool,
        routing: &mut CpuRouting,
        (input, rows): (&CpuTensor, usize),
        layer: &CpuExperts,
    ) -> Result<(), String> {
        let ExpertsShape { num_experts, top_k, normalize, hidden, .. } = *layer.checks.shape();
        assert_eq!(input.width, hidden, "input of the router");
        assert_eq!(routing.top_k, top_k, "room for the choices of this layer");
        routing.rows = rows;
        let tiles = num_experts.div_ceil(TILE);
        let padded = tiles * TILE;
        let groups = rows.div_ceil(MAX_GROUP);
        let logits = SharedSlice::new(&mut self.logits);
        let threads = pool.threads();
        let work = groups * tiles;
        pool.run(work, quarter_share(work, threads), &|_, taken| {
            let mut sums = [[0.0; TILE]; MAX_GROUP];
            for item in taken {
                let (first, tile) = (item / tiles * MAX_GROUP, item % tiles);
                let len = MAX_GROUP.min(rows - first);
                let sums = &mut sums[..len];
                let values = &input.values[first * hidden..];
                f32_tile(isa, layer.router.tile(tile), (values, hidden), sums);
                for (row, sums) in (first..).zip(sums.iter()) {
                    let at = row * padded + tile * TILE;
                    // SAFETY: each tile of a row is computed by one thread.
                    unsafe { logits.range(at..at + TILE) }.copy_from_slice(sums);
                }
            }
        })?;
        for row in 0..rows {
            let logits = &self.logits[row * padded..][..num_experts];
            let choices = row * top_k..(row + 1) * top_k;
            let (ids, weights) = (&mut routing.ids[choices.clone()], &mut routing.weights[choices]);
            choose(logits, ids, weights, normalize);
        }
        Ok(())
    }
}

/// The experts of the greatest logits, of equal ones the first, in order of their index; their weights are the
/// softmax over all, with `normalize` over themselves. Logits that are no numbers give weights that are none.
fn choose(logits: &[f32], ids: &mut [u32], weights: &mut [f32], normalize: bool) {
    if logits.iter().any(|logit| logit.is_nan()) {
        ids.iter_mut().zip(0..).for_each(|(id, expert)| *id = expert);
        weights.fill(f32::NAN);
        return;
    }
    // The one before in the order by logit, descending, then by index.
    let mut before = (f32::INFINITY, None);
    for id in ids.iter_mut() {
        let mut best: Option<(f32, usize)> = None;
        for (expert, &logit) in logits.iter().enumerate() {
            let is_left = match before {
                (_, None) => true,
                (greater, Some(index)) => logit < greater || logit == greater && expert > index,
            };
            if is_left && best.is_none_or(|(greatest, _)| logit > greatest) {
                best = Some((logit, expert));
            }
        }
        let (logit, expert) = best.expect("no more choices than experts");
        *id = expert as u32;
        before = (logit, Some(expert));
    }
    let greatest = logits[ids[0] as usize];
    ids.sort_unstable();
    let exp = |logit: f32| oarlock_sampler::math::exp(logit - greatest);
    let mut sum = 0.0;
    for (weight, id) in weights.iter_mut().zip(&*ids) {
        *weight = exp(logits[*id as usize]);
        sum += *weight;
    }
    if !normalize {
        sum = logits.iter().fold(0.0, |sum, logit| sum + exp(*logit));
    }
    for weight in weights {
        *weight /= sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(logits: &[f32], top_k: usize, normalize: bool) -> (Vec<u32>, Vec<f32>) {
        let (mut ids, mut weights) = (vec![0; top_k], vec![0.0; top_k]);
        choose(logits, &mut ids, &mut weights, normalize);
        (ids, weights)
    }

    #[test]
    fn the_greatest_are_chosen_and_weighted() {
        assert_eq!(chosen(&[1.0, 3.0, 3.0, -2.0], 2, true), (vec![1, 2], vec![0.5, 0.5]));
        assert_eq!(chosen(&[0.0; 5], 3, false), (vec![0, 1, 2], vec![0.2; 3]));
        assert_eq!(chosen(&[2.0, 2.0, 2.0, 3.0], 2, true).0, [0, 3]);
        assert_eq!(chosen(&[f32::NEG_INFINITY, 1.0], 2, true), (vec![0, 1], vec![0.0, 1.0]));
    }

    #[test]
    fn what_is_no_number_gives_none() {
        for logits in [[0.0, f32::NAN, 1.0], [0.0, f32::INFINITY, 1.0], [f32::NEG_INFINITY; 3]] {
            let (ids, weights) = chosen(&logits, 2, true);
            assert!(ids[0] < ids[1] && weights.iter().any(|weight| weight.is_nan()), "{logits:?}");
        }
    }
}
