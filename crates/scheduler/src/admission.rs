//! Who starts, and who has to make room for it.

use oarlock_kv_cache::PrefixEnd;
use oarlock_types::{BLOCK_TOKENS, Event, EventKind, Priority, SlotId, SlotStart, StepId, TokenId};

use crate::planner::{Draft, blocks_for};
use crate::scheduler::Scheduler;
use crate::sequence::Place;

/// Whether there is room for a sequence.
enum Room {
    /// A slot and enough blocks; so many of its tokens come from the cache.
    Now { slot: SlotId, num_cached: u32 },
    /// Lower classes gave up enough, but plans in flight still name some of these blocks.
    Soon { num_blocks: usize },
    /// Only when others of its class or above are done.
    None,
}

/// A sequence for which there were not enough blocks, and what would change that. Finding it out again
/// costs a walk over its whole prefix, and over the tables of lower classes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refused {
    arrival: u64,
    /// The end of the prefix that was cached.
    prefix: PrefixEnd,
    /// Releases of blocks until then. What others take, or lower classes begin to hold, helps nobody.
    num_releases: u64,
}

impl Scheduler {
    /// Starts waiting sequences, in order, until one does not fit: nothing overtakes that one. Only
    /// of classes above `below`, if given.
    pub(crate) fn admit(&mut self, below: Option<Priority>, draft: &mut Draft<'_>) {
        while draft.budget > 0 && self.may_have_slot() {
            let bound = draft.bound(below);
            let candidate = self.waiting.candidate(&self.sequences, &self.groups, bound);
            let Some(candidate) = candidate else { return };
            let at = candidate.sequence;
            let class = self.sequences[at].order.priority;
            if self.sequences[at].num_in_flight > 0 {
                // Preempted, and a token that it must start with is on its way.
                draft.close(class);
                return;
            }
            if self.finish_complete(at, draft) {
                continue;
            }
            if self.is_still_refused(at) {
                draft.close(class);
                continue;
            }
            match self.make_room(at, draft) {
                Room::Now { slot, num_cached } => {
                    self.waiting.note_served(class, candidate);
                    self.start(at, slot, num_cached, draft);
                }
                Room::Soon { num_blocks } => {
                    draft.reserved = num_blocks;
                    draft.close(class);
                }
                Room::None => draft.close(class),
            }
        }
    }

    /// Starts a waiting sequence while nothing else runs.
    pub(crate) fn admit_one(&mut self, at: usize, draft: &mut Draft<'_>) {
        if self.finish_complete(at, draft) {
            return;
        }
        if let Room::Now { slot, num_cached } = self.make_room(at, draft) {
            self.start(at, slot, num_cached, draft);
        }
    }

    /// Ends a sequence that came here complete, from an engine that was lost before it could say so.
    fn finish_complete(&mut self, at: usize, draft: &mut Draft<'_>) -> bool {
        let Some(reason) = self.sequences[at].finish_reason() else { return false };
        self.note_start(at, 0, draft.events);
        self.finish(at, reason, draft.events);
        true
    }

    /// Whether there is a slot for the highest class that waits, free or of a lower class. When the
    /// server is full there is none, and nobody has to look for the next one in every step.
    fn may_have_slot(&self) -> bool {
        let Some(highest) = self.waiting.highest() else { return false };
        !self.free_slots.is_empty()
            || self.running.last().is_some_and(|(last, _)| last.priority > highest)
    }

    /// Whether a sequence was refused before and nothing got better for it since.
    fn is_still_refused(&self, at: usize) -> bool {
        let sequence = &self.sequences[at];
        self.refused.is_some_and(|refused| {
            refused.arrival == sequence.order.arrival
                && refused.num_releases == self.pool.num_releases()
                && !self.pool.may_be_longer(
                    refused.prefix,
                    sequence.request.salt,
                    &sequence.tokens,
                    sequence.max_hit(),
                )
        })
    }

    /// Finds a slot for a waiting sequence, and blocks for all its tokens and the next one; the
    /// beginning of them is taken from the cache where it is there. What others of its class or above
    /// were promised it cannot have. What lacks is taken from running
    /// sequences of lower classes, the lowest first and of equals the latest, and only if that
    /// suffices.
    fn make_room(&mut self, at: usize, draft: &mut Draft<'_>) -> Room {
        let class = self.sequences[at].order.priority;
        let nobody_below = self.running.last().is_none_or(|(last, _)| last.priority <= class);
        if self.free_slots.is_empty() && nobody_below {
            return Room::None;
        }
        let hit = self.acquire_prefix(at);
        let sequence = &self.sequences[at];
        let needed = blocks_for((sequence.num_tokens() + 1).min(self.limits.sequence_tokens()));
        let needed = needed - hit + self.promises.up_to(class);
        let mut gave_way = false;
        if (self.free_slots.is_empty() || needed > self.pool.num_available())
            && let Some(num_victims) = self.num_victims(class, needed)
        {
            gave_way = true;
            for _ in 0..num_victims {
                self.preempt_last(draft);
            }
        }
        if let Some(&slot) = self.free_slots.last()
            && needed <= self.pool.num_available()
        {
            return Room::Now { slot, num_cached: (hit * BLOCK_TOKENS) as u32 };
        }
        let prefix = self.sequences[at].table.prefix_end();
        let before = self.pool.num_available();
        self.pool.release(&mut self.sequences[at].table, StepId(0));
        if gave_way {
            // Its prefix must not be evicted meanwhile.
            let num_prefix = self.pool.num_available() - before;
            return Room::Soon { num_blocks: needed + num_prefix };
        }
        let arrival = self.sequences[at].order.arrival;
        let num_releases = self.pool.num_releases();
        self.refused = Some(Refused { arrival, prefix, num_releases });
        Room::None
    }

