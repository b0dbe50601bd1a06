//! The paged KV cache: f16, keys transposed inside a block so that sixteen scores are one FMA chain.

use oarlock_backend::{BackendError, KvCacheShape};
use oarlock_types::BLOCK_TOKENS;

use crate::buffer::AlignedBuffer;
use crate::isa::multiversion;
use crate::lanes::{LANES, Lanes};

/// `[layer][block][kv head]` of keys `[head_dim][16 tokens]`, then values `[16 tokens][head_dim]`.
#[derive(Debug)]
pub struct CpuKvCache {
    shape: KvCacheShape,
    values: AlignedBuffer<u16>,
}

impl CpuKvCache {
    pub(crate) fn new(shape: KvCacheShape) -> Result<Self, BackendError> {
        let values = [shape.num_blocks, shape.num_kv_heads, shape.head_dim, 2 * BLOCK_TOKENS]
            .into_iter()
            .try_fold(shape.num_layers, usize::checked_mul)
            .unwrap_or(usize::MAX);
        Ok(Self { shape, values: AlignedBuffer::zeroed(values, "KV cache")? })
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.values.bytes()
    }

    /// Elements of one block of one head, keys and values.
    fn head_elements(&self) -> usize {
        2 * BLOCK_TOKENS * self.shape.head_dim
    }

    fn at(&self, layer: usize, block: u32, head: usize) -> usize {
        assert!(
            layer < self.shape.num_layers && (block as usize) < self.shape.num_blocks,
            "block of the cache"
        );
        assert!(head < self.shape.num_kv_heads, "head of the cache");
        ((layer * self.shape.num_blocks + block as usize) * self.shape.num_kv_heads + head)
            * self.head_elements()
    }

    /// Keys and values of one block and head.
    #[inline(always)]
    pub(super) fn block(
        &self,
        layer: usize,
        block: u32,
        head: usize,
    ) -> (&[[u16; BLOCK_TOKENS]], &[u16]) {
        let first = self.at(layer, block, head);
        let both = &self.values[first..first + self.head_elements()];
        let (keys, values) = both.split_at(self.head_elements() / 2);
        (keys.as_chunks().0, values)
    }

    /// Writes one token of one head.
    pub(crate) fn write(
        &mut self,
        isa: crate::isa::Isa,
        (layer, block, head): (usize, u32, usize),
        token: usize,
        (key, value): (&[f32], &[f32]),
    ) {
        let first = self.at(layer, block, head);
        let elements = self.head_elements();
        let both = &mut self.values[first..first + elements];
        write_token(isa, both, token, key, value);
    }

    /// Copies whole blocks, all layers.
    pub(crate) fn copy_blocks(&mut self, pairs: &[(u32, u32)]) {
        let size = self.shape.num_kv_heads * self.head_elements();
        for layer in 0..self.shape.num_layers {
            for &(from, to) in pairs {
                let (from, to) = (self.at(layer, from, 0), self.at(layer, to, 0));
                self.values.copy_within(from..from + size, to);
            }
        }
    }
}

multiversion! {
    fn write_token = write_token_generic(both: &mut [u16], token: usize, key: &[f32], value: &[f32]);
}

#[inline(always)]
fn write_token_generic<L: Lanes>(both: &mut [u16], token: usize, key: &[f32], value: &[f32]) {
    let head_dim = key.len();
    let (keys, values) = both.split_at_mut(BLOCK_TOKENS * head_dim);
    let value_row = &mut values[token * head_dim..][..head_dim];
    for (out, value) in
        value_row.as_chunks_mut::<LANES>().0.iter_mut().zip(value.as_chunks::<LANES>().0)
    {
        L::load(value).store_f16(out);
    }
    let columns = keys.as_chunks_mut::<BLOCK_TOKENS>().0;
    for (columns, key) in
        columns.as_chunks_mut::<LANES>().0.iter_mut().zip(key.as_chunks::<LANES>().0)
    {
        let mut bits = [0; LANES];
        L::load(key).store_f16(&mut bits);
        for (column, bits) in columns.iter_mut().zip(bits) {
            column[token] = bits;
        }
    }
}
