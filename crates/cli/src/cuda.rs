//! The CUDA backend as a worker makes it.

use anyhow::bail;
use oarlock_backend::{BackendLimits, Progress};
use oarlock_backend_cuda::{CudaBackend, CudaDevice, WorkType, check_device};
use oarlock_collective::{Collective, Transport};
use oarlock_types::Shard;
use oarlock_worker::{BackendKind, Dtype, Memory};

/// Why CUDA devices cannot compute here, if they cannot: as many as there are ranks are needed.
pub(crate) fn check(ranks: u32) -> anyhow::Result<()> {
    check_device(0)?;
    anyhow::ensure!(
        ranks == 1,
        "--tensor-parallel {ranks}: CUDA devices cannot work together yet; take 1, or --device cpu"
    );
    Ok(())
}

/// A rank computes on the device of its number.
pub(crate) struct CudaKind {
    work: WorkType,
}

impl CudaKind {
    pub(crate) fn new(dtype: Dtype) -> Self {
        let work = match dtype {
            Dtype::Auto | Dtype::Bfloat16 => WorkType::Bf16,
            Dtype::Float32 => WorkType::F32,
        };
        Self { work }
    }
}

impl BackendKind for CudaKind {
    type Backend = CudaBackend;

    fn make(&self, shard: Shard, limits: BackendLimits) -> anyhow::Result<CudaBackend> {
        let device = CudaDevice::open(shard.rank as usize)?;
        Ok(CudaBackend::new(&device, self.work, limits)?)
    }

    fn follow(backend: &mut CudaBackend, progress: Progress) {
        backend.set_progress(progress);
    }

    fn collective(_: Box<dyn Transport>) -> anyhow::Result<Box<dyn Collective<CudaBackend>>> {
        bail!("CUDA devices cannot work together yet: --tensor-parallel 1")
    }

    fn memory(&self, _: Shard) -> anyhow::Result<Memory> {
        // The device says itself what it has no room for.
        Ok(Memory {
            available_bytes: None,
            is_shared: false,
            kv_element_bytes: self.work.bytes() as u64,
            packed_kind: match self.work {
                WorkType::Bf16 => |kind| WorkType::Bf16.packed_kind(kind),
                WorkType::F32 => |kind| WorkType::F32.packed_kind(kind),
            },
            name: "the device",
        })
    }
}
