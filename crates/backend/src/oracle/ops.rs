//! The row-wise operations of the oracle.

use oarlock_types::TokenId;

use crate::Activation;

use super::{OracleTable, OracleTensor, OracleWeight};

pub(super) fn embed(out: &mut OracleTensor, table: &OracleTable, scale: f32, tokens: &[TokenId]) {
    assert_eq!(out.width, table.rows.columns, "width of the table");
    for (row, token) in tokens.iter().enumerate() {
        let out = out.row_mut(row);
        match token.index().checked_sub(table.first_token).filter(|&at| at < table.rows.rows) {
            Some(at) => {
                table.rows.row(at, out);
                for value in out {
                    *value *= scale;
                }
            }
            None => out.fill(-0.0),
        }
    }
}

pub(super) fn add_rms_norm(
    out: &mut [f32],
    residual: &mut [f32],
    delta: Option<&[f32]>,
    weight: &[f32],
    eps: f32,
) {
    if let Some(delta) = delta {
        for (r, d) in residual.iter_mut().zip(delta) {
            *r += d;
        }
    }
    out.copy_from_slice(residual);
    rms_norm(out, weight, eps);
}

pub(super) fn rms_norm(values: &mut [f32], weight: &[f32], eps: f32) {
    assert_eq!(values.len(), weight.len(), "width of the norm");
    let mean = dot(values, values) / values.len() as f32;
    let inverse = 1.0 / (mean + eps).sqrt();
    for (value, weight) in values.iter_mut().zip(weight) {
        *value = *value * inverse * weight;
    }
}

/// Each weight row is decoded once and used for all rows of the step.
pub(super) fn linear(
    out: &mut OracleTensor,
    input: &OracleTensor,
    weight: &OracleWeight,
    bias: Option<&[f32]>,
    rows: usize,
) {
    let columns = weight.columns;
    assert_eq!(input.width, columns, "inner width");
    assert_eq!(out.width, weight.parts.iter().map(|part| part.rows).sum::<usize>(), "outputs");
    weight.for_each_row(|output, values| {
        for row in 0..rows {
            let sum = segmented_dot(input.row(row), values, weight.segments);
            out.row_mut(row)[output] = sum + bias.map_or(0.0, |bias| bias[output]);
        }
    });
}

impl OracleWeight {
    /// Calls `each(output, weights)` for every output.
    pub(super) fn for_each_row(&self, mut each: impl FnMut(usize, &[f32])) {
        let mut values = vec![0.0; self.columns];
        let mut output = 0;
        for part in &self.parts {
            for stored in 0..part.rows {
                part.row(stored, &mut values);
                each(output, &values);
                output += 1;
            }
        }
    }
}

/// Sums of equal ranges, joined by a tree of neighbours.
fn segmented_dot(a: &[f32], b: &[f32], segments: usize) -> f32 {
    let width = a.len() / segments;
    let mut sums = [0.0; 8];
    for (sum, (a, b)) in sums.iter_mut().zip(a.chunks(width).zip(b.chunks(width))) {
        *sum = dot(a, b);
    }
    join_segments(&mut sums, segments)
}

/// The tree of neighbours.
pub(super) fn join_segments(sums: &mut [f32; 8], segments: usize) -> f32 {
    let mut count = segments;
    while count > 1 {
        count /= 2;
        for i in 0..count {
            sums[i] = sums[2 * i] + sums[2 * i + 1];
        }
    }
    sums[0]
}

/// A float32 dot product in 16 partial sums, which keeps both its error and its time small.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    for (a, b) in a.iter().zip(b) {
        for i in 0..16 {
            lanes[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + rest
}

pub(super) fn gated_activation(out: &mut [f32], gate_up: &[f32], activation: Activation) {
    let (gate, up) = gate_up.split_at(out.len());
    for ((out, &gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = up
            * match activation {
                Activation::Silu => gate / (1.0 + (-gate).exp()),
                Activation::GeluTanh => gelu_tanh(gate),
            };
    }
}

/// Hendrycks and Gimpel 2016, the tanh approximation.
fn gelu_tanh(x: f32) -> f32 {
    let root = (2.0 / std::f32::consts::PI).sqrt();
    0.5 * x * (1.0 + (root * (x + 0.044_715 * x * x * x)).tanh())
}
