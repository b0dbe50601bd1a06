//! The paged KV cache: f16 or float32, keys transposed inside a block so that sixteen scores are one FMA chain.

use oarlock_backend::{BackendError, KvCacheShape};
use oarlock_types::BLOCK_TOKENS;

use crate::buffer::AlignedBuffer;
use crate::dtype::Dtype;
use crate::isa::multiversion;
use crate::lanes::{LANES, Lanes};

/// `[layer][block][kv head]` of keys `[head_dim][16 tokens]`, then values `[16 tokens][head_dim]`.
#[derive(Debug)]
pub struct CpuKvCache {
    shape: KvCacheShape,
    values: KvValues,
}

#[derive(Debug)]
enum KvValues {
    F16(AlignedBuffer<u16>),
    F32(AlignedBuffer<f32>),
}

/// What keys and values are kept as.
pub(super) trait KvElement: Copy + Default {
    /// The cache's values, which are of this type.
    fn values(cache: &CpuKvCache) -> &[Self];

    /// Sixteen of them.
    fn load<L: Lanes>(values: &[Self; LANES]) -> L;

    /// Rounds sixteen to what is kept.
    fn store<L: Lanes>(lanes: L, out: &mut [Self; LANES]);
}

impl KvElement for u16 {
    #[inline(always)]
    fn values(cache: &CpuKvCache) -> &[Self] {
        match &cache.values {
            KvValues::F16(values) => values,
            KvValues::F32(_) => unreachable!("the kernel was chosen by the cache"),
        }
    }

    #[inline(always)]
    fn load<L: Lanes>(values: &[Self; LANES]) -> L {
        L::load_f16(values)
    }

    #[inline(always)]
    fn store<L: Lanes>(lanes: L, out: &mut [Self; LANES]) {
        lanes.store_f16(out);
    }
}

impl KvElement for f32 {
    #[inline(always)]
    fn values(cache: &CpuKvCache) -> &[Self] {
        match &cache.values {
            KvValues::F32(values) => values,
            KvValues::F16(_) => unreachable!("the kernel was chosen by the cache"),
        }
    }

    #[inline(always)]
    fn load<L: Lanes>(values: &[Self; LANES]) -> L {
        L::load(values)
    }

    #[inline(always)]
    fn store<L: Lanes>(lanes: L, out: &mut [Self; LANES]) {
        lanes.store(out);
    }
}

impl CpuKvCache {
    pub(crate) fn new(shape: KvCacheShape, dtype: Dtype) -> Result<Self, BackendError> {
        let len = [shape.num_blocks, shape.num_kv_heads, shape.head_dim, 2 * BLOCK_TOKENS]
            .into_iter()
            .try_fold(shape.num_layers, usize::checked_mul)
            .unwrap_or(usize::MAX);
        let values = match dtype {
            Dtype::Auto | Dtype::Bfloat16 => KvValues::F16(AlignedBuffer::zeroed(len, "KV cache")?),
            Dtype::Float32 => KvValues::F32(AlignedBuffer::zeroed(len, "KV cache")?),
        };
        Ok(Self { shape, values })
    }

    /// Whether values are kept as float32.
    pub(super) fn is_f32(&self) -> bool {
        matches!(self.values, KvValues::F32(_))
    }

    pub(crate) fn bytes(&self) -> u64 {
        match &self.values {
            KvValues::F16(values) => values.bytes(),
            KvValues::F32(values) => values.bytes(),
        }
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
    pub(super) fn block<E: KvElement>(
        &self,
        layer: usize,
        block: u32,
        head: usize,
    ) -> (&[[E; BLOCK_TOKENS]], &[E]) {
        let first = self.at(layer, block, head);
        let both = &E::values(self)[first..first + self.head_elements()];
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
        match &mut self.values {
            KvValues::F16(values) => {
                write_f16(isa, &mut values[first..first + elements], token, key, value);
            }
            KvValues::F32(values) => {
                write_f32(isa, &mut values[first..first + elements], token, key, value);
            }
        }
    }

    /// Copies whole blocks, all layers.
    pub(crate) fn copy_blocks(&mut self, pairs: &[(u32, u32)]) {
        let size = self.shape.num_kv_heads * self.head_elements();
        for layer in 0..self.shape.num_layers {
            for &(from, to) in pairs {
                let (from, to) = (self.at(layer, from, 0), self.at(layer, to, 0));
                match &mut self.values {
                    KvValues::F16(values) => values.copy_within(from..from + size, to),
                    KvValues::F32(values) => values.copy_within(from..from + size, to),
                }
            }
        }
    }
}

multiversion! {
    fn write_f16 = write_f16_generic(both: &mut [u16], token: usize, key: &[f32], value: &[f32]);
}

multiversion! {
    fn write_f32 = write_f32_generic(both: &mut [f32], token: usize, key: &[f32], value: &[f32]);
}

#[inline(always)]
fn write_f16_generic<L: Lanes>(both: &mut [u16], token: usize, key: &[f32], value: &[f32]) {
    write_token::<L, u16>(both, token, key, value);
}

#[inline(always)]
fn write_f32_generic<L: Lanes>(both: &mut [f32], token: usize, key: &[f32], value: &[f32]) {
    write_token::<L, f32>(both, token, key, value);
}

#[inline(always)]
fn write_token<L: Lanes, E: KvElement>(both: &mut [E], token: usize, key: &[f32], value: &[f32]) {
    let head_dim = key.len();
    let (keys, values) = both.split_at_mut(BLOCK_TOKENS * head_dim);
    let value_row = &mut values[token * head_dim..][..head_dim];
    for (out, value) in
        value_row.as_chunks_mut::<LANES>().0.iter_mut().zip(value.as_chunks::<LANES>().0)
    {
        E::store(L::load(value), out);
    }
    let columns = keys.as_chunks_mut::<BLOCK_TOKENS>().0;
    for (columns, key) in
        columns.as_chunks_mut::<LANES>().0.iter_mut().zip(key.as_chunks::<LANES>().0)
    {
        let mut kept = [E::default(); LANES];
        E::store(L::load(key), &mut kept);
        for (column, kept) in columns.iter_mut().zip(kept) {
            column[token] = kept;
        }
    }
}