    /// How many running sequences have to give way, from the last on, until there is a slot and
    /// `needed` blocks are free or on their way; `None` if all of lower classes would not suffice, or
    /// none is left.
    fn num_victims(&mut self, class: Priority, needed: usize) -> Option<usize> {
        let (running, sequences) = (&self.running, &self.sequences);
        let lower = running.iter().rev().take_while(|(order, _)| order.priority > class);
        lower.clone().next()?;
        let tables = lower.map(|(_, at)| &sequences[at].table);
        let at_least = usize::from(self.free_slots.is_empty());
        self.pool.releases_needed(tables, at_least, needed)
    }

    /// Takes the cached prefix of a waiting sequence and returns its blocks.
    fn acquire_prefix(&mut self, at: usize) -> usize {
        let sequence = &mut self.sequences[at];
        let max_hit = sequence.max_hit();
        let salt = sequence.request.salt;
        if sequence.table.capacity() == 0 {
            sequence.table = self.spare.table(blocks_for(sequence.goal));
        }
        self.pool.acquire(&mut sequence.table, salt, &sequence.tokens, max_hit)
    }

    /// Takes slot and blocks from the last running sequence. It waits again, in its old place.
    pub(crate) fn preempt_last(&mut self, draft: &mut Draft<'_>) {
        let (order, at) = self.running.last().expect("somebody runs");
        let sequence = &mut self.sequences[at];
        if let Place::Running(slot) = sequence.place {
            draft.plan.release.push(slot);
            self.free_slots.push(slot);
        }
        self.running.remove(order);
        self.pool.release(&mut sequence.table, sequence.last_step);
        sequence.lose_progress();
        self.promises.update(sequence);
        sequence.num_preemptions += 1;
        self.counters.preemptions += 1;
        self.waiting.push_back(&mut self.sequences, at);
        debug_assert!(draft.next <= self.running.len(), "a planned sequence lost its slot");
    }

    /// Moves a waiting sequence, whose prefix is acquired, into a slot and plans its first tokens.
    fn start(&mut self, at: usize, slot: SlotId, num_cached: u32, draft: &mut Draft<'_>) {
        self.waiting.remove(&mut self.sequences, at);
        self.free_slots.pop();
        let sequence = &mut self.sequences[at];
        self.running.insert(sequence.order, at);
        // All that run before it in the order have their tokens, and so will it.
        draft.next += 1;
        sequence.place = Place::Running(slot);
        sequence.planned = num_cached;
        sequence.computed = num_cached;
        sequence.num_scores_planned = sequence.num_scored;
        draft.plan.start.push(SlotStart {
            slot,
            tokens: self.make_growable(at),
            num_prompt: self.sequences[at].request.num_prompt,
            sampling: self.sequences[at].request.sampling.clone(),
            prompt_logprobs: self.sequences[at].request.prompt_logprobs,
        });
        self.note_start(at, num_cached, draft.events);
        let num_behind = self.running.len() - draft.next;
        self.plan_chunk(at, num_behind, draft).expect("blocks for all its tokens were available");
    }

    /// Sees to it that a sequence has memory for all that it will generate, so that no later step
    /// allocates, and returns a copy of its tokens for the workers.
    fn make_growable(&mut self, at: usize) -> Vec<TokenId> {
        let sequence = &mut self.sequences[at];
        if !sequence.has_room {
            sequence.has_room = true;
            sequence.tokens = self.spare.tokens(&sequence.tokens, sequence.goal as usize);
        }
        self.spare.tokens(&sequence.tokens, 0)
    }

    /// Reports and counts a sequence that starts for the first time.
    fn note_start(&mut self, at: usize, num_cached: u32, events: &mut Vec<Event>) {
        let sequence = &mut self.sequences[at];
        if sequence.cached_tokens.is_some() {
            return;
        }
        self.drain.note(sequence.num_tokens());
        // A request that moved here may find generated tokens in the cache, too.
        let cached_tokens = num_cached.min(sequence.request.num_prompt);
        sequence.cached_tokens = Some(cached_tokens);
        sequence.num_prompt_counted = cached_tokens;
        self.counters.prompt_tokens += u64::from(cached_tokens);
        if sequence.request.prompt_logprobs.is_none() {
            self.counters.prefix_cache_queries += u64::from(sequence.request.num_prompt);
            self.counters.prefix_cache_hits += u64::from(cached_tokens);
        }
        let kind = EventKind::Started { cached_tokens };
        events.push(Event { request: sequence.request.id, kind });
    }
}
