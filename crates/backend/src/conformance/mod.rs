//! What every backend must do: values near the oracle's, and bits that depend on nothing but the row.
//!
//! A backend's tests call [`run_all`] with a way to make it. Failures panic with what differed.

mod attention;
mod experts;
mod linear;
mod rows;
mod sampling;
mod steps;

pub use steps::{Sequence, TestStep};

use crate::quant::SplitMix;
use crate::{Backend, BackendLimits, OracleBackend};

/// How far a backend may be from the oracle, as the relative error of a whole result in the root
/// mean square.
#[derive(Clone, Copy, Debug)]
pub struct Tolerances {
    /// Linear layers with quantized weights.
    pub quantized: f32,
    /// Linear layers with float weights.
    pub float: f32,
    /// Attention, rotary embedding and cache.
    pub attention: f32,
    /// Norms and activations, which are rounded to what the backend computes with.
    pub rounded: f32,
    /// Everything else, in float32.
    pub exact: f32,
}

impl Tolerances {
    /// For int8 and bfloat16 activations and an f16 cache.
    pub const REDUCED: Self =
        Self { quantized: 0.012, float: 0.006, attention: 2e-3, rounded: 2e-6, exact: 2e-6 };
    /// For bfloat16 activations, weights and cache, with sums in float32. Attention has the rounding of
    /// queries and keys in its exponents.
    pub const BFLOAT16: Self =
        Self { quantized: 5e-3, float: 5e-3, attention: 1.2e-2, rounded: 4e-3, exact: 2e-6 };
    /// For float32 throughout.
    pub const FLOAT32: Self =
        Self { quantized: 1e-5, float: 1e-5, attention: 1e-5, rounded: 2e-6, exact: 2e-6 };
}

/// Makes a backend for limits.
pub type Make<'a, B> = &'a dyn Fn(BackendLimits) -> B;

/// The whole suite.
pub fn run_all<B: Backend>(make: Make<'_, B>, tolerances: &Tolerances) {
    linear::shapes(make, tolerances);
    linear::fused_parts(make, tolerances);
    linear::shards_join_to_the_whole(make);
    linear::rows_are_independent(make);
    linear::bad_weights_are_refused(make);
    rows::empty_and_full(make, tolerances);
    rows::embedding(make, tolerances);
    rows::embedding_parts(make);
    rows::norm(make, tolerances);
    rows::activations(make, tolerances);
    rows::norm_in_place(make, tolerances);
    rows::head_norm(make, tolerances);
    rows::soft_cap(make, tolerances);
    rows::bias(make);
    experts::shapes(make, tolerances);
    experts::rows_are_independent(make);
    experts::shards_join_to_the_whole(make);
    experts::unlike_layers_share_a_backend(make);
    experts::bad_layers_are_refused(make);
    attention::shapes(make, tolerances);
    attention::chunks_do_not_matter(make);
    attention::blocks_do_not_matter(make, tolerances);
    attention::what_no_window_shows_is_not_looked_at(make);
    attention::blocks_are_copied(make);
    sampling::as_the_sampler(make);
    sampling::tiles(make);
    sampling::large_vocabulary(make);
}

/// Limits for the suite's steps.
#[must_use]
pub fn limits() -> BackendLimits {
    BackendLimits { max_tokens: 600, max_gathered: 40, max_chunks: 8, max_positions: 1200 }
}

/// Panics unless the relative root-mean-square error is within `tolerance`.
fn assert_near(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: number of values");
    let mut error = 0.0;
    let mut power = 0.0;
    for (got, want) in got.iter().zip(want) {
        error += f64::from(got - want).powi(2);
        power += f64::from(*want).powi(2);
    }
    let relative = (error / power.max(1e-30)).sqrt();
    assert!(
        relative <= f64::from(tolerance),
        "{what}: relative error {relative:e}, {tolerance:e} allowed"
    );
}

/// Panics unless all bits agree.
fn assert_same(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: number of values");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.to_bits(), want.to_bits(), "{what}: value {i} is {got} and was {want}");
    }
}

/// Random activations: mostly small, some outliers, as a transformer has them.
fn random_values(len: usize, seed: u64) -> Vec<f32> {
    let mut random = SplitMix(seed);
    (0..len)
        .map(|_| {
            let value = random.uniform() + random.uniform() + random.uniform();
            if random.next().is_multiple_of(97) { value * 6.0 } else { value }
        })
        .collect()
}

/// What a backend keeps of values that it computes with.
fn rounded<B: Backend>(backend: &mut B, width: usize, values: &[f32]) -> Vec<f32> {
    let mut tensor = backend.tensor(crate::RowSet::Tokens, width).expect("a tensor");
    TestStep::rows(values.len() / width).begin(backend, &[]);
    backend.write(&mut tensor, values);
    backend.read(&tensor)
}

fn oracle() -> OracleBackend {
    OracleBackend::new(limits())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oracle_conforms() {
        run_all(&OracleBackend::new, &Tolerances::FLOAT32);
    }

    #[test]
    #[should_panic(expected = "relative error")]
    fn errors_are_found() {
        assert_near(&[1.0, 2.1], &[1.0, 2.0], 1e-3, "test");
    }
}
