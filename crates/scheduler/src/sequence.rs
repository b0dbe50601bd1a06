//! One request on its way, and the collection of all of them.

use oarlock_kv_cache::BlockTable;
use oarlock_types::{BLOCK_TOKENS, FinishReason, Request, SlotId, StepId, TokenId, Usage};

use crate::queue::Order;

/// Where a sequence is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Waiting,
    Running(SlotId),
}

/// A request, its tokens, and how far it has come.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// What was asked; its `tokens` have moved to the field below.
    pub(crate) request: Request,
    /// Prompt and generated tokens that are known.
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) table: BlockTable,
    pub(crate) order: Order,
    pub(crate) place: Place,
    /// Blocks that it was promised and has not taken yet.
    pub(crate) num_promised: usize,
    /// Index of its tenant.
    pub(crate) tenant: usize,
    /// Neighbours in the list of its tenant's waiting sequences.
    pub(crate) previous_waiting: Option<usize>,
    pub(crate) next_waiting: Option<usize>,
    /// Tokens that count for it against the bound of the queue; `None` unless it waits for its first
    /// start.
    pub(crate) queue_charge: Option<u32>,
    /// Index of its group, if it is a member of one.
    pub(crate) group: Option<usize>,
    /// Neighbours in the list of its group.
    pub(crate) previous_sibling: Option<usize>,
    pub(crate) next_sibling: Option<usize>,
    /// Known and sampled tokens at which the sequence is complete.
    pub(crate) goal: u32,
    /// Tokens in the KV cache once all plans in flight have committed.
    pub(crate) planned: u32,
    /// Tokens in the KV cache by the plans that have committed.
    pub(crate) computed: u32,
    /// Blocks of the table that the workers know.
    pub(crate) num_announced: usize,
    /// Chunks in flight, also of attempts before a preemption.
    pub(crate) num_in_flight: u32,
    /// Of these, chunks that sample a token.
    pub(crate) num_sampling: u32,
    /// The last plan that names this sequence's blocks.
    pub(crate) last_step: StepId,
    /// How often it lost its slot to others.
    pub(crate) num_preemptions: u32,
    /// Positions counted for its tenant.
    pub(crate) num_charged: u32,
    /// Whether `tokens` and `table` have memory for all that is to come.
    pub(crate) has_room: bool,
    /// Counts how often it lost its slot: results of an earlier attempt give tokens, no progress.
    pub(crate) attempt: u32,
    /// Prompt positions whose scores were reported.
    pub(crate) num_scored: u32,
    /// The same once all plans in flight have committed.
    pub(crate) num_scores_planned: u32,
    /// Prompt tokens counted in the statistics.
    pub(crate) num_prompt_counted: u32,
    /// Prompt tokens that came from the cache when it first started; `None` before that.
    pub(crate) cached_tokens: Option<u32>,
}

impl Sequence {
    /// A request that waits; `goal` is where it is complete.
    pub(crate) fn new(mut request: Request, order: Order, tenant: usize, goal: u32) -> Self {
        Self {
            tokens: std::mem::take(&mut request.tokens),
            request,
            table: BlockTable::default(),
            order,
            place: Place::Waiting,
            num_promised: 0,
            tenant,
            previous_waiting: None,
            next_waiting: None,
            queue_charge: None,
            group: None,
            previous_sibling: None,
            next_sibling: None,
            goal,
            planned: 0,
            computed: 0,
            num_announced: 0,
            num_in_flight: 0,
            num_sampling: 0,
            last_step: StepId(0),
            num_preemptions: 0,
            num_charged: 0,
            has_room: false,
            attempt: 0,
            num_scored: 0,
            num_scores_planned: 0,
            num_prompt_counted: 0,
            cached_tokens: None,
        }
    }

    /// The slot that it runs in.
    pub(crate) fn slot(&self) -> Option<SlotId> {
        match self.place {
            Place::Waiting => None,
            Place::Running(slot) => Some(slot),
        }
    }

    /// The tokens of its prompt.
    pub(crate) fn prompt(&self) -> &[TokenId] {
        &self.tokens[..self.request.num_prompt as usize]
    }

