//! What lies on the device: activations, vectors, tables, angles, the cache.

use half::bf16;
use oarlock_backend::{KvCacheShape, RotaryStyle, RowSet};
use oarlock_types::BLOCK_TOKENS;

use crate::driver::DeviceBuffer;
use crate::kernels::WorkType;

/// Activations `[rows, width]`.
#[derive(Debug)]
pub struct CudaTensor {
    pub(crate) rows: RowSet,
    pub(crate) width: usize,
    pub(crate) element: WorkType,
    pub(crate) values: DeviceBuffer,
}

impl CudaTensor {
    pub(crate) fn address(&self) -> u64 {
        self.values.address()
    }
}

/// A float32 vector.
#[derive(Debug)]
pub struct CudaVector {
    pub(crate) len: usize,
    pub(crate) values: DeviceBuffer,
}

/// An embedding table, or a part of one, in the working type.
#[derive(Debug)]
pub struct CudaTable {
    pub(crate) width: usize,
    pub(crate) rows: u32,
    pub(crate) first_token: u32,
    pub(crate) values: DeviceBuffer,
}

/// Cosines and sines of every position.
#[derive(Debug)]
pub struct CudaRotary {
    pub(crate) style: RotaryStyle,
    pub(crate) half: usize,
    pub(crate) cosines: DeviceBuffer,
    pub(crate) sines: DeviceBuffer,
}

/// `[layer][block][kv head][keys | values][16 tokens][head_dim]` in the working type.
#[derive(Debug)]
pub struct CudaKvCache {
    pub(crate) shape: KvCacheShape,
    pub(crate) block_bytes: u64,
    pub(crate) values: DeviceBuffer,
}

impl CudaKvCache {
    /// Bytes of one block of one layer.
    pub(crate) fn bytes_of_block(shape: &KvCacheShape, work: WorkType) -> u64 {
        (shape.num_kv_heads * 2 * BLOCK_TOKENS * shape.head_dim * work.bytes()) as u64
    }

    /// Where a layer's blocks begin.
    pub(crate) fn layer(&self, layer: usize) -> u64 {
        assert!(layer < self.shape.num_layers, "a layer of the cache");
        self.values.address() + (layer * self.shape.num_blocks) as u64 * self.block_bytes
    }
}

/// Values in the type that a device keeps them in, rounded to nearest even.
pub(crate) fn to_bytes(values: &[f32], element: WorkType) -> Vec<u8> {
    match element {
        WorkType::F32 => bytemuck::cast_slice(values).to_vec(),
        WorkType::Bf16 => {
            values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect()
        }
    }
}

/// The other way.
pub(crate) fn from_bytes(bytes: &[u8], element: WorkType) -> Vec<f32> {
    match element {
        WorkType::F32 => {
            bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        }
        WorkType::Bf16 => bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|bytes| bf16::from_le_bytes(*bytes).to_f32())
            .collect(),
    }
}
