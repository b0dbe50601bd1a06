//! Attention on the device: layers of one shape share a plan, which each step makes once.

use std::sync::Arc;

use oarlock_backend::{AttentionParams, BackendLimits};

use crate::device::CudaDevice;
use crate::driver::{Context, CudaError, DeviceBuffer, PinnedBuffer, Stream};
use crate::kernels::{
    AttentionItem, AttentionJoin, AttentionJoinParams, AttentionParams as Params, AttentionPlan,
    Launch, PlanBudget, PlanChunk, PlanShape, WorkType, launch,
};

/// Bytes of the workspace for parts that several blocks of threads compute; more of a context is then
/// walked by one.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Words before the lists: three counts.
const COUNTS: usize = 4;
/// Words of an item and of a join.
const ITEM_WORDS: usize = size_of::<AttentionItem>() / 4;
const JOIN_WORDS: usize = size_of::<AttentionJoin>() / 4;

/// Plans of the shapes that a model's layers have.
#[derive(Debug, Default)]
pub(crate) struct Plans {
    slots: Vec<PlanSlot>,
}

/// The plan of one shape, on the host and on the device.
#[derive(Debug)]
pub(crate) struct PlanSlot {
    shape: PlanShape,
    head_dim: usize,
    budget: PlanBudget,
    pub(crate) plan: AttentionPlan,
    is_fresh: bool,
    host: PinnedBuffer<u32>,
    device: DeviceBuffer,
    pub(crate) workspace: DeviceBuffer,
    max_items: usize,
}

impl Plans {
    /// All plans are of a step that is over.
    pub(crate) fn begin_step(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.is_fresh = false);
    }

    /// Where the plan of these layers is kept, made if it is not there; and the bytes that this took.
    pub(crate) fn prepare(
        &mut self,
        device: &CudaDevice,
        (limits, work): (&BackendLimits, WorkType),
        params: &AttentionParams,
    ) -> Result<(usize, u64), CudaError> {
        let shape = PlanShape {
            group: (params.num_heads / params.num_kv_heads) as u32,
            num_kv_heads: params.num_kv_heads as u32,
            window: params.sliding_window,
            has_wide: work == WorkType::Bf16
                && device.shape().has_wide_attention(params.head_dim as u32),
        };
        let is_it = |slot: &PlanSlot| slot.shape == shape && slot.head_dim == params.head_dim;
        if let Some(at) = self.slots.iter().position(is_it) {
            return Ok((at, 0));
        }
        let slot = PlanSlot::new(&device.context, limits, shape, params.head_dim)?;
        let bytes = (slot.device.bytes() + slot.workspace.bytes()) as u64;
        self.slots.push(slot);
        Ok((self.slots.len() - 1, bytes))
    }

    /// The plan that is kept there for this step, made and sent if no layer did before.
    pub(crate) fn of(
        &mut self,
        at: usize,
        stream: &Stream,
        chunks: &[PlanChunk],
    ) -> Result<&PlanSlot, CudaError> {
        let slot = &mut self.slots[at];
        if !slot.is_fresh {
            slot.plan.plan(chunks, &slot.shape, slot.budget);
            slot.send(stream)?;
            slot.is_fresh = true;
        }
        Ok(slot)
    }
}

impl PlanSlot {
    fn new(
        context: &Arc<Context>,
        limits: &BackendLimits,
        shape: PlanShape,
        head_dim: usize,
    ) -> Result<Self, CudaError> {
        let slot_bytes = shape.num_kv_heads as usize * 16 * (head_dim + 2) * 4;
        let max_slots = WORKSPACE_BYTES / slot_bytes;
        let budget = PlanBudget {
            wanted_blocks: context.info().num_multiprocessors * 2,
            max_slots: max_slots as u32,
        };
        // Every chunk may end in the middle of a tile; every split takes a slot.
        let max_tiles = limits.max_tokens * shape.group as usize / 16 + limits.max_chunks;
        let max_items = max_tiles + max_slots;
        let words = COUNTS + 2 * max_items * ITEM_WORDS + max_slots * JOIN_WORDS;
        Ok(Self {
            shape,
            head_dim,
            budget,
            plan: AttentionPlan::default(),
            is_fresh: false,
            host: PinnedBuffer::new(context, words)?,
            device: DeviceBuffer::new(context, words * 4)?,
            workspace: DeviceBuffer::new(context, max_slots * slot_bytes)?,
            max_items,
        })
    }

