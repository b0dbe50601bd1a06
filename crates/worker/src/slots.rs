//! What a worker keeps of each running sequence.

use oarlock_backend::BlockTables;
use oarlock_types::{
    BLOCK_TOKENS, Chunk, NewBlocks, SamplingParams, SlotError, SlotId, SlotStart, StepId, TokenId,
};
use thiserror::Error;

/// A plan that contradicts what the worker knows: the engine and the worker no longer agree, and the
/// worker must be replaced.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    /// The plan belongs to another life of the group.
    #[error("plan of epoch {plan}, but this worker lives in epoch {own}")]
    Epoch {
        /// The plan's.
        plan: u64,
        /// The worker's.
        own: u64,
    },
    /// Plans must come in order, without gaps.
    #[error("plan of step {plan} came when step {expected} was due")]
    Order {
        /// The plan's.
        plan: u64,
        /// The one that was due.
        expected: u64,
    },
    /// A slot is used in an impossible way.
    #[error("slot {slot}: {reason}")]
    Slot {
        /// The slot.
        slot: SlotId,
        /// What is wrong.
        reason: &'static str,
    },
    /// More tokens or chunks than the workspace was planned for.
    #[error("the plan has {count} {what}, and the limit is {limit}")]
    TooMany {
        /// Tokens or chunks.
        what: &'static str,
        /// Their number.
        count: usize,
        /// The limit.
        limit: usize,
    },
}

/// A running sequence.
#[derive(Debug, Default)]
pub(crate) struct Sequence {
    /// All tokens known so far; sampled ones are appended by the worker itself.
    pub(crate) tokens: Vec<TokenId>,
    /// How many of `tokens` are prompt.
    pub(crate) num_prompt: usize,
    pub(crate) sampling: SamplingParams,
    pub(crate) prompt_logprobs: Option<u8>,
    /// Set once a step failed for this sequence alone; later chunks of it repeat the error.
    pub(crate) failed: Option<SlotError>,
    running: bool,
    /// The last step that had a chunk of this sequence.
    last_step: StepId,
}

/// All slots and their block tables.
pub(crate) struct Slots {
    sequences: Vec<Sequence>,
    pub(crate) tables: BlockTables,
    num_blocks: u32,
}

impl Slots {
    pub(crate) fn new(num_slots: usize, max_blocks_per_sequence: usize, num_blocks: u32) -> Self {
        Self {
            sequences: (0..num_slots).map(|_| Sequence::default()).collect(),
            tables: BlockTables::new(num_slots, max_blocks_per_sequence),
            num_blocks,
        }
    }

    pub(crate) fn release(&mut self, slot: SlotId) -> Result<(), PlanError> {
        let sequence = self.running_mut(slot)?;
        sequence.running = false;
        sequence.tokens.clear();
        self.tables.clear(slot);
        Ok(())
    }

    pub(crate) fn start(&mut self, start: &SlotStart) -> Result<(), PlanError> {
        let sequence = self.sequences.get_mut(start.slot.index());
        let sequence =
            sequence.ok_or(PlanError::Slot { slot: start.slot, reason: "does not exist" })?;
        if sequence.running {
            return Err(PlanError::Slot { slot: start.slot, reason: "started while it runs" });
        }
        // The vector of tokens keeps its memory from the slot's last sequence.
        sequence.tokens.clear();
        sequence.tokens.extend_from_slice(&start.tokens);
        sequence.num_prompt = start.num_prompt as usize;
        sequence.sampling = start.sampling.clone();
        sequence.prompt_logprobs = start.prompt_logprobs;
        sequence.failed = None;
        sequence.last_step = StepId(0);
        sequence.running = true;
        Ok(())
    }

    pub(crate) fn append_blocks(&mut self, new: &NewBlocks) -> Result<(), PlanError> {
        let slot = new.slot;
        self.running(slot)?;
        let held = self.tables.get(slot).len();
        if held + new.blocks.len() > self.tables.max_blocks() {
            return Err(PlanError::Slot {
                slot,
                reason: "gets more blocks than a sequence may have",
            });
        }
        for block in &new.blocks {
            if block.0 >= self.num_blocks {
                return Err(PlanError::Slot { slot, reason: "gets a block that does not exist" });
            }
            self.tables.push(slot, *block);
        }
        Ok(())
    }

    /// Checks that the chunk's tokens are known and its pages are there.
    pub(crate) fn check(&mut self, chunk: &Chunk, step: StepId) -> Result<(), PlanError> {
        let slot = chunk.slot;
        let wrong = |reason| Err(PlanError::Slot { slot, reason });
        self.running(slot)?;
        let num_blocks = self.tables.get(slot).len();
        let sequence = self.running_mut(slot)?;
        if std::mem::replace(&mut sequence.last_step, step) == step {
            return wrong("has two chunks in one step");
        }
        let end = chunk.start as usize + chunk.len as usize;
        if chunk.len == 0 {
            return wrong("an empty chunk");
        }
        if num_blocks < end.div_ceil(BLOCK_TOKENS) {
            return wrong("has no block for a planned token");
        }
        if sequence.failed.is_some() {
            return Ok(());
        }
        if end > sequence.tokens.len() {
            return wrong("a planned token is not known");
        }
        if chunk.sample && end != sequence.tokens.len() {
            return wrong("samples before its last token");
        }
        let scored = chunk.score_start < chunk.score_end;
        let inside = chunk.score_start >= chunk.start && chunk.score_end as usize <= end;
        if scored && (!inside || chunk.score_end as usize >= sequence.tokens.len()) {
            return wrong("scores positions outside of its chunk or prompt");
        }
        Ok(())
    }

    pub(crate) fn running(&self, slot: SlotId) -> Result<&Sequence, PlanError> {
        let sequence = self.sequences.get(slot.index()).filter(|sequence| sequence.running);
        sequence.ok_or(PlanError::Slot { slot, reason: "is used and does not run" })
    }

    pub(crate) fn running_mut(&mut self, slot: SlotId) -> Result<&mut Sequence, PlanError> {
        let sequence = self.sequences.get_mut(slot.index()).filter(|sequence| sequence.running);
        sequence.ok_or(PlanError::Slot { slot, reason: "is used and does not run" })
    }

    /// A slot that [`Self::check`] has seen.
    pub(crate) fn get(&self, slot: SlotId) -> &Sequence {
        &self.sequences[slot.index()]
    }
}