    /// Tokens known.
    pub(crate) fn num_tokens(&self) -> u32 {
        self.tokens.len() as u32
    }

    /// Tokens known, and sampled by plans in flight.
    pub(crate) fn num_expected(&self) -> u32 {
        self.num_tokens() + self.num_sampling
    }

    /// Blocks that it may take from the cache: the last token is always computed, since its logits are
    /// needed.
    pub(crate) fn max_hit(&self) -> usize {
        match self.request.prompt_logprobs {
            Some(_) => 0,
            None => (self.tokens.len() - 1) / BLOCK_TOKENS,
        }
    }

    /// How many tokens ever go through the model: the last one generated does not.
    pub(crate) fn compute_end(&self) -> u32 {
        self.request.num_prompt.max(self.goal - 1)
    }

    /// Whether nothing is to be generated.
    pub(crate) fn is_prompt_only(&self) -> bool {
        self.goal <= self.request.num_prompt
    }

    /// Why the tokens so far end the sequence, if they do.
    pub(crate) fn finish_reason(&self) -> Option<FinishReason> {
        let last = *self.tokens[self.request.num_prompt as usize..].last()?;
        if self.request.stop.stop_token_ids.binary_search(&last).is_ok() {
            Some(FinishReason::Stop)
        } else if self.num_tokens() >= self.goal {
            Some(FinishReason::Length)
        } else {
            None
        }
    }

    /// Prompt positions of the chunk `start..end` whose scores are to be reported, if any.
    pub(crate) fn score_range(&self, start: u32, end: u32) -> (u32, u32) {
        if self.request.prompt_logprobs.is_none() {
            return (start, start);
        }
        let first = start.max(self.num_scores_planned);
        let last = end.min(self.request.num_prompt - 1);
        if first < last { (first, last) } else { (start, start) }
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.request.num_prompt,
            cached_tokens: self.cached_tokens.unwrap_or(0),
            completion_tokens: self.num_tokens() - self.request.num_prompt,
            preemptions: self.num_preemptions,
        }
    }

    /// Forgets what the workers had of it. Its table is released by the caller.
    pub(crate) fn lose_progress(&mut self) {
        self.place = Place::Waiting;
        self.attempt += 1;
        self.planned = 0;
        self.computed = 0;
        self.num_announced = 0;
    }
}

/// All sequences, by an index that stays the same while they live.
#[derive(Debug, Default)]
pub(crate) struct Sequences {
    entries: Vec<Option<Sequence>>,
    free: Vec<usize>,
}

impl Sequences {
    pub(crate) fn insert(&mut self, sequence: Sequence) -> usize {
        if let Some(at) = self.free.pop() {
            self.entries[at] = Some(sequence);
            at
        } else {
            self.entries.push(Some(sequence));
            // So that removing never allocates.
            self.free.reserve(self.entries.len());
            self.entries.len() - 1
        }
    }

    /// # Panics
    /// If there is none.
    pub(crate) fn remove(&mut self, at: usize) -> Sequence {
        let sequence = self.entries[at].take().expect("an index of a living sequence");
        self.free.push(at);
        sequence
    }

    pub(crate) fn get(&self, at: usize) -> Option<&Sequence> {
        self.entries[at].as_ref()
    }

    /// All indices are below.
    pub(crate) fn end(&self) -> usize {
        self.entries.len()
    }

    /// The sequence that arrived as this one, unless it is gone.
    pub(crate) fn find(&mut self, at: usize, arrival: u64) -> Option<&mut Sequence> {
        self.entries[at].as_mut().filter(|sequence| sequence.order.arrival == arrival)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &Sequence)> {
        self.entries.iter().enumerate().filter_map(|(at, entry)| Some((at, entry.as_ref()?)))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Sequence> {
        self.entries.iter_mut().flatten()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.len() == self.free.len()
    }
}

impl std::ops::Index<usize> for Sequences {
    type Output = Sequence;

    fn index(&self, at: usize) -> &Sequence {
        self.entries[at].as_ref().expect("an index of a living sequence")
    }
}

impl std::ops::IndexMut<usize> for Sequences {
    fn index_mut(&mut self, at: usize) -> &mut Sequence {
        self.entries[at].as_mut().expect("an index of a living sequence")
    }
}