    /// Copies the lists to the device, one behind the other's greatest length.
    fn send(&mut self, stream: &Stream) -> Result<(), CudaError> {
        let AttentionPlan { narrow, wide, joins, .. } = &self.plan;
        assert!(narrow.len().max(wide.len()) <= self.max_items, "a plan within its bounds");
        let counts = [narrow.len() as u32, wide.len() as u32, joins.len() as u32];
        self.host[..3].copy_from_slice(&counts);
        stream.upload(&self.device, 0, &self.host, 0..COUNTS)?;
        let lists: [&[u32]; 3] =
            [bytemuck::cast_slice(narrow), bytemuck::cast_slice(wide), bytemuck::cast_slice(joins)];
        for (list, words) in lists.into_iter().enumerate() {
            let first = self.first_word(list);
            self.host[first..first + words.len()].copy_from_slice(words);
            stream.upload(&self.device, first * 4, &self.host, first..first + words.len())?;
        }
        Ok(())
    }

    /// Where a list begins: 0 narrow items, 1 wide ones, 2 joins.
    fn first_word(&self, list: usize) -> usize {
        COUNTS + list * self.max_items * ITEM_WORDS
    }

    /// `[1]`: the length of a list.
    pub(crate) fn count(&self, list: usize) -> u64 {
        self.device.address() + list as u64 * 4
    }

    /// A list's first entry.
    pub(crate) fn list(&self, list: usize) -> u64 {
        self.device.address() + self.first_word(list) as u64 * 4
    }
}

/// Where one layer's attention reads and writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) out: u64,
    pub(crate) qkv: u64,
    pub(crate) cache: u64,
    pub(crate) tables: u64,
}

/// What is launched for one layer: narrow items, wide ones, joins; each where there are any.
pub(crate) struct Launches {
    pub(crate) attention: [Option<(Launch, Params)>; 2],
    pub(crate) join: Option<(Launch, AttentionJoinParams)>,
}

impl PlanSlot {
    pub(crate) fn launches(
        &self,
        work: WorkType,
        layer: &AttentionParams,
        at: Addresses,
    ) -> Launches {
        let (num_heads, num_kv_heads) = (layer.num_heads as u32, layer.num_kv_heads as u32);
        let head_dim = layer.head_dim as u32;
        let window = layer.sliding_window.unwrap_or(0);
        let soft_cap = layer.soft_cap.unwrap_or(0.0);
        let params = |list: usize| Params {
            out: at.out,
            qkv: at.qkv,
            cache: at.cache,
            workspace: self.workspace.address(),
            tables: at.tables,
            items: self.list(list),
            num_items: self.count(list),
            num_heads,
            num_kv_heads,
            head_dim,
            window,
            scale: layer.scale,
            soft_cap,
            inverse_soft_cap: if soft_cap > 0.0 { 1.0 / soft_cap } else { 0.0 },
            padding: 0,
        };
        let [narrow, wide, joins] =
            [self.plan.narrow.len(), self.plan.wide.len(), self.plan.joins.len()]
                .map(|len| len as u32);
        let narrow = (narrow > 0)
            .then(|| (launch::attention_narrow(work, narrow, num_kv_heads, head_dim), params(0)));
        let wide =
            (wide > 0).then(|| (launch::attention_wide(wide, num_kv_heads, head_dim), params(1)));
        let join = (joins > 0).then(|| {
            let params = AttentionJoinParams {
                out: at.out,
                workspace: self.workspace.address(),
                joins: self.list(2),
                num_joins: self.count(2),
                num_heads,
                num_kv_heads,
                head_dim,
                window,
            };
            (launch::attention_join(work, joins, num_kv_heads), params)
        });
        Launches { attention: [narrow, wide], join }
    }
}
