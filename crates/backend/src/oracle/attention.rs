//! Rotary embedding, KV cache and attention of the oracle.

use oarlock_types::BLOCK_TOKENS;

use crate::{AttentionParams, RotaryStyle};

use super::ops::dot;
use super::{OracleKvCache, OracleRotary};

/// Rotates queries and keys of one row.
pub(super) fn rotate(
    qkv: &mut [f32],
    rotary: &OracleRotary,
    params: &AttentionParams,
    position: usize,
) {
    let half = rotary.half;
    assert!(2 * half <= params.head_dim, "rotary is within heads");
    let rotated = (params.num_heads + params.num_kv_heads) * params.head_dim;
    for head in qkv[..rotated].chunks_exact_mut(params.head_dim) {
        for pair in 0..half {
            let (i, j) = match rotary.style {
                RotaryStyle::Half => (pair, pair + half),
                RotaryStyle::Interleaved => (2 * pair, 2 * pair + 1),
            };
            let (cos, sin) =
                (rotary.cos[position * half + pair], rotary.sin[position * half + pair]);
            let (a, b) = (head[i], head[j]);
            head[i] = a * cos - b * sin;
            head[j] = b * cos + a * sin;
        }
    }
}

impl OracleKvCache {
    /// Keys, then values, of one token and one head.
    fn at(&self, layer: usize, table: &[u32], position: usize, head: usize) -> [usize; 2] {
        let block = table[position / BLOCK_TOKENS] as usize;
        assert!(block < self.shape.num_blocks, "block of the cache");
        let token =
            (layer * self.shape.num_blocks + block) * BLOCK_TOKENS + position % BLOCK_TOKENS;
        let first = token * 2 * self.shape.num_kv_heads;
        [
            (first + head) * self.shape.head_dim,
            (first + self.shape.num_kv_heads + head) * self.shape.head_dim,
        ]
    }
}

/// Writes keys and values of one row.
pub(super) fn write(
    qkv: &[f32],
    cache: &mut OracleKvCache,
    layer: usize,
    table: &[u32],
    params: &AttentionParams,
    position: usize,
) {
    let width = params.head_dim;
    let keys = params.num_heads * width;
    let values = keys + params.num_kv_heads * width;
    for head in 0..params.num_kv_heads {
        let [key_at, value_at] = cache.at(layer, table, position, head);
        cache.values[key_at..][..width].copy_from_slice(&qkv[keys + head * width..][..width]);
        cache.values[value_at..][..width].copy_from_slice(&qkv[values + head * width..][..width]);
    }
}

/// Attention of one row at `(table, position)`.
pub(super) fn attend(
    out: &mut [f32],
    qkv: &[f32],
    cache: &OracleKvCache,
    layer: usize,
    (table, position): (&[u32], usize),
    params: &AttentionParams,
) {
    let width = params.head_dim;
    let group = params.num_heads / params.num_kv_heads;
    let first =
        params.sliding_window.map_or(0, |window| (position + 1).saturating_sub(window as usize));
    for head in 0..params.num_heads {
        let query = &qkv[head * width..][..width];
        let mut scores = Vec::with_capacity(position + 1 - first);
        for seen in first..=position {
            let [key_at, _] = cache.at(layer, table, seen, head / group);
            let score = dot(query, &cache.values[key_at..][..width]) * params.scale;
            scores.push(params.soft_cap.map_or(score, |cap| cap * (score / cap).tanh()));
        }
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        let out = &mut out[head * width..][..width];
        out.fill(0.0);
        for (seen, score) in (first..).zip(&scores) {
            let weight = (score - max).exp();
            sum += weight;
            let [_, value_at] = cache.at(layer, table, seen, head / group);
            for (out, value) in out.iter_mut().zip(&cache.values[value_at..][..width]) {
                *out += weight * value;
            }
        }
        for value in out.iter_mut() {
            *value /= sum;
        }
    }
}

pub(super) fn copy_blocks(cache: &mut OracleKvCache, pairs: &[(u32, u32)]) {
    let size = BLOCK_TOKENS * 2 * cache.shape.num_kv_heads * cache.shape.head_dim;
    for layer in 0..cache.shape.num_layers {
        for &(from, to) in pairs {
            let first = layer * cache.shape.num_blocks;
            let from = (first + from as usize) * size;
            cache.values.copy_within(from..from + size, (first + to as usize) * size);
        }
    }
}
