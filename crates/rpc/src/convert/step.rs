//! Step plans.

use oarlock_types as t;

use super::{ConvertError, all};
use crate::proto as p;

impl From<&t::StepPlan> for p::StepPlan {
    fn from(plan: &t::StepPlan) -> Self {
        Self {
            epoch: plan.epoch.0,
            step: plan.step.0,
            release: plan.release.iter().map(|slot| slot.0).collect(),
            start: plan.start.iter().map(Into::into).collect(),
            blocks: plan.blocks.iter().map(Into::into).collect(),
            chunks: plan.chunks.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<p::StepPlan> for t::StepPlan {
    type Error = ConvertError;

    fn try_from(plan: p::StepPlan) -> Result<Self, ConvertError> {
        Ok(Self {
            epoch: t::Epoch(plan.epoch),
            step: t::StepId(plan.step),
            release: plan.release.into_iter().map(t::SlotId).collect(),
            start: all(plan.start)?,
            blocks: plan.blocks.into_iter().map(Into::into).collect(),
            chunks: plan.chunks.into_iter().map(Into::into).collect(),
        })
    }
}

impl From<&t::NewBlocks> for p::NewBlocks {
    fn from(blocks: &t::NewBlocks) -> Self {
        Self { slot: blocks.slot.0, blocks: blocks.blocks.iter().map(|block| block.0).collect() }
    }
}

impl From<p::NewBlocks> for t::NewBlocks {
    fn from(blocks: p::NewBlocks) -> Self {
        Self {
            slot: t::SlotId(blocks.slot),
            blocks: blocks.blocks.into_iter().map(t::BlockId).collect(),
        }
    }
}

impl From<&t::Chunk> for p::Chunk {
    fn from(chunk: &t::Chunk) -> Self {
        Self {
            slot: chunk.slot.0,
            start: chunk.start,
            len: chunk.len,
            sample: chunk.sample,
            score_start: chunk.score_start,
            score_end: chunk.score_end,
        }
    }
}

impl From<p::Chunk> for t::Chunk {
    fn from(chunk: p::Chunk) -> Self {
        Self {
            slot: t::SlotId(chunk.slot),
            start: chunk.start,
            len: chunk.len,
            sample: chunk.sample,
            score_start: chunk.score_start,
            score_end: chunk.score_end,
        }
    }
}
